"""`cspsched trace generate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cspsched.cli.console import counted, show, tell
from cspsched.cli.options import json_option, output_option


@click.command("generate")
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
