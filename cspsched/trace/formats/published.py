"""Published traces and those of simulators: Azure, BurstGPT, Vidur, splitwise-sim, ServeGen, LLMServingSim.

Sources: Azure/AzurePublicDataset (AzureLLMInferenceTrace_*.csv of 2023, 2024 and, with images, 2025; naive
times are UTC, 2023 with seven digits of fraction, 2024 with six and `+00:00`); HPMLL/BurstGPT releases v1.1
and v2.0 (`Response tokens` is 0 where a request failed; BurstGPT_3.csv has `Session ID` and `Elapsed time`,
too); microsoft/vidur, data/processed_traces; Mutinifni/splitwise-sim, traces; alibaba/ServeGen f891d11,
client windows; casys-kaist/LLMServingSim, `requests.jsonl` of bench/ and the JSON lines of its simulator.
"""

from __future__ import annotations

from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import Failure, Layout, TraceFormat

AZURE = TraceFormat(
    name="azure",
    title="Azure LLM 2023, 2024 and multimodal 2025",
    arrival_column="TIMESTAMP",
    arrival_unit=TimeUnit.UTC,
    prompt_column="ContextTokens",
    output_column="GeneratedTokens",
    counted_columns={"NumImages": "images"},
)

BURSTGPT = TraceFormat(
    name="burstgpt",
    title="BurstGPT v1 to v3",
    arrival_column="Timestamp",
    arrival_unit=TimeUnit.S,
    prompt_column="Request tokens",
    output_column="Response tokens",
    failure=Failure(),
    derived_columns=("Total tokens", "Elapsed time"),
)

VIDUR = TraceFormat(
    name="vidur",
    title="Vidur, processed traces",
    arrival_column="arrived_at",
    arrival_unit=TimeUnit.S,
    prompt_column="num_prefill_tokens",
    output_column="num_decode_tokens",
    may_lack_arrivals=True,
    derived_columns=("num_total_tokens", "pd_ratio"),
)

SPLITWISE = TraceFormat(
    name="splitwise",
    title="splitwise-sim",
    id_column="request_id",
    arrival_column="arrival_timestamp",
    arrival_unit=TimeUnit.S,
    prompt_column="prompt_size",
    output_column="token_size",
    # 2 is an LLM request there, and a trace has one application.
    fixed_columns={"request_type": 2, "application_id": 0, "batch_size": 1},
)

LLMSERVINGSIM = TraceFormat(
    name="llmservingsim",
    title="LLMServingSim, input",
    layout=Layout.LINES,
    arrival_column="arrival_time_ns",
    arrival_unit=TimeUnit.NS,
    prompt_column="input_toks",
    output_column="output_toks",
    derived_columns=("input_tok_ids", "output_tok_ids"),
    hints={
        "input_toks": "a session of an agent has no lengths of its own: write its sub-requests as requests"
    },
)

LLMSERVINGSIM_RUN = TraceFormat(
    name="llmservingsim-run",
    title="LLMServingSim bench, requests.jsonl",
    layout=Layout.LINES,
    id_column="request_id",
    arrival_column="arrival_time",
    arrival_unit=TimeUnit.S,
    prompt_column="input_toks",
    output_column="output_toks",
    derived_columns=("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"),
)

SERVEGEN = TraceFormat(
    name="servegen",
    title="ServeGen, client windows",
    layout=Layout.PARQUET,
    arrival_column="window_start_s",
    arrival_unit=TimeUnit.S,
    prompt_column="rate_rps",
    output_column="iat_cv",
    marks=("pool", "client"),
    refusal="has rates of clients in windows of time and no requests; "
    "draw requests by 'cspsched trace generate' and read what it writes",
)
