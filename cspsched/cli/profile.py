"""`cspsched profile`: measure operators of an LLM, and judge cost models by whole steps."""

from __future__ import annotations

import click

from cspsched.cli.group import LazyGroup

PROFILE_COMMANDS = {
    "run": ("cspsched.cli.profile_run:run_command", "Measure the operators of a model on this machine."),
    "import": (
        "cspsched.cli.profile_import:import_command",
        "Turn operator TABLES of another project into rows of a profile.",
    ),
    "fit": (
        "cspsched.cli.profile_fit:fit_command",
        "Fit a cost model to PROFILE: rows of operators, or with --from-log the log of an engine.",
    ),
    "show": (
        "cspsched.cli.profile_show:show_command",
        "Draw what PROFILE measured, what a fit makes of it, and what is left over: one PNG a kind of work.",
    ),
    "validate": (
        "cspsched.cli.profile_validate:validate_command",
        "Judge a cost model by whole steps of a decoder that are measured here.",
    ),
}
"""Where each command is, and the first sentence of its help."""


@click.group("profile", cls=LazyGroup, table=PROFILE_COMMANDS)
def profile_group() -> None:
    """Measure operators on a GPU or CPU, and make cost models of them.

    \b
    cspsched profile run --model tiny-llama --device cpu --output profile
    cspsched profile validate --cost cost.json --model tiny-llama --device cpu
    """  # noqa: D301 - click's marker for text that is not to be wrapped
