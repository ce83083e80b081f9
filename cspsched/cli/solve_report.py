"""What `cspsched solve` writes and prints when it is done."""

from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspsched.cli.console import counted, show, tell
from cspsched.cli.group import INTERRUPTED

if TYPE_CHECKING:
    from cspsched.exact.export import ExportedModel
    from cspsched.problem.result import Stage
    from cspsched.studies.ladder import Ladder
    from cspsched.studies.solving import Solution


def report_solution(
    solution: Solution, exported: ExportedModel | None, out: Path, warnings: list[str], *, as_json: bool
) -> int:
    """Write the files, print the verdict; exit code."""
    from cspsched.problem.result import StopReason
    from cspsched.report.files import write_solution

    written = write_solution(solution.result, out)
    for failure in solution.result.failures:
        tell(failure.sentence)
    if as_json:
        data = _summary(solution) | {"warnings": warnings} | _exported(exported)
        show(json.dumps(data, indent=1))
    else:
        show(_verdict(solution))
    tell(f"wrote {', '.join(map(str, written))}")
    return INTERRUPTED if solution.result.stop_reason is StopReason.INTERRUPTED else 0


def report_ladder(
    ladder: Ladder, exported: ExportedModel | None, out: Path, warnings: list[str], *, as_json: bool
) -> int:
    """Write the files, print table and sentences; exit code."""
    from cspsched.report.ladder import sentences, write_ladder

    written = write_ladder(ladder, out)
    for rung in ladder.solved:
        for failure in rung.result.failures if rung.result else ():
            tell(f"rung {rung.name!r}: {failure.sentence}")
    if as_json:
        data = ladder.to_json() | {"warnings": warnings} | _exported(exported)
        show(json.dumps(data, indent=1))
    else:
        _print_rungs(ladder)
        show("\n".join(sentences(ladder)))
    tell(f"wrote {written[0]} and {len(written) - 1} more files to {out}")
    return INTERRUPTED if ladder.is_interrupted else 0


def _exported(exported: ExportedModel | None) -> dict[str, Any]:
    return {} if exported is None else {"exported": exported.to_json()}


def _print_rungs(ladder: Ladder) -> None:
    """Table of the rungs; a terminal wraps cells, a pipe gets them whole."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from cspsched.report.ladder import HEADER, rows

    table = Table()
    for position, title in enumerate(HEADER):
        table.add_column(Text(title), justify="right" if position in (2, 3, 4, 6) else "left")
    for row in rows(ladder):
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        wide = console.options.update(width=1_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def _summary(solution: Solution) -> dict[str, Any]:
    """The result without its instance and schedule, which are in schedule.json."""
    from cspsched.referee.metrics import measure

    result = solution.result
    data = {key: value for key, value in result.to_json().items() if key not in ("instance", "schedule")}
    data["rejected"] = [rejection.reason for rejection in solution.rejections]
    if result.schedule is not None:
        data["metrics"] = measure(result.instance, result.schedule).to_json()
    return data


def _stage_sentence(stage: Stage, count: int) -> str:
    """What is proven of an objective that was minimised before."""
    from cspsched.problem.result import Status

    best = stage.objective.show(stage.primal_ns, count)
    if stage.status is Status.OPTIMAL:
        return f"first {stage.objective.label}: {best}, proven by {stage.certificate}; then"
    if stage.status is Status.OPTIMAL_UP_TO_ROUNDING:
        return (
            f"first {stage.objective.label}: {best}, within {stage.gap_ns} ns in total of what "
            f"{stage.certificate} proves, no more than rounding; then"
        )
    bound = stage.objective.show(stage.dual_ns, count, floor)
    return f"first {stage.objective.label}: {best}, at least {bound} by certificate {stage.certificate}; then"


def _verdict(solution: Solution) -> str:
    """What is proven, and the schedule in numbers."""
    from cspsched.problem.result import Status
    from cspsched.referee.metrics import measure
    from cspsched.report.table import seconds
    from cspsched.units import percent

    result = solution.result
    assert result.schedule is not None
    assert result.primal_ns is not None
    assert result.dual_ns is not None
    count = len(result.instance.requests)
    what, best = result.objective.label, result.objective.show(result.primal_ns, count)
    klass = result.instance.switches.policy_class
    if result.status is Status.OPTIMAL_UP_TO_ROUNDING:
        head = (
            f"OPTIMAL up to rounding: {what} {best}, within {result.gap_ns} ns in total "
            f"of what {result.certificate} proves (class: {klass})"
        )
    elif result.status is Status.OPTIMAL:
        head = f"OPTIMAL: {what} {best}, proven by {result.certificate} (class: {klass})"
    else:
        bound = result.objective.show(result.dual_ns, count, floor)
        gap = percent(result.gap or 0.0)
        head = (
            f"FEASIBLE: {what} {best}, at least {bound} by certificate {result.certificate}, gap {gap} "
            f"(class: {klass}; stopped: {result.stop_reason})"
        )
    summary = measure(result.instance, result.schedule).to_json()
    lines = [
        *(_stage_sentence(stage, count) for stage in result.earlier),
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
