# make quickstart   set up, train a small tokenizer on bundled photographs, validate it
# make example      the same tokenizer, its tokens, a generator trained on them, pictures: in runs/example
# make test         set up, lint, check types, run all tests
# make coverage     run all tests, and say which share of the lines they run
# make dist         sdist and wheel in dist/
# make lowest       run the tests with the oldest versions that pyproject.toml allows
# VENV=path reuses an environment; PYTHON=python3.12 picks the interpreter for a new one.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# name this checkout, so that an environment shared by two of them is installed again for each
CHECKOUT := $(VENV)/.gsq-lightning$(subst /,-,$(CURDIR))
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart example test coverage dist lint format lowest clean

quickstart: $(CHECKOUT)-run
	$(BIN)/gsq fit --config quickstart.yaml

GENERATOR := $(BIN)/python examples/generator/main.py
GENERATED := runs/generator/version_0/checkpoints/last.ckpt

example: runs/quickstart/version_0/.finished
	$(BIN)/gsq predict --ckpt_path runs/quickstart/version_0 --data.image_size 64 --data.crops_per_epoch 3000 \
		--tokens.split all --tokens.folder runs/example/tokens
	$(GENERATOR) fit --config examples/generator/photographs.yaml $(if $(wildcard $(GENERATED)),--ckpt_path $(GENERATED))
	$(GENERATOR) predict --config examples/generator/photographs.yaml --ckpt_path $(GENERATED)
	@echo "samples: runs/example/samples.png"

runs/quickstart/version_0/.finished: | $(CHECKOUT)-run
	$(BIN)/gsq fit --config quickstart.yaml

# one thread for each test process: two would compete for the same core
test: $(CHECKOUT)-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

lint: $(CHECKOUT)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(CHECKOUT)-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal --cov --cov-report term:skip-covered

dist: $(CHECKOUT)-dev
	$(BIN)/python -m pip install --quiet build
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m zipfile -l dist/*.whl | grep -q gsq_lightning/configs/f8.yaml

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
