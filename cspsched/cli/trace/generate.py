"""`cspsched trace generate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cspsched.cli.console import counted, show, tell
from cspsched.cli.options import Count, Duration, json_option, output_option

DEFAULT_REQUESTS = 1000


@click.command("generate")
@click.option(
    "--profile",
    default="chat",
    show_default=True,
    metavar="NAME",
    help="What the traffic looks like: a shipped profile or a JSON file of 'cspsched trace fit'.",
)
@click.option(
    "--requests", "num_requests", type=Count(), help=f"How many requests.  [default: {DEFAULT_REQUESTS}]"
)
@click.option("--duration", "duration_s", type=Duration(), help="How long, such as 2h, instead of how many.")
@click.option("--rate", "rate_per_s", type=float, help="Mean requests per second.  [default: the profile's]")
@click.option("--lengths", metavar="NAME", help="Profile whose lengths are taken instead of its own.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the generator."
)
@output_option("CSV file to write.", "--out", required=True)
@json_option
def generate_command(
    profile: str,
    num_requests: int | None,
    duration_s: float | None,
    rate_per_s: float | None,
    lengths: str | None,
    seed: int,
    output: Path,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> None:
    """Make a synthetic trace; the same seed gives the same bytes.

    The shipped profiles and where their numbers come from: 'cspsched trace list'.

    \b
    cspsched trace generate --profile chat --requests 500 --rate 8 --output trace.csv
    cspsched trace generate --profile azure-2023-conv --duration 1h --output hour.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import write_trace
    from cspsched.trace.generators import generate_trace, load_profile

    if num_requests is None and duration_s is None:
        num_requests = DEFAULT_REQUESTS
    wanted = load_profile(profile)
    if lengths is not None:
        wanted = wanted.with_lengths_of(load_profile(lengths))
    made = generate_trace(
        wanted, num_requests=num_requests, duration_s=duration_s, rate_per_s=rate_per_s, seed=seed
    )
    write_trace(made.requests, output)
    if as_json:
        data = {
            "schema": "cspsched/generated-trace/1",
            "file": str(output),
            "profile": wanted.name,
            "num_requests": len(made.requests),
            "rate_per_s": wanted.rate_per_s if rate_per_s is None else rate_per_s,
            "seed": seed,
        }
        show(json.dumps(data, indent=1))
    tell(f"wrote {counted(len(made.requests), 'request')} to {output}")
