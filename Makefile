# make demo   two fits on packaged data, in a fresh virtual environment
# make test   every test, the slow ones too
# make lint   style, types and architecture
# make hunt   10 000 random designs judged by the oracles of tests/ (hours); one part of forty: make hunt SHARD=3/40
# make notebooks   run notebooks/ again, in place (installs Jupyter's kernel and statsmodels)
# make bench   lme_jax beside other engines, the small set (under 10 minutes on 2 cores); bench-full: everything
#               (installs the PyPI engines; R with lme4, nlme, glmmTMB, jsonlite and Julia are used if they are there)
# Needs python3 >= 3.11 with venv and pip; another interpreter: make PYTHON=python3.12 …

PYTHON ?= python3
VENV ?= .venv
N ?= 10000
SHARD ?= 0/1
BIN := $(VENV)/bin
CONSTRAINTS := requirements/dev.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help demo test hunt lint format notebooks bench bench-full clean

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/python -m lme_jax.demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

hunt: $(VENV)/.installed-dev
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.hunt --n $(N) --shard $(SHARD) --strict

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.installed-notebooks
	$(BIN)/python notebooks/execute.py

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run small

bench-full: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run full

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist

# The stamps make a second run quick; they are redone when the requirements change.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lme_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1)." \
	       "Name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-notebooks: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable '.[notebooks]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.installed
