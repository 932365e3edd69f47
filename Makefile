# Everything is set up on first use: `make demo` and `make test` work on a fresh clone with Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= digits
JOBS   ?= 2

.PHONY: demo test check docs clean

demo: $(VENV)/.ready    ## see a model forget, on embedded data
	$(BIN)/efface demo --data $(DATA) --out runs/demo-$(DATA) --force

test: $(VENV)/.ready    ## all tests, one thread a process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(VENV)/.ready   ## style, types, who may import whom
	$(BIN)/ruff format --check src tests benchmarks research docs
	$(BIN)/ruff check src tests benchmarks research docs
	$(BIN)/basedpyright
	$(BIN)/lint-imports

docs: $(VENV)/.ready    ## the generated pages, and the site in site/; a broken link fails
	$(BIN)/python -m docs.generate.pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
