# The two commands of the README do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEBIAN := orthanc orthanc-python orthanc-dicomweb dcmtk chromium softhsm2 opensc

.PHONY: demo test check bench docs reference bundle clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install into .venv and run a three-hospital federation; leaves demo/report.html"
	@echo "make test   install the test tools and run every check and test"
	@echo "make check  ruff and mypy only"
	@echo "make docs   build the documentation as a site in build/docs"
	@echo "make bundle a file that installs fedpacs on a machine without network"
	@echo "make bench  run the benchmarks one after another"

$(BIN)/fedpacs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(BIN)/pytest: $(BIN)/fedpacs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(BIN)/fedpacs
	$(BIN)/fedpacs demo --out demo

check: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

debian:
	@sh scripts/debian-packages.sh $(DEBIAN)
	@sh scripts/promtool.sh $(BIN)

test: $(BIN)/pytest debian check
	FEDPACS_FUZZ_SECONDS=$${FEDPACS_FUZZ_SECONDS:-60} $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: $(BIN)/pytest debian
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for b in $$(grep -l -e "\"--json\"" benchmarks/*.py); do echo "== $$b"; $(BIN)/python $$b --json || exit 1; done

# docs/commands.md and docs/settings.md, from the code
reference: $(BIN)/fedpacs
	$(BIN)/python scripts/reference.py

docs: $(BIN)/pytest reference
	$(BIN)/mkdocs build --strict

bundle: $(BIN)/fedpacs
	sh scripts/bundle.sh

clean:
	rm -rf $(VENV) demo build *.egg-info
