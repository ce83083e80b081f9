"""`cspsched profile fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cspsched.cli.console import show
from cspsched.cli.profile_options import engine_option, fitted_rank_option, measured_model_option

if TYPE_CHECKING:
    from cspsched.costs.estimator import FittedProfile
    from cspsched.costs.fit import Measurements

COMMAND = "cspsched profile fit"
LOG_LEAVES_OUT = "what the log does not tell apart, such as waits that the engine counts as part of a batch"
PROFILE_LEAVES_OUT = "CPU work between batches and whatever the profile did not measure"


@click.command("fit")
@click.argument("profile", type=click.Path(path_type=Path))
@measured_model_option
@click.option("--device", help="GPU that was measured, if 'cspsched devices' knows it.")
@fitted_rank_option
@click.option(
    "--pipeline-stages",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Stages that share the layers; the time is that of one stage.",
)
@engine_option
@click.option(
    "--from-log",
    is_flag=True,
    help="PROFILE is a log of a running engine: vLLM's iteration log, or one of our recorder.",
)
@click.option("--name", help="Name of the cost model.  [default: the output file's]")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Cost file, .toml."
)
def fit_command(
    profile: Path,
    model: str,
    device: str | None,
    tensor_parallel: int,
    pipeline_stages: int,
    engine: Literal["split", "unified"],
    from_log: bool,  # noqa: FBT001 - click passes flags so
    name: str | None,
    output: Path,
) -> None:  # fmt: skip
    """Fit a cost model to PROFILE: rows of operators, or with --from-log the log of an engine.

    Prints how well each kind of work was met: in sample, held out, and beyond the range. The cost file goes
    wherever a cost model is named: 'cspsched compare --cost FILE'.

    \b
    cspsched profile fit rows.parquet --model llama-3.1-8b --output cost.toml
    cspsched profile fit vllm.log --from-log --model llama-3.1-8b --output cost.toml
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.estimator import fit_profile
    from cspsched.costs.estimator.steps import fit_steps
    from cspsched.costs.estimator.write import write_cost
    from cspsched.costs.models import load_device, load_model
    from cspsched.costs.rows import preferred_backends, read_rows

    facts, name = load_model(model), name or output.stem
    described: dict[str, str | int] = {
        "title": f"{facts.title}, fitted to {profile.name}", "model": model,
        "source": f"{COMMAND} {profile.name}",
        "leaves_out": LOG_LEAVES_OUT if from_log else PROFILE_LEAVES_OUT, "tensor_parallel": tensor_parallel,
    }  # fmt: skip
    if device is not None:
        described["device"] = load_device(device).name
    if from_log:
        fitted = fit_steps(_timed_batches(profile), name)
    else:
        fitted = fit_profile(
            read_rows(profile), facts, tensor_parallel, name=name, engine=engine,
            pipeline_stages=pipeline_stages, backends=preferred_backends(profile),
        )  # fmt: skip
    write_cost(fitted, described, COMMAND, output)
    _show(fitted, output)


def _timed_batches(path: Path) -> Measurements:
    """Batches of a log: JSON lines are a recorder's, anything else is vLLM's own."""
    from cspsched.costs.step_log import MARK, read_iteration_log
    from cspsched.problem.json_io import read_text
    from cspsched.recording.log import read_recording
    from cspsched.recording.step_times import step_times

    is_recording = path.suffix in (".gz", ".jsonl") or MARK not in read_text(path)
    return step_times(read_recording(path)) if is_recording else read_iteration_log(path)


def _show(fitted: FittedProfile, output: Path) -> None:
    for work, errors in fitted.fit_error.items():
        show(f"{work:18} {errors}")
    for feature, most in fitted.domain.largest.items():
        show(f"measured up to     {most:,} {feature.replace('_', ' ')}")
    show(f"{output}: cost model {fitted.cost.name!r}")
