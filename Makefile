# `make demo` purifies the example images; `make test` lints, type-checks and tests; `make docs` builds the documentation into site/. All make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The demo replaces what an earlier demo wrote, and nothing else.
DEMO := demo-output
# PyTorch, oneDNN and MKL take each CPU's own instructions; these let a newer CPU work as one without AVX-512.
OLDER_CPU := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo test audit pictures docs clean

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' --numprocesses auto --dist loadfile
	@# That tiles equal the whole image bit by bit must hold with an older CPU's instructions too.
	OMP_NUM_THREADS=1 $(OLDER_CPU) $(BIN)/python -m pytest -m exactness --numprocesses auto tests/network tests/backends tests/inference tests/batch

# Known vulnerabilities of what is installed; where the database cannot be asked (it is at PyPI, a page a version), says so and goes on.
audit: .venv/tested
	@$(BIN)/python -c "import urllib.request as r; r.urlopen('https://pypi.org/pypi/pip/24.0/json', timeout=20)" 2>/dev/null \
	  && $(PIP) 'pip-audit>=2.7' 2>/dev/null \
	  || { echo "no audit: pip-audit or its database cannot be reached"; exit 0; }; \
	$(BIN)/pip-audit --skip-editable --progress-spinner off

# The pictures of README and docs, anew; the charts are those of docs/tools/make.py.
pictures: .venv/tested
	$(BIN)/python benchmarks/hero.py --out docs/pictures/hero.png
	$(BIN)/python benchmarks/gallery.py --out docs/pictures/gallery.png
	@mkdir -p $(DEMO)
	$(BIN)/comdefend purify examples/astronaut.png $(DEMO)/astronaut.png --compare docs/pictures/example.png --overwrite --quiet

docs: .venv/documented
	$(BIN)/python docs/tools/make.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) --editable .
	@touch $@

.venv/tested: .venv/installed
	$(PIP) --editable '.[test]'
	@touch $@

.venv/documented: .venv/installed
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv $(DEMO) dist build site
