# Two commands set everything up on a machine with Python 3.11 or newer and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A GPU with room for 64 tokens of KV cache: where schedulers differ, and the optimum is proven in seconds.
TIGHT := --cost infermax-70b --kv-tokens 64 --block-tokens 1 --objective latency

# A small model on one core of this machine: measured, fitted, judged by whole steps, and scheduled with. Needs torch.
MEASURED := demo-report/profile-cpu
SMALL := --model tiny-llama --cost $(MEASURED)/validation/cost.json --max-batch-tokens 512 --max-batch-requests 32

# Tests of every floor that take a minute together.
QUICK := studies/test_compare test_docs test_executors costs/test_fit simulate/test_kernel_records \
	simulate/test_kernel_run costs/test_kv_capacity test_layers referee/test_metrics costs/test_models \
	policies/test_labels policies/test_registry policies/test_rules policies/test_user_file \
	simulate/test_prefix_cache policies/test_real_run recording/test_import recording/test_log \
	recording/test_replay referee/test_rules problem/test_request_instance referee/test_history test_serving \
	simulate/test_engine simulate/test_step test_status referee/test_timing trace/generators/test_generate trace/test_read \
	trace/test_statistics test_unused policies/test_vllm_v1 cli/test_debug cli/test_errors cli/test_help \
	cli/test_values

.PHONY: demo gate test quick lint profile-cpu clean

$(BIN)/cspsched: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(BIN)/cspsched
	$(BIN)/cspsched compare --heuristics vllm sarathi --objective latency --out demo-report/compare
	$(BIN)/cspsched compare traces/burst-6.csv --heuristics vllm sarathi $(TIGHT) --out demo-report/compare-tight
	$(BIN)/cspsched solve traces/burst-6.csv $(TIGHT) --out demo-report/solve
	@echo "Open demo-report/compare/report.html, demo-report/compare-tight/report.html and demo-report/solve/batches.png"

gate: $(BIN)/cspsched
	$(BIN)/cspsched gate benchmarks/gate.toml --out demo-report/gate

profile-cpu: $(BIN)/cspsched
	rm -rf $(MEASURED)
	$(BIN)/cspsched profile run --model tiny-llama --device cpu --time-budget 40s --output $(MEASURED)
	$(BIN)/cspsched profile fit $(MEASURED) --model tiny-llama --output $(MEASURED)/cost.toml
	$(BIN)/cspsched profile validate --cost $(MEASURED)/cost.toml --device cpu --time-budget 40s --gate 12 --out $(MEASURED)/validation
	$(BIN)/cspsched solve traces/burst-6.csv $(SMALL) --kv-tokens 64 --block-tokens 1 --time-limit 10s --out $(MEASURED)/solve
	$(BIN)/cspsched compare traces/chat-2000.csv --limit 50 --heuristics vllm sarathi $(SMALL) --kv-tokens 16384 --out $(MEASURED)/compare

lint: $(BIN)/cspsched
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: lint
	$(BIN)/pytest -q -n 2 --dist loadfile $(QUICK:%=tests/%.py)

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) demo-report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
