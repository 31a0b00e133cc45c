# `make quickstart` and `make test` each do everything from a fresh clone; they need Python 3.11, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(shell sed -n 's/^packages = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-fast gpu reproduce lint types resolve dist docs clean

quickstart: $(STAMP)
	$(BIN)/flowfactory run plugins/shapes/examples/shapes-grpo.toml

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

# What one wants while working: no runs, no environments, no whole pipelines.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" tests/unit tests/contract $(PYTEST)

# Where there is a GPU: what docs/performance.md should say of it. What is measured already is not measured again.
gpu: $(STAMP)
	$(BIN)/python tests/gpu/suite.py --to docs/results/gpu; $(BIN)/python tests/gpu/suite.py --table --to docs/results/gpu

reproduce: $(STAMP)
	$(BIN)/python plugins/shapes/reproduce/reproduce.py --to docs/results

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

# Whether all extras go together with the pins.
resolve: $(STAMP)
	$(BIN)/python .ci/resolve.py

dist: $(STAMP)
	for package in $(PACKAGES); do $(BIN)/python -m build --wheel --outdir dist $$package || exit 1; done
	$(BIN)/twine check --strict dist/*

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Everything editable, in one resolution, with the pins of constraints.txt.
$(STAMP): constraints.txt requirements-dev.txt pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt \
		$(addprefix --editable ./,$(PACKAGES))
	touch $@

clean:
	rm -rf $(VENV) dist site runs .coverage .pytest_cache .mypy_cache .ruff_cache
