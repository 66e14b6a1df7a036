# make quickstart  fresh machine: venv, install, the whole pipeline on a small real dataset
# make test        fresh machine: venv, install, the checks and the test suite
# make docs        the documentation site, in site/
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.installed-for-development

.PHONY: quickstart test test-slow docs lint format install clean

install: $(STAMP)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[d3rlpy]"
	touch $@

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[dev,docs,d3rlpy,onnx,smax,foraging,warehouse,magent,minari,vault]"
	touch $@ $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/python recipes/quickstart.py

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html; with its search: $(PYTHON) -m http.server --directory site"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .quickstart .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
