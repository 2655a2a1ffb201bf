# `make demo` purifies the example pictures; `make test` lints, type-checks and tests. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed
	@$(BIN)/comdefend purify-dir examples --out demo-output --overwrite --quiet
	@for name in $$(cd examples && ls *.png *.jpg 2>/dev/null); do \
	  $(BIN)/comdefend purify examples/$$name demo-output/$${name%.*}-purified.png --compare demo-output/$${name%.*}-compare.png --overwrite --quiet || exit 1; \
	done

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv demo-output dist build
