# Each target does its own set-up in .venv; a second run finds it done and is quick.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
DEMO_STAMP := .venv/.installed-demo
STAMP := .venv/.installed
SOAK := $(BIN)/python -m pytest -o faulthandler_timeout=14400
BENCH_STAMP := .venv/.installed-bench
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
TORCH_INDEX ?=
LAYOUT := .venv/layout/vecsweep

.PHONY: docs demo test-latest data test test-trackers soak bench gpu lint types clean

demo: $(DEMO_STAMP)
	$(BIN)/python -m vecsweep demo $(ARGS)

# The data sets of the built-in tasks, into the user's cache folder; make data ARGS=mnist fetches one.
data: $(DEMO_STAMP)
	$(BIN)/python -m vecsweep data $(ARGS)

# The tests, then every arm of every bench once; the way of processes needs two threads. Those of PyTorch sleep while they
# wait for each other, because tests side by side share the cores.
test: export OMP_WAIT_POLICY = PASSIVE
test: lint types
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest bench --benchmark-disable --ignore bench/bench_ways.py --threads 1 \
	--numprocesses auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest bench/bench_ways.py --benchmark-disable

# What the tests of MLflow and Trackio need is much, and is not installed otherwise.
test-trackers: $(STAMP)
	$(PIP) --editable '.[test,mlflow,trackio,wandb]'
	$(BIN)/python -m pytest tests/test_trackers.py

# What takes long: many more of what make test fuzzes and interrupts. docs/reliability.md has the figures.
soak: $(STAMP)
	VECSWEEP_FUZZED_CALLS=10000 VECSWEEP_FUZZED_FILES=2000 $(SOAK) tests/test_fuzz.py
	VECSWEEP_FUZZED_SNAPSHOTS=1000 $(SOAK) tests/test_hostile_checkpoints.py
	VECSWEEP_SOAK_PRESSES=450 $(SOAK) tests/test_interrupts.py
	VECSWEEP_SOAK_PRESSES=200 $(SOAK) tests/test_commands_interrupted.py -rP
	VECSWEEP_KILLS=200 $(SOAK) tests/test_kills.py
	VECSWEEP_SOAK_SWEEPS=500 $(SOAK) tests/test_leaks.py -rP
	$(PIP) ckpt-chaos
	rm -rf build/chaos
	$(BIN)/python -m ckpt_chaos run --work build/chaos --max-points 1000 --modes before,torn,unsynced,term \
	--result-file '{out}/result.txt' -- $(BIN)/python bench/soak/chaos.py '{out}'

# The site of the documentation, into site/; links are checked, and nothing is fetched to look at it.
docs: $(DEMO_STAMP)
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	! grep -rE '(src|rel="stylesheet" href)="https?://' site --include=*.html
	@echo "Open site/index.html; for the search, $(BIN)/python -m http.server -d site"

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

# What the demo needs and nothing else. Where there is no GPU, PyTorch's build for the CPU, a tenth of the other's size:
# from where pip looks anyway, if it is there, else from the index that is named, as in make demo TORCH_INDEX=URL with
# the URL that PyTorch's "Get started" page gives for the CPU. Where neither can be had, the next line installs
# whatever there is.
$(DEMO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch, scikit-learn and vecsweep into .venv: a minute or two ..."
	@nvidia-smi >/dev/null 2>&1 \
	|| $(PIP) '$(TORCH)+cpu' 2>/dev/null \
	|| { test -n '$(TORCH_INDEX)' && $(PIP) --index-url '$(TORCH_INDEX)' '$(TORCH)'; } \
	|| echo "PyTorch's build for the CPU is not to be had; installing the one with CUDA."
	$(PIP) --editable '.[demo]'
	touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "Installing what the tests need ..."
	$(PIP) --editable '.[test]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(PIP) --editable '.[test,bench]'
	touch $@

# The newest of everything that `pip install .` brings, in an environment of its own; PYTHON=python3.14 for another.
test-latest: pyproject.toml
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --upgrade --editable '.[test]'
	.venv-latest/bin/python -m pytest $(ARGS)

clean:
	rm -rf .venv .venv-latest build *.egg-info
