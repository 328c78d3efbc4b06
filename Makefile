# `make quickstart` and `make test` need Python 3.11 or later with pip, on Debian or Ubuntu nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# A file's tests stay in one process: they share what they prepare.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
apt = { $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends $(1); }

.PHONY: help install quickstart test lint format unit browser clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

install: $(INSTALLED) ## make .venv with the pinned CPU environment

$(INSTALLED): pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints-cpu.txt -e '.[cpu,dev]'
	@# The one system library that vLLM for CPU links to. No grep -q: it would end ldconfig early, and pipefail with it.
	@/sbin/ldconfig -p | grep libnuma.so.1 >/dev/null || $(call apt,libnuma1)
	$(BIN)/ral-doctor --fix
	touch $@

quickstart: $(INSTALLED) ## perceive, sft and rl on this machine, then a report
	$(BIN)/ral-train experiment=quickstart

test: $(INSTALLED) browser lint ## lint, then every test that needs no GPU
	$(BIN)/python -m pytest $(IN_PARALLEL) tests/unit
	$(BIN)/python -m pytest tests/system

unit: $(INSTALLED) ## the fast tests alone
	$(BIN)/python -m pytest $(IN_PARALLEL) tests/unit

lint: $(INSTALLED) ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser: # tests of the report open it in a real browser
	@command -v chromium >/dev/null || $(call apt,chromium)

clean: ## remove what builds and tests leave behind; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
