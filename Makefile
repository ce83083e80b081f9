# Two commands set everything up on a machine with Python 3.11 or newer and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

$(BIN)/cspsched: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(BIN)/cspsched
	$(BIN)/cspsched compare --heuristics vllm sarathi --objective latency --out demo-report/compare
	$(BIN)/cspsched solve traces/tiny-12.csv --limit 4 --scale-rate 100 --kv-tokens 64 --block-tokens 1 \
		--objective latency --time-limit 60s --out demo-report/solve
	@echo "Open demo-report/compare/report.html and demo-report/solve/batches.png"

lint: $(BIN)/cspsched
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

clean:
	rm -rf $(VENV) demo-report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
