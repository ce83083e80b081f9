"""`cspsched trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.options import json_option, optional_trace_argument, selected_trace, trace_options


@click.group("trace")
def trace_group() -> None:
    """Describe and generate traces."""


@trace_group.command("describe")
@optional_trace_argument
@json_option
@trace_options
def describe_command(
    trace: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Statistics of TRACE: how many requests, how fast, how long, how bursty."""
    from cspsched.trace import describe

    data = describe(selected_trace(trace, options)).to_json()
    if as_json:
        click.echo(json.dumps(data, indent=1))
        return
    for name, value in data.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:,.6g}" for key, number in value.items())
        click.echo(f"{name:24} {value:,.6g}" if isinstance(value, float) else f"{name:24} {value}")


@trace_group.command("generate")
@click.option("--profile", type=click.Choice(["chat", "tiny"]), default="chat", show_default=True)
@click.option("--requests", "num_requests", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--rate", "rate_per_s", type=float, default=5.0, show_default=True, help="Requests per second.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="CSV file.")
def generate_command(profile: str, num_requests: int, rate_per_s: float, seed: int, out: Path) -> None:
    """Make a synthetic trace; the same seed gives the same bytes."""
    from cspsched.trace import generate, write_trace

    profiles = {"chat": generate.CHAT, "tiny": generate.TINY}
    made = generate.generate_trace(
        profiles[profile], num_requests=num_requests, rate_per_s=rate_per_s, seed=seed
    )
    write_trace(made.requests, out)
