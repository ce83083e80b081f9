"""The option that closes a loop, and what is said where a loop is left open."""

from __future__ import annotations

import click

concurrency_option = click.option(
    "--max-concurrency",
    "concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="N users at a time: in the order of the file a request is submitted when another ends, and its own "
    "arrival is not used. Of a session all turns are one user's.",
)
