# Two commands matter: `make demo` and `make test`. Each sets up what it needs and is quick the second time.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

# The first Python that is new enough; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo test test-long lint format bench soak lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(READY) ## Create .venv from the locked, hashed requirements

$(READY): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { \
	  echo "edgeguard needs Python 3.12 or newer, and python3 here is: $$(python3 --version 2>&1 || echo missing)"; \
	  echo "Mend it with one of:  pyenv install 3.13   |   uv python install 3.13   |   apt-get install python3.13-venv"; \
	  echo "then:  make $(MAKECMDGOALS) PYTHON=/path/to/python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) (once)..."
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock 2>$(VENV)/pip.log \
	  || { cat $(VENV)/pip.log; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . 2>$(VENV)/pip.log \
	  || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

demo: $(READY) ## A real proxy enforces a signed policy on real traffic, in under a minute
	@$(BIN)/edgeguard demo

test: $(READY) ## The test suite, and the system packages that it drives
	@tests/install-packages
	@$(BIN)/pytest -m "not long" -n 3 --dist loadfile

test-long: $(READY) ## The long runs as well
	@tests/install-packages chromium
	@$(BIN)/pytest -n 2 --dist loadfile

lint: $(READY) ## Style, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## Rewrite the code in the project's style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## Measure against the peers; writes build/bench.json
	@$(BIN)/python -m tests.bench

soak: $(READY) ## Mixed load for ten minutes, SECONDS=... for another time; fails on leaks and lost decisions
	@$(BIN)/python -m tests.bench.soak --seconds $(or $(SECONDS),600)

lock: ## Renew the lock files (needs uv on the PATH)
	@set -e; compile="uv pip compile pyproject.toml --quiet --universal --python-version 3.12 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command 'make lock'"; \
	eval "$$compile --extra server --extra fleet -o requirements.lock"; \
	eval "$$compile --extra server --extra fleet --group build --group dev -o requirements-dev.lock"; \
	eval "uv pip compile --quiet --group build --universal --python-version 3.12 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' -c requirements-dev.lock -o requirements-build.lock"

clean: ## Remove what the other targets made
	@rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis edgeguard-demo
