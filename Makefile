# make quickstart   set up, train a small tokenizer on bundled photographs, validate it
# make test         set up, lint, check types, run all tests
# make lowest       run the tests with the oldest versions that pyproject.toml allows
# VENV=path reuses an environment; PYTHON=python3.12 picks the interpreter for a new one.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# name this checkout, so that an environment shared by two of them is installed again for each
CHECKOUT := $(VENV)/.gsq-lightning$(subst /,-,$(CURDIR))
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test lint format lowest clean

quickstart: $(CHECKOUT)-run
	$(BIN)/gsq fit --config quickstart.yaml

# one thread for each test process: two would compete for the same core
test: $(CHECKOUT)-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

lint: $(CHECKOUT)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(CHECKOUT)-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lowest: $(CHECKOUT)-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --clear .venv-lowest
	VIRTUAL_ENV=.venv-lowest $(BIN)/uv pip install --resolution lowest-direct --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m "not slow" -n auto --dist worksteal

$(BIN)/python:
	@echo "Setting up $(VENV): torch with CUDA, Lightning and what they need, 6 GB. It takes some minutes, once."
	$(PYTHON) -m venv $(VENV)

$(CHECKOUT)-run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[offline]"
	rm -f $(VENV)/.gsq-lightning-*
	touch $@

$(CHECKOUT)-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --quiet --editable ".[dev]"
	rm -f $(VENV)/.gsq-lightning-*
	touch $@ $(CHECKOUT)-run

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .venv-lowest
