"""`cspsched solve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import LiveLine, counted, tell
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.options import (
    Duration,
    ManyValuesCommand,
    heuristics_option,
    instance_serving,
    json_option,
    objective_option,
    out_type,
    seed_option,
    selected_trace,
    serving_options,
    trace_argument,
    trace_options,
    workers_option,
)

if TYPE_CHECKING:
    from cspsched.solving import Solution


@click.command("solve", cls=ManyValuesCommand)
@trace_argument
@objective_option
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
@click.option("--drop-rejected", is_flag=True, help="Leave out requests that can never fit.")
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
    drop_rejected: bool,  # noqa: FBT001
    workers: int,
    seed: int,
    **options: Any,
) -> int:
    """Best schedule of TRACE with a certified bound.

    TRACE is a CSV file or a bundled name, such as tiny-12. The schedule is at least
    as good as that of every policy under --heuristics.

    Ctrl-C and the time limit keep the best schedule found. Switches restrict the class of schedules that is
    searched; the verdict names it.

    \b
    cspsched solve trace.csv
    cspsched solve trace.csv --limit 6 --objective latency --time-limit 5min
    cspsched solve trace.csv --kv-tokens 64 --block-tokens 1 --preemption none
    """  # fmt: skip  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.exact.search import SearchLimits
    from cspsched.problem.metrics import Objective
    from cspsched.problem.result import StopReason
    from cspsched.report.output import require_writable
    from cspsched.serving import make_instance
    from cspsched.solving import solve

    switches = {
        "chunked_prefill": options.pop("chunking"),
        "hybrid_batches": options.pop("hybrid"),
        "holding": options.pop("holding"),
        "reservation": options.pop("reservation"),
    }
    require_writable(out)
    requests = selected_trace(trace, options)
    instance = make_instance(requests, instance_serving(options, **switches))
    with LiveLine(Objective(objective), len(instance.requests)) as live:
        solution = solve(
            instance,
            Objective(objective),
            limits=SearchLimits(time_limit_s=time_limit, num_workers=workers, seed=seed),
            heuristics=heuristics,
            drop_rejected=drop_rejected,
            on_progress=live,
        )
    from cspsched.report.files import write_solution

    written = write_solution(solution.result, out)
    click.echo(json.dumps(_summary(solution), indent=1) if as_json else _verdict(solution))
    tell(f"wrote {', '.join(map(str, written))}")
    return INTERRUPTED if solution.result.stop_reason is StopReason.INTERRUPTED else 0


def _summary(solution: Solution) -> dict[str, Any]:
    """The result without its instance and schedule, which are in schedule.json."""
    from cspsched.problem.metrics import measure

    result = solution.result
    data = {key: value for key, value in result.to_json().items() if key not in ("instance", "schedule")}
    data["rejected"] = [rejection.reason for rejection in solution.rejections]
    if result.schedule is not None:
        data["metrics"] = measure(result.instance, result.schedule).to_json()
    return data


def _verdict(solution: Solution) -> str:
    """What is proven, and the schedule in numbers."""
    from cspsched.problem.metrics import Objective, measure
    from cspsched.problem.result import Status, StopReason
    from cspsched.report.table import percent, seconds

    result = solution.result
    assert result.schedule is not None
    assert result.primal_ns is not None
    assert result.dual_ns is not None
    count = len(result.instance.requests)
    what = "makespan" if result.objective is Objective.MAKESPAN else f"mean {result.objective}"
    best = f"{result.objective.mean_s(result.primal_ns, count):.9f} s"
    klass = result.instance.switches.policy_class
    if result.stop_reason is StopReason.ROUNDING:
        head = (
            f"OPTIMAL up to rounding: {what} {best}, within {result.primal_ns - result.dual_ns} ns in total "
            f"of what {result.certificate} proves (class: {klass})"
        )
    elif result.status is Status.OPTIMAL:
        head = f"OPTIMAL: {what} {best}, proven by {result.certificate} (class: {klass})"
    else:
        bound = f"{result.objective.mean_s(result.dual_ns, count):.9f} s"
        gap = percent(result.gap or 0.0)
        head = (
            f"FEASIBLE: {what} {best}, at least {bound} by certificate {result.certificate}, gap {gap} "
            f"(class: {klass}; stopped: {result.stop_reason})"
        )
    summary = measure(result.instance, result.schedule).to_json()
    lines = [
        head,
        f"schedule found by {result.found_by}: {counted(count, 'request')}, "
        f"{counted(summary['num_batches'], 'batch', 'batches')}, "
        f"{counted(summary['preemptions'], 'preemption')}, "
        f"{counted(summary['recomputed_tokens'], 'recomputed token')}",
        f"makespan {seconds(summary['makespan_s'])}, latency mean {seconds(summary['latency_s']['mean'])} "
        f"p99 {seconds(summary['latency_s']['p99'])}, TTFT mean {seconds(summary['ttft_s']['mean'])}",
    ]
    if solution.rejections:
        left_out = counted(len(solution.rejections), "request")
        lines.append(f"{left_out} left out; the first: {solution.rejections[0].reason}")
    return "\n".join(lines)
