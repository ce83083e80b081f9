"""`cspsched solve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cspsched.cli.console import LiveLine, show, tell, tell_rejections, tell_warnings
from cspsched.cli.options import (
    OBJECTIVE_HELP,
    Duration,
    ManyValuesCommand,
    ObjectiveText,
    heuristics_option,
    instance_serving,
    json_option,
    out_type,
    seed_option,
    selected_trace,
    serving_options,
    trace_argument,
    trace_options,
    workers_option,
)
from cspsched.cli.solve_report import report_ladder, report_solution

if TYPE_CHECKING:
    from cspsched.exact.export import ExportedModel
    from cspsched.exact.watch import SearchLimits
    from cspsched.problem.instance import Instance
    from cspsched.problem.lifting import Restriction
    from cspsched.problem.objectives import AnyObjective
    from cspsched.studies.solving import Candidate


class Restrictions(click.ParamType[tuple["Restriction", ...]]):
    """Names of restrictions, separated by commas."""

    name = "restrictions"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Restriction, ...]:
        """The restrictions that a text names, each once."""
        from cspsched.problem.lifting import Restriction

        names = dict.fromkeys(name.strip() for name in str(value).split(","))
        unknown = [name for name in names if name not in set(Restriction)]
        if unknown:
            self.fail(f"{unknown[0]!r} is none of {', '.join(Restriction)}", param, ctx)
        return tuple(map(Restriction, names))


@click.command("solve", cls=ManyValuesCommand)
@trace_argument
@click.option(
    "--objective",
    type=ObjectiveText(),
    default="latency",
    show_default=True,
    metavar="WHAT",
    help=f"{OBJECTIVE_HELP} 'misses,latency' is one after the other.",
)
@click.option("--time-limit", type=Duration(), default="60s", show_default=True, help="Longest search.")
@click.option(
    "--out",
    type=out_type,
    default=Path("cspsched-solve"),
    show_default=True,
    help="Folder for schedule.json and the two pictures.",
)
@heuristics_option
@click.option(
    "--chunking/--no-chunking",
    default=True,
    show_default=True,
    help="May a prompt be processed in several batches?",
)
@click.option(
    "--hybrid/--no-hybrid", default=True, show_default=True, help="May prefill and decode share a batch?"
)
@click.option(
    "--holding/--no-holding", default=True, show_default=True, help="May a resident request sit out a batch?"
)
@click.option(
    "--reservation/--no-reservation",
    default=False,
    show_default=True,
    help="Does a request occupy its peak memory from its admission on?",
)
@click.option("--drop-rejected", is_flag=True, hidden=True, expose_value=False, help="It is always so.")
@click.option(
    "--ladder",
    is_flag=True,
    help="Solve with ever fewer restrictions: reservation, no preemption, recompute, without C, without M.",
)
@click.option(
    "--relax",
    type=Restrictions(),
    metavar="WHAT,...",
    help="Solve again without these, to see what they cost: chunking, memory, budget, requests, hybrid, "
    "holding, preemption, reservation.",
)
@click.option(
    "--warm-start",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A schedule to start from ('solve', 'simulate --save', 'import-schedule'), judged by the referee.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the batch-indexed CP-SAT model: .pb (binary), .txt or .pbtxt (text).",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="Same bytes every time: one worker, and --time-limit counts the solver's work instead of seconds.",
)
@json_option
@workers_option
@seed_option
@trace_options
@serving_options
def solve_command(
    trace: Path,
    objective: str,
    time_limit: float,
    out: Path,
    heuristics: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click passes flags so
    ladder: bool,  # noqa: FBT001
    relax: tuple[Restriction, ...] | None,
    warm_start: Path | None,
    export: Path | None,
    deterministic: bool,  # noqa: FBT001
    workers: int,
    seed: int,
    **options: Any,
) -> int:
    """Best schedule of TRACE with a certified bound.

    TRACE is a file or a bundled name, such as tiny-12. The schedule is at least
    as good as that of every policy under --heuristics.

    Requests that can never fit are rejected: told, counted and left out, the same as by all commands.
    Ctrl-C and the time limit keep the best schedule found. Switches restrict the class of schedules that is
    searched; the verdict names it. --ladder and --relax solve several classes; the time limit is for all.

    \b
    cspsched solve trace.csv
    cspsched solve trace.csv --limit 6 --objective latency --time-limit 5min
    cspsched solve trace.csv --limit 4 --objective misses,mean-tpot
    cspsched solve trace.csv --limit 4 --objective "latency+2*max-itl" --preemption swap
    cspsched solve trace.csv --kv-tokens 64 --block-tokens 1 --preemption none
    cspsched solve trace.csv --kv-tokens 64 --block-tokens 1 --ladder
    cspsched solve trace.csv --reservation --relax reservation,memory
    cspsched solve trace.csv --warm-start cspsched-solve/schedule.json --time-limit 10min
    cspsched solve trace.csv --deterministic --time-limit 20s --export model.pb
    """  # fmt: skip  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.problem.linear_form import read_objectives
    from cspsched.report.output import require_writable
    from cspsched.serving import make_instance
    from cspsched.studies.solving import solve
    from cspsched.unused import warnings_for

    _refuse_contradictions(ladder=ladder, relax=relax)
    switches = {
        "chunked_prefill": options.pop("chunking"),
        "hybrid_batches": options.pop("hybrid"),
        "holding": options.pop("holding"),
        "reservation": options.pop("reservation"),
    }
    require_writable(out)
    limits = _limits(time_limit, workers, seed, deterministic=deterministic)
    requests = selected_trace(trace, options)
    if ladder:
        # The widest of its classes: it has host memory, and a price of moving there.
        options["preemption"] = "either"
    given = make_instance(requests, instance_serving(options, **switches))
    servable = _servable(given, as_json=as_json)
    warnings = warnings_for(requests, heuristics)
    tell_warnings(warnings)
    first, *others = stages = read_objectives(objective, servable)
    if others and (ladder or relax or export):
        raise click.UsageError(
            f"--objective {objective} has {len(stages)} stages; --ladder, --relax and --export take one"
        )
    candidates = _warm_candidates(warm_start, servable)
    exported = _export(export, servable, first, heuristics, candidates)
    asked: dict[str, Any] = {
        "limits": limits,
        "heuristics": heuristics,
        "candidates": candidates,
    }
    with LiveLine(first, len(servable.requests)) as live:
        if ladder or relax:
            from cspsched.exact.watch import Listener
            from cspsched.studies.ladder import climb

            listener = Listener(step=live.tell, progress=live)
            climbed = climb(given, first, relax=relax or (), listener=listener, **asked)
        else:
            solution = solve(given, objective, on_stage=live.turn_to, on_progress=live, **asked)
    if ladder or relax:
        return report_ladder(climbed, exported, out, warnings, as_json=as_json)
    return report_solution(solution, exported, out, warnings, as_json=as_json)


def _refuse_contradictions(*, ladder: bool, relax: tuple[Restriction, ...] | None) -> None:
    """The ladder sets preemption and reservation itself, and lifts what it lifts."""
    context = click.get_current_context()
    if ladder and relax:
        raise click.UsageError("--ladder and --relax exclude each other: the ladder lifts in its own order")
    for name in ("preemption", "reservation"):
        if ladder and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--ladder goes through every kind of preemption; leave --{name} out")


def _limits(time_limit: float, workers: int, seed: int, *, deterministic: bool) -> SearchLimits:
    """Limits of the search; a deterministic one has a single worker, and refuses to be told otherwise."""
    from cspsched.exact.watch import SearchLimits

    source = click.get_current_context().get_parameter_source("workers")
    if deterministic and source is not ParameterSource.COMMANDLINE:
        workers = 1
    return SearchLimits(time_limit_s=time_limit, num_workers=workers, seed=seed, deterministic=deterministic)


def _servable(instance: Instance, *, as_json: bool) -> Instance:
    """The part of an instance that can be served, the rest told; with --json a refusal is data too."""
    from cspsched.problem.infeasibility import find_infeasibility
    from cspsched.studies.solving import servable_part

    trouble = find_infeasibility(instance)
    if trouble is not None and trouble.is_total and as_json:
        show(json.dumps(trouble.to_json(), indent=1))
    servable, rejections = servable_part(instance)
    tell_rejections(rejections)
    if trouble is not None:
        tell(f"to serve them, too: {trouble.remedies}")
    return servable


def _warm_candidates(path: Path | None, instance: Instance) -> list[Candidate]:
    from cspsched.studies.solving import read_warm_start

    return [] if path is None else [read_warm_start(path, instance)]


def _export(
    path: Path | None,
    instance: Instance,
    objective: AnyObjective,
    heuristics: tuple[str, ...],
    candidates: list[Candidate],
) -> ExportedModel | None:
    if path is None:
        return None
    from cspsched.exact.export import export_model
    from cspsched.studies.solving import policy_candidates

    known = [*policy_candidates(instance, heuristics)[0], *candidates]
    exported = export_model(instance, objective, path, candidates=known)
    tell(f"wrote {exported.sentence}")
    return exported
