"""Options of commands whose parts can run apart from each other."""

from __future__ import annotations

import click

executor_option = click.option(
    "--executor",
    type=click.Choice(["serial", "processes", "ray"]),
    default="serial",
    show_default=True,
    help="Where independent parts run: here, in processes, or on Ray (RAY_ADDRESS, else started here).",
)
executor_workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Parts that processes or Ray run at the same time.",
)
