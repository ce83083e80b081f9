"""Results of load generators, one entry per request that they sent.

Sources: vllm-project/vllm v0.27.1, vllm/benchmarks/serve.py (`--save-result --save-detailed`: one object with
the lists input_lens, output_lens, start_times in s, errors; without `--save-detailed` they are removed);
sgl-project/sglang, python/sglang/bench_serving.py (`--output-file --output-details`: a line per run with
input_lens, output_lens, errors; most versions keep no start_times); ai-dynamo/aiperf v0.14.0,
docs/tutorials/working-with-profile-exports.md (`profile_export.jsonl`: metadata.request_start_ns, metrics
with value and unit, error); kubernetes-sigs/inference-perf v0.6.1 and before, reportgen/base.py and
apis/base.py (`per_request_lifecycle_metrics.json`: start_time in s, info, error).
"""

from __future__ import annotations

from dataclasses import replace

from cspsched.errors import TraceError
from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import Failure, Layout, TraceFormat
from cspsched.trace.table import ListColumn, Table

NO_START_TIMES = (
    "run 'vllm bench serve' with --save-result --save-detailed, in a version that keeps start_times"
)

VLLM = TraceFormat(
    name="vllm-bench",
    title="vllm bench serve --save-detailed",
    layout=Layout.LISTS,
    arrival_column="start_times",
    arrival_unit=TimeUnit.S,
    prompt_column="input_lens",
    output_column="output_lens",
    failure=Failure(error_column="errors"),
    derived_columns=("ttfts", "itls", "generated_texts"),
    marks=("completed",),
    hints=dict.fromkeys(("start_times", "input_lens", "output_lens"), NO_START_TIMES),
)


def _with_start_times(table: Table) -> Table:
    """The table with arrivals at 0 if the run sent all requests at once and kept no times."""
    if "start_times" in table.columns:
        return table
    rate, concurrency = table.facts.get("request_rate"), table.facts.get("max_concurrency")
    if str(rate) not in ("inf", "Infinity") or concurrency is not None:
        raise TraceError(
            f"{table.source}: start_times is missing, with request_rate {rate} and max_concurrency "
            f"{concurrency}, so arrivals are not known; expected start_times, or a run that sent all at once"
        )
    return replace(
        table,
        columns={**table.columns, "start_times": ListColumn([0] * table.num_rows)},
        notes=(*table.notes, "all requests arrive at 0: request_rate is inf and max_concurrency is not set"),
    )


SGLANG = replace(
    VLLM,
    name="sglang-bench",
    title="sglang.bench_serving --output-details",
    marks=("completed", "sharegpt_output_len"),
    hints=dict.fromkeys(
        ("input_lens", "output_lens"), "run 'sglang.bench_serving' with --output-file and --output-details"
    ),
    prepare=_with_start_times,
    source_columns=("input_lens", "output_lens"),
)

AIPERF = TraceFormat(
    name="aiperf",
    title="AIPerf, profile_export.jsonl",
    layout=Layout.LINES,
    id_column="metadata.x_request_id",
    arrival_column="metadata.request_start_ns",
    arrival_unit=TimeUnit.NS,
    prompt_column="metrics.input_sequence_length.value",
    output_column="metrics.output_sequence_length.value",
    failure=Failure(error_column="error"),
    derived_columns=("metadata.*", "metrics.*", "error.*"),
)

INFERENCE_PERF = TraceFormat(
    name="inference-perf",
    title="inference-perf, per-request report",
    layout=Layout.LIST,
    arrival_column="start_time",
    arrival_unit=TimeUnit.S,
    prompt_column="info.request_metrics.text.input_tokens",
    output_column="info.response_metrics.output_tokens",
    failure=Failure(error_column="error"),
    derived_columns=("end_time", "request", "response", "info.*", "error.*"),
)

INFERENCE_PERF_OLD = replace(
    INFERENCE_PERF,
    name="inference-perf-0.2",
    title="inference-perf before info.request_metrics",
    prompt_column="info.input_tokens",
    output_column="info.output_tokens",
)
