"""`cspsched trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import counted, show, tell
from cspsched.cli.options import (
    json_option,
    optional_trace_argument,
    output_option,
    selected_trace,
    trace_options,
)


@click.group("trace")
def trace_group() -> None:
    """List, describe and generate traces.

    \b
    cspsched trace list
    cspsched trace describe
    cspsched trace generate --requests 100 --output trace.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped


@trace_group.command("describe")
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
        show(f"{name:24} {_text(value)}")
    for warning in warnings:
        show(f"warning: {warning}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:,.6g}" for key, number in value.items())
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


@trace_group.command("list")
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
            f"{row['name']:12} {counted(row['num_requests'], 'request')} in {_text(row['span_s'])} s, "
            f"prompts of {_text(row['prompt_tokens']['mean'])} and outputs of "
            f"{_text(row['output_tokens']['mean'])} tokens on average"
        )


@trace_group.command("generate")
@click.option(
    "--profile",
    type=click.Choice(["chat", "tiny"]),
    default="chat",
    show_default=True,
    help="Lengths: of a chat service, or so short that the optimum can be found.",
)
@click.option(
    "--requests",
    "num_requests",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many requests.",
)
@click.option("--rate", "rate_per_s", type=float, default=5.0, show_default=True, help="Requests per second.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the generator."
)
@output_option("CSV file to write.", "--out", required=True)
@json_option
def generate_command(
    profile: str,
    num_requests: int,
    rate_per_s: float,
    seed: int,
    output: Path,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> None:
    """Make a synthetic trace; the same seed gives the same bytes.

    \b
    cspsched trace generate --profile chat --requests 500 --rate 8 --output trace.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import generate, write_trace

    profiles = {"chat": generate.CHAT, "tiny": generate.TINY}
    asked = {"num_requests": num_requests, "rate_per_s": rate_per_s, "seed": seed}
    made = generate.generate_trace(
        profiles[profile], num_requests=num_requests, rate_per_s=rate_per_s, seed=seed
    )
    write_trace(made.requests, output)
    if as_json:
        show(json.dumps({"schema": "cspsched/generated-trace/1", "file": str(output), **asked}, indent=1))
    tell(f"wrote {counted(num_requests, 'request')} to {output}")
