# make demo    the first overlays: set up, write the samples, run the main job on them
# make test    every check, as .ci/run does
PYTHON ?= python3
VENV ?= .venv
# Versions that the checks run with; `make setup CONSTRAINTS=` takes the newest instead.
CONSTRAINTS ?= .ci/constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "errseg needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(addprefix -c ,$(CONSTRAINTS)) -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/errseg samples demo/pictures
	$(BIN)/errseg run demo/pictures --classes demo/pictures/classes.txt -o demo/out --overwrite
	@echo "The overlays are in $(CURDIR)/demo/out/overlays"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
