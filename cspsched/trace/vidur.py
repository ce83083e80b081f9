"""Vidur's processed traces: arrivals in seconds, or none; source microsoft/vidur, data/processed_traces."""

from __future__ import annotations

from cspsched.trace.cells import arrival_in_seconds
from cspsched.trace.format import TraceFormat

VIDUR = TraceFormat(
    name="vidur",
    arrival_column="arrived_at",
    prompt_column="num_prefill_tokens",
    output_column="num_decode_tokens",
    parse_arrival=arrival_in_seconds,
    may_lack_arrivals=True,
    derived_columns=("num_total_tokens", "pd_ratio"),
)
