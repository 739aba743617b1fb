# Each target does its own set-up in .venv; a second run finds it done and is quick.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LAYOUT := .venv/layout/vecsweep

.PHONY: demo test bench lint types clean

demo: $(STAMP)
	$(BIN)/python -m vecsweep demo

test: lint types
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python bench/bench_sweep.py

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

clean:
	rm -rf .venv build *.egg-info
