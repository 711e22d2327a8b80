# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
# tests are many and small: one thread each is faster, and steady on a busy machine
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv/.peers

.PHONY: demo test test-all bench bench-count bench-pruning docs readme lint ci clean

demo: $(INSTALLED)
	$(BIN)/chainfx demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --hypothesis-profile=long

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

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
