# Every target makes .venv first, from pyproject.toml and constraints.txt, when it is missing or stale.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.PHONY: demo test long soak evidence lint types format clean

demo: $(STAMP)  ## the main job on scikit-learn's digits, in a fresh store
	@rm -rf $(DEMO)
	@$(BIN)/kdfm train digits --out $(DEMO) --store $(DEMO)/store

test: $(STAMP) lint types  ## lint, types and all tests but the longest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

long: $(STAMP)  ## the tests that take longest: several workers, killed drivers, runs of minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

soak: $(STAMP)  ## kill runs at random moments of all stages, and a cluster by ssh; over half an hour
	$(BIN)/python -m pytest tests/faults tests/cluster -m soak -s

evidence: $(STAMP)  ## KD-FixMatch against FixMatch of equal compute; hours, goes on where it stopped
	$(BIN)/python experiments/evidence.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what make made; runs and stores elsewhere stay
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache *.egg-info

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdfm_ray needs Python 3.11 or newer; give one with PYTHON=python3.11"; exit 1; }
	@echo "installing into $(VENV) (a few minutes, about 6 GB)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
