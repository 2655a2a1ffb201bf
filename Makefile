# `make demo` purifies the example images; `make test` lints, type-checks and tests. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The demo replaces what an earlier demo wrote, and nothing else.
DEMO := demo-output

.PHONY: demo test clean

demo: .venv/installed
	@mkdir -p $(DEMO)
	@for file in examples/*.png examples/*.jpg; do \
	  name=$$(basename $${file%.*}); \
	  $(BIN)/comdefend purify $$file $(DEMO)/$$name.png --compare $(DEMO)/$$name-compare.png --overwrite --quiet || exit 1; \
	  echo "$$file -> $(DEMO)/$$name.png, side by side with input, code and difference in $(DEMO)/$$name-compare.png"; \
	done

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# OpenVINO crashed in a process in which all the other libraries had worked before: its tests have one of their own.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' tests/backends/test_openvino.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' --numprocesses auto --dist loadfile --ignore tests/backends/test_openvino.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) --editable .
	@touch $@

.venv/tested: .venv/installed
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv $(DEMO) dist build
