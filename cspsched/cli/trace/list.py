"""`cspsched trace list`."""

from __future__ import annotations

import json

import click

from cspsched.cli.console import counted, show
from cspsched.cli.options import json_option
from cspsched.cli.trace.values import value_text


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:  # noqa: FBT001 - click passes flags so
    """The bundled traces, whose names every command takes in the place of a file.

    \b
    cspsched trace list
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import describe, read_trace
    from cspsched.trace.shipped import shipped_trace_path, shipped_traces

    rows = []
    for name in shipped_traces():
        data = describe(read_trace(shipped_trace_path(name))).to_json()
        kept = ("num_requests", "span_s", "rate_per_s", "prompt_tokens", "output_tokens")
        rows.append({"name": name, **{key: data[key] for key in kept}})
    if as_json:
        show(json.dumps({"schema": "cspsched/trace-list/1", "rows": rows}, indent=1))
        return
    for row in rows:
        show(
            f"{row['name']:12} {counted(row['num_requests'], 'request')} in {value_text(row['span_s'])} s, "
            f"prompts of {value_text(row['prompt_tokens']['mean'])} and outputs of "
            f"{value_text(row['output_tokens']['mean'])} tokens on average"
        )
