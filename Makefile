# make quickstart   set up, train a small tokenizer on bundled photographs, validate it
# make test         set up, lint, check types, run all tests
# VENV=path reuses an environment; PYTHON=python3.12 picks the interpreter for a new one.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# names this checkout, so that an environment shared by two of them is installed anew for each
STAMP := $(VENV)/.gsq-lightning$(subst /,-,$(CURDIR))

.PHONY: quickstart test lint format clean

quickstart: $(STAMP)
	$(BIN)/gsq fit --config quickstart.yaml

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	rm -f $(VENV)/.gsq-lightning-*
	touch $(STAMP)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
