"""`cspsched bracket`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.compare import error_band
from cspsched.cli.console import LiveLine, show, tell, tell_rejections, tell_warnings
from cspsched.cli.executor_options import executor_option, executor_workers_option
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.improve import exit_code, save_result, search_limits, search_options
from cspsched.cli.options import (
    OBJECTIVE_HELP,
    ManyValuesCommand,
    ObjectiveText,
    instance_serving,
    json_option,
    one_objective,
    optional_trace_argument,
    out_type,
    selected_trace,
    serving_options,
    trace_options,
)
from cspsched.errors import UsageError

if TYPE_CHECKING:
    from cspsched.improve import Bracket, BracketTask

GIVEN = "given"
"""The cost model as it is, beside the ends of its error band."""
LIST_SCHEMA = "cspsched/bracket-list/1"


@click.command("bracket", cls=ManyValuesCommand)
@optional_trace_argument
@click.option(
    "--objective",
    "objectives",
    type=ObjectiveText(),
    multiple=True,
    default=("latency",),
    metavar="WHAT...",
    help=f"{OBJECTIVE_HELP} Of several each has its bracket.  [default: latency]",
)
@search_options
@click.option(
    "--uncertainty",
    is_flag=True,
    help="Also the bracket at both ends of the cost model's error band (all batches fast, all slow).",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the picture of the bracket, such as bracket.png or bracket.svg.",
)
@click.option("--out", type=out_type, help="Folder for bracket.html, bracket.json and pictures.")
@click.option(
    "--curve-points",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="Moments of the curve in --out: bound and policies over time; each costs a bound.",
)
@executor_option
@executor_workers_option
@json_option
@trace_options
@serving_options
def bracket_command(
    trace: Path | None,
    objectives: tuple[str, ...],
    uncertainty: bool,  # noqa: FBT001 - click passes flags so
    picture: Path | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    executor: str,
    workers: int,
    **options: Any,
) -> int:
    """Interval that holds the optimum of TRACE, with a proof at both ends.

    TRACE is a file or a bundled name; chat-2000 if none is given. The lower end is a certified bound, the
    upper end the best schedule that 'improve' finds. Each policy's excess over the optimum is given for both.

    \b
    cspsched bracket trace.csv --objective latency --out report
    cspsched bracket trace.csv --objective latency mean-tpot misses --ttft-slo 2s --executor processes
    cspsched bracket trace.csv --objective makespan --heuristics vllm sarathi:chunk=512 --time-limit 5min
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.report import bracket as report
    from cspsched.report.bracket_page import write_brackets
    from cspsched.report.output import require_writable

    for folder in filter(None, (out, picture and picture.parent)):
        require_writable(folder)
    tasks, files, warnings = _tasks(
        trace, objectives, options, curve=out is not None, uncertainty=uncertainty
    )
    _refuse_one_file_for_many(len(tasks), picture, *files)
    brackets = _found(tasks, files, executor, workers)
    if not brackets:
        return INTERRUPTED
    data = _data(brackets, tasks) | {"warnings": warnings}
    if as_json:
        show(json.dumps(data, indent=1))
    else:
        texts = [
            ("" if end == GIVEN else f"If all batches are {end}:\n") + report.text(bracket)
            for (end, _), bracket in zip(tasks, brackets, strict=False)
        ]
        show("\n\n".join(texts))
    if picture is not None:
        report.write_picture(brackets[0], picture)
        tell(f"wrote {picture}")
    if out is not None:
        ends = ["" if end == GIVEN else end for end, _ in tasks]
        written = write_brackets(list(zip(brackets, ends, strict=False)), data, out)
        tell(f"wrote {written[0]} and {len(written) - 1} more files to {out}")
    is_short = len(brackets) < len(tasks)
    return INTERRUPTED if is_short else max(exit_code(bracket.improvement) for bracket in brackets)


def _tasks(
    trace: Path | None,
    objectives: tuple[str, ...],
    options: dict[str, Any],
    *,
    curve: bool,
    uncertainty: bool,
) -> tuple[list[tuple[str, BracketTask]], tuple[Path | None, Path | None], list[str]]:
    """What is to be bracketed, with the ends of the error band; files --output and --resume; warnings."""
    from cspsched.improve import BracketTask
    from cspsched.serving import make_instance
    from cspsched.unused import warnings_for

    limits, save, resume = search_limits(options)
    heuristics, points = options.pop("heuristics"), options.pop("curve_points")
    requests, serving = selected_trace(trace, options), instance_serving(options)
    instance = make_instance(requests, serving)
    tell_rejections(instance.split_rejected()[1])
    warnings = warnings_for(requests, heuristics)
    tell_warnings(warnings)
    instances = {GIVEN: instance}
    if uncertainty:
        fast, slow = error_band(serving.cost or instance.cost.name)
        instances |= {"fast": replace(instance, cost=fast), "slow": replace(instance, cost=slow)}
    tasks = [
        (
            end,
            BracketTask(
                instance=one,
                objective=objective,
                heuristics=heuristics,
                limits=limits,
                curve_points=points if curve and end == GIVEN else 0,
            ),
        )
        for objective in objectives
        for end, one in instances.items()
    ]
    return tasks, (save, resume), warnings


def _refuse_one_file_for_many(count: int, *files: Path | None) -> None:
    if count > 1 and any(files):
        raise UsageError(
            "--picture, --output and --resume are for one bracket; give one --objective and no "
            "--uncertainty, or take --out"
        )


def _found(
    tasks: list[tuple[str, BracketTask]], files: tuple[Path | None, Path | None], executor: str, workers: int
) -> list[Bracket]:
    """The brackets in order; those that were there before Ctrl-C if there are several."""
    from cspsched.exact.watch import Listener
    from cspsched.executors import run_all
    from cspsched.improve import find_bracket, find_light_bracket

    save, resume = files
    if len(tasks) == 1:
        _, task = tasks[0]
        objective = one_objective(task.objective, task.instance)
        with LiveLine(objective, len(task.instance.requests)) as live:
            bracket = find_bracket(
                task, {"state_file": resume, "listener": Listener(step=live.tell, progress=live)}
            )
        save_result(bracket.improvement, save)
        return [bracket]
    found: list[Bracket] = []
    try:
        for bracket in run_all(find_light_bracket, [task for _, task in tasks], executor, workers=workers):
            end, task = tasks[len(found)]
            tell(f"bracketed {task.objective}{'' if end == GIVEN else f', all batches {end}'}")
            found.append(bracket)
    except KeyboardInterrupt:
        tell("interrupted; what was bracketed before follows")
    return found


def _data(brackets: list[Bracket], tasks: list[tuple[str, BracketTask]]) -> dict[str, Any]:
    """One bracket's JSON, or a list of them with the end of the error band."""
    if len(tasks) == 1:
        return brackets[0].to_json()
    return {
        "schema": LIST_SCHEMA,
        "brackets": [
            {"batch_times": end, **bracket.to_json()}
            for (end, _), bracket in zip(tasks, brackets, strict=False)
        ],
    }
