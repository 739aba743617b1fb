# Each target does its own set-up in .venv; a second run finds it done and is quick.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
LAYOUT := .venv/layout/vecsweep

.PHONY: demo data test bench gpu lint types clean

demo: $(STAMP)
	$(BIN)/python -m vecsweep demo

# The data sets of the built-in tasks, into the user's cache folder; make data ARGS=mnist fetches one.
data: $(STAMP)
	$(BIN)/python -m vecsweep data $(ARGS)

# The tests, then every arm of every bench once.
test: lint types
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest bench --benchmark-disable

# For example make bench ARGS="-k digits --threads 1"; bench/README.md has the options.
bench: $(BENCH_STAMP)
	$(BIN)/python -m pytest bench $(ARGS)

# On a machine with a GPU: the tests on it, then the benches. Each call takes 7.5 minutes at most and goes on where the
# last one stopped; bench/gpu.py has the options, as in make gpu ARGS="--minutes 30".
gpu: $(BENCH_STAMP)
	$(BIN)/python bench/gpu.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The type checker does not follow an editable install, so it is shown the package laid out as installed.
types: $(STAMP)
	rm -rf $(LAYOUT) && mkdir -p $(LAYOUT)
	ln -s $(CURDIR)/vecsweep/* $(LAYOUT)/ && ln -s $(CURDIR)/kernels $(LAYOUT)/kernels
	cd .venv/layout && ../bin/mypy --config-file ../../pyproject.toml --package vecsweep

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
