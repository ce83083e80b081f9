"""`cspsched trace describe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import show
from cspsched.cli.options import json_option, optional_trace_argument, selected_trace, trace_options
from cspsched.cli.trace.values import value_text


@click.command("describe")
@optional_trace_argument
@json_option
@trace_options
def describe_command(
    trace: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Statistics of TRACE: how many requests, how fast, how long, how bursty.

    TRACE is a CSV file or a bundled name; chat-2000 if none is given.

    \b
    cspsched trace describe trace.csv --window 0:60
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import describe

    data = describe(selected_trace(trace, options)).to_json()
    if as_json:
        show(json.dumps(data, indent=1))
        return
    warnings = data.pop("warnings")
    del data["schema"]
    for name, value in data.items():
        show(f"{name:24} {value_text(value)}")
    for warning in warnings:
        show(f"warning: {warning}")
