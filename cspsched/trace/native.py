"""The format of cspsched itself: `request_id,arrival_s,prompt_tokens,output_tokens` and optional columns."""

from __future__ import annotations

from cspsched.trace.cells import arrival_in_seconds
from cspsched.trace.format import TraceFormat
from cspsched.trace.optional import OPTIONAL_COLUMNS

NATIVE = TraceFormat(
    name="native",
    id_column="request_id",
    arrival_column="arrival_s",
    prompt_column="prompt_tokens",
    output_column="output_tokens",
    optional_columns=OPTIONAL_COLUMNS,
    parse_arrival=arrival_in_seconds,
    # A misspelt `priority` must not be ignored in silence.
    ignores_other_columns=False,
)
