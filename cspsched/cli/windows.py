"""`cspsched windows`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import show, step, tell, tell_rejections, tell_warnings
from cspsched.cli.executor_options import executor_option, executor_workers_option
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.options import (
    MOST_SEED,
    Duration,
    ManyValuesCommand,
    heuristic_option,
    instance_serving,
    json_option,
    objective_option,
    one_objective,
    optional_trace_argument,
    out_type,
    selected_trace,
    serving_options,
    trace_options,
)


@click.command("windows", cls=ManyValuesCommand)
@optional_trace_argument
@heuristic_option
@objective_option
@click.option(
    "--num", type=click.IntRange(min=1), default=50, show_default=True, help="Windows to be sampled."
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Most requests of a window; more are seldom solved to the end.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Most output tokens that each request generates in a window.",
)
@click.option(
    "--ahead",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Batches of the policy's run in which arrivals still belong to the window.",
)
@click.option(
    "--time-limit",
    type=Duration(),
    default="10s",
    show_default=True,
    help="For the solver, in each window; its work is counted, so that the study repeats.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=MOST_SEED),
    default=0,
    show_default=True,
    help="Of the windows, the solver and the bootstrap.",
)
@executor_option
@executor_workers_option
@click.option("--out", type=out_type, help="Folder for windows.json and windows.png.")
@json_option
@trace_options
@serving_options
def windows_command(
    trace: Path | None,
    policy: str,
    objective: str,
    num: int,
    size: int,
    tokens: int,
    ahead: int,
    time_limit: float,
    seed: int,
    executor: str,
    workers: int,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> int:
    """How far a policy is from the exact optimum in random small windows of TRACE.

    TRACE is a file or a bundled name; chat-2000 if none is given. A second opinion beside 'bracket', and
    a sample, not a bound: at random batches of the policy's run a few requests are taken with the state that
    they are in; the rest of the machine is a constant load. Each window is solved to the end.

    \b
    cspsched windows trace.csv --heuristics sarathi:chunk=512 --num 50 --out report
    cspsched windows trace.csv --executor processes --workers 8
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.exact.watch import Listener
    from cspsched.executors import Pool
    from cspsched.report import windows as report
    from cspsched.report.output import require_writable, write_files
    from cspsched.serving import make_instance
    from cspsched.studies.windows import WindowSample, WindowShape, study_windows
    from cspsched.unused import warnings_for

    if out is not None:
        require_writable(out)
    requests = selected_trace(trace, options)
    instance = make_instance(requests, instance_serving(options))
    warnings = warnings_for(requests, [policy])
    tell_warnings(warnings)
    study = study_windows(
        instance,
        policy,
        one_objective(objective, instance),
        WindowSample(shape=WindowShape(size=size, output_tokens=tokens, ahead=ahead), num=num, seed=seed),
        window_limit_s=time_limit,
        pool=Pool(executor=executor, workers=workers),
        listener=Listener(step=step),
    )
    tell_rejections(study.rejections)
    data = json.dumps(study.to_json() | {"warnings": warnings}, indent=1)
    show(data if as_json else f"{requests.name}: {report.text(study)}")
    if out is not None:
        files: dict[str, str | bytes] = {"windows.json": data + "\n"}
        if len(study.excesses):
            files["windows.png"] = report.picture(study)
        write_files(out, files)
        tell(f"wrote {' and '.join(files)} to {out}")
    return INTERRUPTED if study.stopped else 0
