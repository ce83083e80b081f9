"""`cspsched trace sample`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import counted, show, tell
from cspsched.cli.options import (
    Count,
    json_option,
    output_option,
    selected_trace,
    trace_argument,
    trace_options,
)


@click.command("sample")
@trace_argument
@click.option("--requests", "num_requests", type=Count(), help="How many requests.")
@click.option("--rate", "rate_per_s", type=float, help="Requests per second, instead of how many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draw.")
@output_option("CSV file to write.", "-o", required=True)
@json_option
@trace_options
def sample_command(
    trace: Path,
    num_requests: int | None,
    rate_per_s: float | None,
    seed: int,
    output: Path,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Fewer or more requests of TRACE, in the order of their arrival.

    Fewer are drawn without replacement. More are copies of the trace, each turned in time by a random offset.
    Unlike --scale-rate this keeps the clock: bursts and silences last as long as they did.

    \b
    cspsched trace sample trace.csv --rate 2 --output thinner.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import write_trace
    from cspsched.trace.sample import sample_trace

    sample = sample_trace(
        selected_trace(trace, options), num_requests=num_requests, rate_per_s=rate_per_s, seed=seed
    )
    write_trace(sample.trace.requests, output)
    if as_json:
        data = {
            "schema": "cspsched/sampled-trace/1",
            "file": str(output),
            "num_requests": len(sample.trace.requests),
            "seed": seed,
            "how": sample.how,
        }
        show(json.dumps(data, indent=1))
    tell(f"wrote {counted(len(sample.trace.requests), 'request')} to {output}: {sample.how}")
