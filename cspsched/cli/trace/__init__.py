"""`cspsched trace`: one file a command."""

from __future__ import annotations

import click

from cspsched.cli.group import LazyGroup

TRACE_COMMANDS = {
    "list": (
        "cspsched.cli.trace.list:list_command",
        "The bundled traces, whose names every command takes in the place of a file, profiles, and formats.",
    ),
    "convert": (
        "cspsched.cli.trace.convert:convert_command",
        "Write TRACE to OUTPUT in another format, and say what that format cannot hold.",
    ),
    "describe": (
        "cspsched.cli.trace.describe:describe_command",
        "Statistics of TRACE: how many requests, how fast, how long, how bursty.",
    ),
    "generate": (
        "cspsched.cli.trace.generate:generate_command",
        "Make a synthetic trace; the same seed gives the same bytes.",
    ),
    "fit": (
        "cspsched.cli.trace.fit:fit_command",
        "Fit a profile to TRACE, for 'cspsched trace generate --profile FILE'.",
    ),
    "fetch": (
        "cspsched.cli.trace.fetch:fetch_command",
        "Download the public trace NAME, checked by its SHA-256; without NAME, list them.",
    ),
    "sample": (
        "cspsched.cli.trace.sample:sample_command",
        "Fewer or more requests of TRACE, in the order of their arrival.",
    ),
}
"""Where each command is, and the first sentence of its help."""


@click.group("trace", cls=LazyGroup, table=TRACE_COMMANDS)
def trace_group() -> None:
    """List, describe, convert, fit, generate, sample and fetch traces.

    \b
    cspsched trace list
    cspsched trace describe
    cspsched trace convert trace.csv trace.parquet
    cspsched trace generate --requests 100 --output trace.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
