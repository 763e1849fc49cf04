# The commands of the project. Each makes .venv first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null || echo $(PYTHON) -m uv)

export SLIDEMIL_SHARED ?= ../shared

.PHONY: env demo test lint bench stress pin clean

env: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	@$(UV) --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.14' $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: env
	$(BIN)/slidemil demo --out demo-job

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: env lint
	$(BIN)/pytest

bench: env
	$(BIN)/python benchmarks/_run_all.py

stress: env
	$(BIN)/python benchmarks/kill_resume.py

# Pins are made anew by hand; no index address goes into them.
pin:
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		--all-extras --group dev pyproject.toml -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		pyproject.toml -c requirements/dev.txt -o requirements/run.txt

clean:
	rm -rf $(VENV) build dist demo-job
