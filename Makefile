# Each target does its own set-up in .venv; a second run finds it done and is quick.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
LAYOUT := .venv/layout/vecsweep

.PHONY: demo data test soak bench gpu lint types clean

demo: $(STAMP)
	$(BIN)/python -m vecsweep demo

# The data sets of the built-in tasks, into the user's cache folder; make data ARGS=mnist fetches one.
data: $(STAMP)
	$(BIN)/python -m vecsweep data $(ARGS)

# The tests, then every arm of every bench once.
test: lint types
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest bench --benchmark-disable

# What takes long: many more of what make test fuzzes and interrupts. docs/reliability.md has the figures.
soak: $(STAMP)
	VECSWEEP_FUZZED_CALLS=10000 VECSWEEP_FUZZED_FILES=2000 $(BIN)/python -m pytest tests/test_fuzz.py
	VECSWEEP_SOAK_PRESSES=450 $(BIN)/python -m pytest tests/test_interrupts.py

# For example make bench ARGS="-k digits --threads 1"; bench/README.md has the options.
bench: $(BENCH_STAMP)
	$(BIN)/python -m pytest bench $(ARGS)

# On a machine with a GPU: the tests that need one, then the benches, each with its JSON under bench/results.
gpu: $(BENCH_STAMP)
	$(BIN)/python -m pytest tests/test_capture.py tests/test_contract.py tests/test_equivalence.py
	$(BIN)/python -m pytest bench $(ARGS)

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
