# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
# tests are many and small: one thread each is faster, and steady on a busy machine
export OMP_NUM_THREADS ?= 1
# what is compiled is kept: without, each worker and each fresh process of a test compiles all of chainfx again
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv/.peers
# the versions that pyproject.toml declares as the oldest: test-oldest runs the tests on them, in a venv of their own
OLDEST := .venv-oldest
FLOOR := $(shell sed -n 's/^    "\(torch\|torchvision\)>=\([0-9.]*\)",$$/\1==\2.*/p' pyproject.toml)

.PHONY: demo test test-all test-oldest mutate bench bench-count bench-pruning docs readme lint ci clean

demo: $(INSTALLED)
	$(BIN)/chainfx demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal --hypothesis-profile=long

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow"

mutate: $(INSTALLED)
	$(BIN)/python -m tools.mutate --jobs 2

bench: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks --benchmark-only -o python_files='bench_*.py'

bench-count: $(PEERS)
	$(BIN)/python benchmarks/bench_count.py

bench-pruning: $(PEERS)
	$(BIN)/python benchmarks/bench_pruning_speed.py

docs: $(INSTALLED)
	$(BIN)/python tools/update_docs.py

readme: $(INSTALLED)
	$(BIN)/python tools/update_readme.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ci: lint test

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[peers]'
	touch $@

$(OLDEST)/.installed: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check $(FLOOR) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv $(OLDEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
