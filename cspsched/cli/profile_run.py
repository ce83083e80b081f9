"""`cspsched profile run`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cspsched.cli.console import Tally, counted, show, tell
from cspsched.cli.options import MOST_SEED, Duration, ManyValuesCommand, Option, json_option, out_type
from cspsched.cli.profile_options import measuring_device_option, repeats_option

if TYPE_CHECKING:
    from cspsched.profiler.runner import RunOutcome

RUN_SCHEMA = "cspsched/profile-run/1"
GRIDS = {"cuda": "gpu", "cpu": "cpu"}


@click.command("run", cls=ManyValuesCommand)
@click.option("--model", default="llama-3.1-8b", show_default=True, help="LLM (see 'cspsched models').")
@click.option(
    "--tensor-parallel",
    cls=Option,
    aliases=("--tp",),
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    metavar="N...",
    help="Degrees of tensor parallelism whose shards are measured, on one device.  [default: 1]",
)
@measuring_device_option
@click.option("--grid", help="Grid of points: gpu, cpu, smoke, or a TOML file.  [default: by the device]")
@click.option(
    "--out",
    cls=Option,
    aliases=("--output",),
    type=out_type,
    required=True,
    help="Folder of the profile.",
)
@click.option(
    "--time-budget", type=Duration(), help="Begin no further point after this time; coarse points come first."
)
@click.option("--resume", is_flag=True, help="Add to the folder what it lacks.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of the points drawn, of their order, and of the data.",
)
@repeats_option
@json_option
def run_command(
    model: str,
    tensor_parallel: tuple[int, ...],
    device: str | None,
    grid: str | None,
    out: Path,
    time_budget: float | None,
    resume: bool,  # noqa: FBT001 - click passes flags so
    seed: int,
    repeats: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Measure the operators of a model on this machine.

    Rows go to disk as they come, so that a run that is cut short can be used and resumed. Needs torch
    (pip install 'cspsched[gpu]'). Then: 'cspsched profile fit' and 'cspsched profile validate'.

    \b
    cspsched profile run --model llama-3.1-8b --tensor-parallel 1 2 4 --device cuda --out h200
    cspsched profile run --model tiny-llama --device cpu --out profile
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.models import load_model
    from cspsched.profiler.backends import default_device
    from cspsched.profiler.grids import load_grid
    from cspsched.profiler.runner import RunSettings, run_profile

    device = device or default_device()
    settings = RunSettings(
        model=load_model(model),
        tensor_parallel=tuple(dict.fromkeys(tensor_parallel)),
        device=device,
        grid=load_grid(grid or GRIDS[device]),
        output=out,
        seed=seed,
        repeats=repeats,
        time_budget_s=time_budget,
        resume=resume,
    )
    with Tally(f"profiling {model}") as count:
        outcome = run_profile(
            settings,
            lambda at: count.update(
                at.done, at.total, f"{at.point.operator} tp={at.point.tensor_parallel} {at.t_us:.1f} us"
            ),
        )
    _tell_outcome(outcome)
    if as_json:
        show(json.dumps({"schema": RUN_SCHEMA, "output": str(out), **asdict(outcome)}, indent=1))
    else:
        show(
            f"{out}: {counted(outcome.num_measured, 'row')} measured in {outcome.wall_s:.1f} s "
            f"({outcome.num_noisy} noisy), {outcome.num_before} there before, {outcome.num_left} left"
        )


def _tell_outcome(outcome: RunOutcome) -> None:
    for note in outcome.notes:
        tell(note)
    for point, message in outcome.failed.items():
        tell(f"not measured: {point}: {message}")
    if outcome.num_left:
        tell(f"{counted(outcome.num_left, 'point')} left: the time was up; go on with --resume")
