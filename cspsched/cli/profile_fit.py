"""`cspsched profile fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cspsched.cli.console import Tally, counted, show
from cspsched.cli.profile_options import engine_option, fitted_rank_option
from cspsched.errors import UsageError

if TYPE_CHECKING:
    from cspsched.costs.estimator import FittedProfile
    from cspsched.costs.fit import Measurements
    from cspsched.serving import Serving

COMMAND = "cspsched profile fit"
LOG_LEAVES_OUT = "what the log does not tell apart, such as waits that the engine counts as part of a batch"
PROFILE_LEAVES_OUT = "CPU work between batches and whatever the profile did not measure"


@click.command("fit")
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "--model", help="LLM that was measured (see 'cspsched models'); of a run that names it not needed."
)
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
@click.option(
    "--from-run",
    is_flag=True,
    help="PROFILE is a measured run as 'cspsched validate' reads it: fits the part [frontend].",
)
@click.option("--cost", help="With --from-run: cost model that is simulated.  [default: by model and device]")
@click.option("--name", help="Name of the cost model.  [default: the output file's]")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Cost file, .toml."
)
def fit_command(
    profile: Path,
    model: str | None,
    device: str | None,
    tensor_parallel: int,
    pipeline_stages: int,
    engine: Literal["split", "unified"],
    from_log: bool,  # noqa: FBT001 - click passes flags so
    from_run: bool,  # noqa: FBT001 - click passes flags so
    cost: str | None,
    name: str | None,
    output: Path,
) -> None:  # fmt: skip
    """Fit a cost model to PROFILE: rows of operators, or with --from-log the log of an engine.

    With --from-run PROFILE is a measured run: its deployment is simulated, and the mean of what clients
    waited for their first token beyond that becomes the frontend of the cost model. It is printed, with what
    each stage says, and added to nothing unless a command is asked to (--frontend).

    Prints how well each kind of work was met: in sample, held out, and beyond the range. The cost file goes
    wherever a cost model is named: 'cspsched compare --cost FILE'.

    \b
    cspsched profile fit rows.parquet --model llama-3.1-8b --output cost.toml
    cspsched profile fit vllm.log --from-log --model llama-3.1-8b --output cost.toml
    cspsched profile fit run/requests.jsonl --from-run --output cost.toml
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.devices import load_device
    from cspsched.costs.estimator import fit_profile
    from cspsched.costs.estimator.steps import fit_steps
    from cspsched.costs.estimator.write import write_cost
    from cspsched.costs.models import load_model
    from cspsched.costs.rows import preferred_backends, read_rows
    from cspsched.serving import Serving

    if from_run:
        if from_log:
            raise UsageError("both --from-log and --from-run are given; give the one that PROFILE is")
        _fit_frontend(profile, Serving(model=model, device=device, cost=cost), output)
        return
    if model is None or cost is not None:
        raise UsageError(
            "give --model, the LLM that was measured" if model is None else "--cost needs --from-run"
        )
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


def _fit_frontend(run: Path, serving: Serving, output: Path) -> None:
    """Fit the part, tell what it is from, and write it with the cost model if there is one only."""
    from cspsched.costs.estimator.write import write_frontend
    from cspsched.studies.validation import Settings, read_runs
    from cspsched.studies.validation.frontend_fit import fit_frontend

    if output.suffix != ".toml":
        raise UsageError(f"{output}: a cost file is TOML, expected a name that ends in .toml")
    with Tally("simulating") as count:
        fitted = fit_frontend(
            read_runs([run]), Settings(serving=serving), f"fitted to {run.name}", count.update
        )
    for row, left_s in fitted.left_out_s:
        show(f"{row:34} clients waited {left_s * 1000:+.2f} ms longer for their first token")
    if fitted.has_two_clocks:
        show("the client's clock was set by its quickest request, so what that one waited is not in it")
    show(
        f"{fitted.num_requests:,} requests of "
        f"{counted(len(fitted.left_out_s), 'run or stage', 'runs or stages')}"
    )
    show(fitted.frontend.to_toml().rstrip())
    write_frontend(fitted.frontend, fitted.cost, COMMAND, output)
    show(f"{output}: {'the frontend alone' if fitted.cost is None else f'{fitted.cost} with it'}")


def _show(fitted: FittedProfile, output: Path) -> None:
    for work, errors in fitted.fit_error.items():
        show(f"{work:18} {errors}")
    for feature, most in fitted.domain.largest.items():
        show(f"measured up to     {most:,} {feature.replace('_', ' ')}")
    show(f"{output}: cost model {fitted.cost.name!r}")
