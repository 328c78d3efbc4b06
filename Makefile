# `make quickstart` and `make test` need Python 3.11 or later with pip, and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install quickstart test lint format unit browser clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

install: $(INSTALLED) ## make .venv with the pinned CPU environment

$(INSTALLED): pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints-cpu.txt -e '.[cpu,dev]'
	$(BIN)/ral-doctor --fix
	touch $@

quickstart: $(INSTALLED) ## perceive, sft and rl on this machine, then a report
	$(BIN)/ral-train experiment=quickstart

test: $(INSTALLED) browser lint ## lint, then every test that needs no GPU
	$(BIN)/python -m pytest -m 'not gpu'

unit: $(INSTALLED) ## the fast tests alone
	$(BIN)/python -m pytest tests/unit

lint: $(INSTALLED) ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser: # tests of the report open it in a real browser
	@command -v chromium >/dev/null || { \
		sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$sudo apt-get update && $$sudo apt-get install -y --no-install-recommends chromium; }

clean: ## remove what builds and tests leave behind; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
