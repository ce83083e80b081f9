"""`cspsched improve`, and what `cspsched bracket` shares with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cspsched.cli.console import LiveLine, counted, show, tell, tell_rejections, tell_warnings
from cspsched.cli.executor_options import executor_option, executor_workers_option
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.options import (
    MOST_SEED,
    Duration,
    ManyValuesCommand,
    heuristics_option,
    instance_serving,
    json_option,
    objective_option,
    one_objective,
    optional_trace_argument,
    output_option,
    selected_trace,
    serving_options,
    trace_options,
)
from cspsched.errors import UsageError

if TYPE_CHECKING:
    from cspsched.improve import ImproveLimits, Improvement

Command = TypeVar("Command", bound=Callable[..., Any])

SEARCH_OPTIONS = (
    heuristics_option,
    click.option(
        "--time-limit",
        type=Duration(),
        help="Longest wait, policies and bounds included.  [default: 60s, or none with --steps]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=0),
        help="Most steps of the search; with steps alone the result repeats exactly.",
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Without a clock: 200 steps if --steps says no other number, fewer above 400,000 output tokens.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0, max=MOST_SEED),
        default=0,
        show_default=True,
        help="Seed of the search; a resumed one goes on with its own.",
    ),
    output_option("File for the schedule ('check' and 'compare --schedule' read it).", "--save"),
    click.option(
        "--resume",
        type=click.Path(path_type=Path, dir_okay=False),
        help="State of the search: read if the file exists, and kept up to date.",
    ),
)
"""Of `improve` and `bracket`; collected by `search_limits`, and by `save_result`."""


def search_options(command: Command) -> Command:
    """Everything about the search."""
    for option in reversed(SEARCH_OPTIONS):
        command = option(command)
    return command


@click.command("improve", cls=ManyValuesCommand)
@optional_trace_argument
@objective_option
@search_options
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Searches, each with its own seed from --seed on; the best counts.",
)
@executor_option
@executor_workers_option
@json_option
@trace_options
@serving_options
def improve_command(
    trace: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> int:
    """Find a schedule of TRACE that is better than every policy's.

    TRACE is a file or a bundled name; chat-2000 if none is given. For traces that are too large for
    'solve'. The search orders, paces and delays admissions, knowing the future; the referee judges what it
    finds. Ctrl-C and the limits keep the best schedule.

    \b
    cspsched improve trace.csv --time-limit 5min --save better.json
    cspsched improve trace.csv --objective makespan --resume state.json
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    found, warnings = run_search(trace, options)
    data = found.to_json() | {"warnings": warnings}
    show(json.dumps(data, indent=1) if as_json else summary(found))
    return exit_code(found)


def run_search(trace: Path | None, options: dict[str, Any]) -> tuple[Improvement, list[str]]:
    """Improve on the policies by what the options say, with progress on stderr; and what does nothing."""
    from cspsched.exact.watch import Listener
    from cspsched.executors import Pool
    from cspsched.improve import improve
    from cspsched.serving import make_instance
    from cspsched.unused import warnings_for

    text, heuristics = options.pop("objective"), options.pop("heuristics")
    limits, save, resume = search_limits(options)
    limits = replace(limits, seeds=options.pop("seeds"))
    pool = Pool(executor=options.pop("executor"), workers=options.pop("workers"))
    requests = selected_trace(trace, options)
    warnings = warnings_for(requests, heuristics)
    tell_warnings(warnings)
    instance = make_instance(requests, instance_serving(options))
    objective = one_objective(text, instance)
    with LiveLine(objective, len(instance.requests)) as live:
        found = improve(
            instance,
            objective,
            heuristics=heuristics,
            limits=limits,
            state_file=resume,
            pool=pool,
            listener=Listener(step=live.tell, progress=live),
        )
    tell_rejections(found.rejections)
    save_result(found, save)
    return found, warnings


def search_limits(options: dict[str, Any]) -> tuple[ImproveLimits, Path | None, Path | None]:
    """Limits, file for the schedule and file of the state, taken out of the options."""
    from cspsched.improve import ImproveLimits
    from cspsched.report.output import require_writable

    time_limit, steps = options.pop("time_limit"), options.pop("steps")
    save, resume, seed = options.pop("output"), options.pop("resume"), options.pop("seed")
    deterministic = options.pop("deterministic")
    for file in filter(None, (save, resume)):
        require_writable(file.parent)
    if deterministic and time_limit is not None:
        raise UsageError(
            "--deterministic goes without a clock; limit the search by --steps, not --time-limit"
        )
    if time_limit is None and steps is None and not deterministic:
        time_limit = 60.0
    return ImproveLimits(time_limit_s=time_limit, max_steps=steps, seed=seed), save, resume


def save_result(found: Improvement, save: Path | None) -> None:
    """Write the schedule if a file was named for it."""
    if save is None:
        return
    if found.schedule is None:
        tell(f"{save} is not written: the schedule is too long; --resume keeps what makes it")
        return
    found.to_result().write(save)
    tell(f"wrote {save}")


def exit_code(found: Improvement) -> int:
    """130 if Ctrl-C ended the search, else 0."""
    from cspsched.problem.result import StopReason

    return INTERRUPTED if found.stop_reason is StopReason.INTERRUPTED else 0


def summary(found: Improvement) -> str:
    """Best policy, improved value, bound and gap, one line each, with who found it."""
    from cspsched.units import percent

    count = len(found.instance.requests)
    what, policy = found.objective.label, found.best_policy
    values = [
        found.objective.show(policy.value_ns, count),
        found.objective.show(found.value_ns, count),
        found.objective.show(found.bound.value_ns, count, floor),
    ]
    width = max(map(len, values))
    lines = [
        f"{what} of {counted(count, 'request')}; {counted(found.steps, 'step')}; {found.stop_reason}",
        f"best policy    {values[0]:>{width}}  {policy.policy}",
        f"improved       {values[1]:>{width}}  {found.found_by}",
        f"bound          {values[2]:>{width}}  {found.bound.name}",
        f"gain           {percent(found.gain):>{width}}",
        f"certified gap  {percent(found.gap):>{width}}",
    ]
    return "\n".join(lines)
