"""The format of cspsched itself: `request_id,arrival_s,prompt_tokens,output_tokens` and optional columns."""

from __future__ import annotations

from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import TraceFormat
from cspsched.trace.optional import OPTIONAL_COLUMNS

NATIVE = TraceFormat(
    name="native",
    title="cspsched",
    id_column="request_id",
    arrival_column="arrival_s",
    arrival_unit=TimeUnit.S,
    prompt_column="prompt_tokens",
    output_column="output_tokens",
    optional_columns=OPTIONAL_COLUMNS,
    # A misspelt `priority` must not be ignored in silence.
    ignores_other_columns=False,
)
