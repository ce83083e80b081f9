"""Options that several of the commands under `cspsched profile` share."""

from __future__ import annotations

import click

from cspsched.cli.options import Option

measured_model_option = click.option(
    "--model", required=True, help="LLM that was measured (see 'cspsched models')."
)
measuring_device_option = click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    help="Where to measure.  [default: cuda if there is a GPU]",
)
fitted_rank_option = click.option(
    "--tensor-parallel",
    cls=Option,
    aliases=("--tp",),
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Degree of tensor parallelism whose rows are fitted.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["split", "unified"]),
    default="split",
    show_default=True,
    help="One attention kernel for prefills and one for decodes, or one for both.",
)
repeats_option = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Samples of each measurement; a CPU takes fewer of long ones, and at least five.",
)
