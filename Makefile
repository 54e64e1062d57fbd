# The gates: `make check` before every commit, in under two minutes. PYTHON names another environment's interpreter.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: check lint imports types api

check: lint imports types api

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .

imports:
	$(BIN)lint-imports

types:
	$(BIN)mypy

api:
	$(PYTHON) -m pytest -q tests/test_api.py tests/test_imports.py
