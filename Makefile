# Two commands set everything up on a machine with Python 3.11 or newer and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A GPU with room for 64 tokens of KV cache: where schedulers differ, and the optimum is proven in seconds.
TIGHT := --cost infermax-70b --kv-tokens 64 --block-tokens 1 --objective latency

.PHONY: demo test lint clean

$(BIN)/cspsched: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(BIN)/cspsched
	$(BIN)/cspsched compare --heuristics vllm sarathi --objective latency --out demo-report/compare
	$(BIN)/cspsched compare traces/burst-6.csv --heuristics vllm sarathi $(TIGHT) --out demo-report/compare-tight
	$(BIN)/cspsched solve traces/burst-6.csv $(TIGHT) --out demo-report/solve
	@echo "Open demo-report/compare/report.html, demo-report/compare-tight/report.html and demo-report/solve/batches.png"

lint: $(BIN)/cspsched
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

clean:
	rm -rf $(VENV) demo-report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
