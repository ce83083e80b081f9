"""`cspsched simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import tell, tell_rejections
from cspsched.cli.options import (
    instance_serving,
    json_option,
    objective_option,
    optional_trace_argument,
    selected_trace,
    serving_options,
    trace_options,
)


@click.command("simulate")
@optional_trace_argument
@click.option(
    "--policy",
    default="vllm",
    show_default=True,
    metavar="POLICY",
    help="Policy with its settings, such as sarathi:chunk=512 (see 'cspsched policies').",
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the schedule to a file.")
@objective_option
@json_option
@trace_options
@serving_options
def simulate_command(
    trace: Path | None,
    policy: str,
    save: Path | None,
    objective: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Run one policy over TRACE and print its metrics.

    TRACE is a CSV file or a bundled name; chat-2000 if none is given. The saved schedule states the value of
    the objective, so that 'cspsched check' can judge it.

    \b
    cspsched simulate trace.csv --policy sarathi:chunk=512 --save schedule.json
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.policies.base import make_policy
    from cspsched.problem.metrics import Objective, measure
    from cspsched.problem.result import Result, Status, StopReason, tool_versions
    from cspsched.report.output import require_writable, write_files
    from cspsched.serving import make_instance
    from cspsched.simulate import simulate

    if save is not None:
        require_writable(save.parent)
    requests = selected_trace(trace, options)
    instance, rejections = make_instance(requests, instance_serving(options)).split_rejected()
    chosen = make_policy(policy)
    schedule = simulate(instance, chosen).schedule
    metrics = measure(instance, schedule)
    tell_rejections(rejections)
    summary = {"policy": chosen.label, "rejected": len(rejections), **metrics.to_json()}
    if as_json:
        click.echo(json.dumps({"schema": "cspsched/metrics/1", **summary}, indent=1))
    else:
        click.echo("\n".join(_lines(summary)))
    if save is not None:
        result = Result(
            instance=instance,
            objective=Objective(objective),
            schedule=schedule,
            primal_ns=metrics.objective_ns(Objective(objective)),
            dual_ns=None,
            status=Status.FEASIBLE,
            stop_reason=StopReason.FINISHED,
            found_by=chosen.label,
            provenance={"versions": tool_versions()},
        )
        write_files(save.parent, {save.name: json.dumps(result.to_json()) + "\n"})
        tell(f"wrote {save}")


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in summary.items():
        if isinstance(value, dict):
            points = ", ".join(f"{point} {time:.6g}" for point, time in value.items())
            lines.append(f"{name:22} {points}")
        else:
            lines.append(f"{name:22} {value:,.6g}" if isinstance(value, float) else f"{name:22} {value}")
    return lines
