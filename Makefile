# make quickstart  fresh machine: venv, install, the whole pipeline on a small real dataset
# make test        fresh machine: venv, install, the checks and the test suite
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.installed-for-development

.PHONY: quickstart test test-slow lint format install clean

install: $(STAMP)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[d3rlpy]"
	touch $@

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[dev,d3rlpy,onnx,smax,foraging,warehouse,magent,minari,vault]"
	touch $@ $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/python recipes/quickstart.py

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .quickstart .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
