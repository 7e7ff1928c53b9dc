# Two commands need nothing before them: `make demo` and `make test`. Both prepare the checkout first (see setup/setup.sh).
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
# Two test processes: a file is run by one of them, so its fixtures (a broker, an export) are made once.
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
# A folder of recordings for `make demo`; without it, the shipped pack.
SCENARIOS ?=

.PHONY: help setup demo test test-slow check format bench docs ci clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  settings: SCENARIOS (folder for demo), DEMO_ARGS, PYTEST_ARGS, WORKERS; FEDFLEET_TORCH, FEDFLEET_MOSQUITTO, FEDFLEET_POSTGRES, FEDFLEET_PYTHON (setup/setup.sh);"
	@echo "            FEDFLEET_DATA (folder with recorded data for the tests that read it)"

setup: ## .venv with pinned packages, a broker, the type checker's view; done again only when something changed
	@setup/setup.sh

demo: setup ## a whole fleet on this machine: broker, server, vehicles in four regions; results in out/demo
	$(BIN)/fedfleet demo $(if $(SCENARIOS),--scenarios "$(SCENARIOS)") $(DEMO_ARGS)

test: setup ## all tests but the slow ones
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow" --junitxml=out/test/fast.xml $(PYTEST_ARGS)

test-slow: setup ## the slow tests: kills, long runs, figures
	$(BIN)/pytest -n 0 -m slow --junitxml=out/test/slow.xml $(PYTEST_ARGS)

check: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## run every benchmark; figures as JSON in out/bench
	@mkdir -p out/bench
	@set -e; for script in $$(grep -l __main__ benchmarks/*.py); do name=$$(basename $$script .py); echo "bench: $$name"; \
	  $(BIN)/python $$script --json > out/bench/$$name.json; done

docs: setup ## make the generated pages again (command reference, state-machine picture)
	@set -e; for script in docs/make_*.py; do echo "docs: $$script"; $(BIN)/python $$script; done

ci: ## what CI does, in a clean clone of the committed state
	@set -e; clone=$$(mktemp -d); trap 'rm -rf "$$clone"' EXIT; git clone -q . "$$clone/fedfleet"; \
	  if [ -d ../shared/data ]; then export FEDFLEET_DATA=$${FEDFLEET_DATA:-$$(cd ../shared/data && pwd)}; fi; \
	  "$$clone/fedfleet/.ci/run"

clean: ## remove everything that was made here, .venv too
	rm -rf .venv .view out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
