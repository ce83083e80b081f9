"""`cspsched simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import begin, counted, show, tell, tell_rejections, tell_warnings
from cspsched.cli.loop_options import concurrency_option
from cspsched.cli.options import (
    chosen_frontend,
    frontend_option,
    heuristic_option,
    instance_serving,
    json_option,
    objective_option,
    one_objective,
    optional_trace_argument,
    out_type,
    output_option,
    selected_trace,
    serving_options,
    trace_options,
)
from cspsched.errors import UsageError

if TYPE_CHECKING:
    from cspsched.problem.instance import Instance, Rejection
    from cspsched.problem.objectives import AnyObjective
    from cspsched.report.run import Run
    from cspsched.simulate import Policy
    from cspsched.simulate.closed_loop import ClosedLoop


@click.command("simulate")
@optional_trace_argument
@heuristic_option
@concurrency_option
@click.option(
    "--emulate-bugs",
    is_flag=True,
    help="Simulate known bugs of the real engine, too (a setting of the policy; see 'cspsched policies').",
)
@output_option("File for the schedule.", "--save")
@click.option("--out", type=out_type, help="Folder for tables of requests and iterations, and run.json.")
@click.option(
    "--table-format",
    type=click.Choice(["parquet", "csv"]),
    help="How the tables are written.  [default: parquet]",
)
@click.option(
    "--perfetto",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a trace for ui.perfetto.dev, to a file that ends in .json or .json.gz.",
)
@objective_option
@frontend_option
@json_option
@trace_options
@serving_options
def simulate_command(
    trace: Path | None,
    policy: str,
    concurrency: int | None,
    emulate_bugs: bool,  # noqa: FBT001 - click passes flags so
    output: Path | None,
    out: Path | None,
    table_format: str | None,
    perfetto: Path | None,
    objective: str,
    frontend: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Run one policy over TRACE and print its metrics.

    TRACE is a file or a bundled name; chat-2000 if none is given. The saved schedule states the value of
    the objective, so that 'cspsched check' can judge it. The Perfetto trace has a track for the batches,
    one for each request, and counters; the tables have a row for each request and each iteration.
    With --max-concurrency, and where the trace has sessions, requests arrive as others end.

    \b
    cspsched simulate trace.csv --heuristics sarathi:chunk=512 --output schedule.json
    cspsched simulate trace.csv --out run --table-format csv
    cspsched simulate trace.csv --perfetto run.json.gz
    cspsched simulate trace.csv --policy vllm --max-concurrency 32
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.frontend import stated
    from cspsched.policies.base import add_setting, make_policy
    from cspsched.serving import cost_of, make_instance
    from cspsched.simulate.closed_loop import closed_loop_of
    from cspsched.unused import warnings_for

    _require_outputs(output, out, table_format, perfetto)
    requests = selected_trace(trace, options)
    serving = instance_serving(options)
    instance, rejections = make_instance(requests, serving).split_rejected()
    around = chosen_frontend(frontend, cost_of(serving))
    chosen = make_policy(add_setting(policy, "emulate_bugs=true") if emulate_bugs else policy)
    warnings = warnings_for(requests, [chosen], closes_loops=True)
    begin(f"simulating {counted(len(instance.requests), 'request')} under {chosen.label}")
    loop = closed_loop_of(instance, concurrency)
    run = _simulated(instance, chosen, rejections, loop)
    arrivals = None if loop is None else loop.sentence(run.policy)
    summary = {"policy": run.policy, "rejected": len(rejections), **run.metrics.to_json()}
    if around is not None:
        summary |= around.client_s(summary)
    tell_rejections(rejections)
    tell_warnings(warnings)
    if as_json:
        described = None if around is None else around.to_json()
        data = {"schema": "cspsched/metrics/1", "warnings": warnings, **summary, "frontend": described}
        show(json.dumps(data | {"arrivals": arrivals}, indent=1))
    else:
        show("\n".join([*_lines(summary), f"{'frontend':22} {stated(around)}"]))
        if arrivals is not None:
            show(f"{arrivals}.")
    if output is not None:
        _save(run, one_objective(objective, instance), output)
    if out is not None:
        _write_tables(run, out, table_format)
    if perfetto is not None:
        _write_perfetto(run, perfetto)


def _require_outputs(
    save: Path | None, out: Path | None, table_format: str | None, perfetto: Path | None
) -> None:
    """Refuse before the run what could not be written after it."""
    from cspsched.report.output import require_writable

    if table_format is not None and out is None:
        raise UsageError("--table-format says how the tables are written, and --out where; give --out too")
    if perfetto is not None:
        from cspsched.report.perfetto import require_perfetto_name

        require_perfetto_name(perfetto)
    for folder in (save and save.parent, out, perfetto and perfetto.parent):
        if folder is not None:
            require_writable(folder)


def _simulated(
    instance: Instance, policy: Policy, rejections: tuple[Rejection, ...], loop: ClosedLoop | None
) -> Run:
    from cspsched.referee.judge import judge
    from cspsched.report.run import Run
    from cspsched.simulate import simulate
    from cspsched.simulate.closed_loop import simulate_closed
    from cspsched.simulate.served import as_served

    if loop is None:
        simulation = simulate(instance, policy)
    else:
        instance, simulation = simulate_closed(instance, policy, loop)
    if simulation.output_changes:
        count = counted(len(simulation.output_changes), "request")
        tell(f"emulated bugs change what {count} generate; the metrics are of what was generated")
    judged = judge(*as_served(instance, simulation))
    for violation in judged.violations:
        if violation.rule == "preemption":
            raise UsageError(
                f"policy {simulation.policy} does what the instance does not allow: {violation.message}; "
                "allow it (--preemption) or choose another policy"
            )
    if judged.violations:
        tell(f"the referee objects to the schedule of {simulation.policy}: {judged.violations[0].message}")
    return Run(
        policy=simulation.policy,
        metrics=judged.metrics,
        held_blocks=simulation.held_blocks,
        num_waiting=simulation.num_waiting,
        rejections=rejections,
    )


def _save(run: Run, objective: AnyObjective, path: Path) -> None:
    from cspsched.problem.result import Result, Status, StopReason, tool_versions
    from cspsched.report.output import write_files

    result = Result(
        instance=run.history.instance,
        objective=objective,
        schedule=run.history.schedule,
        primal_ns=run.metrics.objective_ns(objective),
        dual_ns=None,
        status=Status.FEASIBLE,
        stop_reason=StopReason.FINISHED,
        found_by=run.policy,
        provenance={"versions": tool_versions()},
    )
    write_files(path.parent, {path.name: json.dumps(result.to_json()) + "\n"})
    tell(f"wrote {path}")


def _write_tables(run: Run, folder: Path, table_format: str | None) -> None:
    from cspsched.report.run_tables import TableFormat, write_run_tables

    begin(f"writing {folder}")
    written = write_run_tables(run, folder, TableFormat(table_format or TableFormat.PARQUET))
    tell(f"wrote {', '.join(path.name for path in written)} to {folder}")


def _write_perfetto(run: Run, path: Path) -> None:
    from cspsched.report.perfetto import write_perfetto

    begin(f"writing {path}")
    write_perfetto(run, path)
    tell(f"wrote {path}; open it in https://ui.perfetto.dev")


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in summary.items():
        if isinstance(value, dict):
            points = ", ".join(f"{point} {time:.6g}" for point, time in value.items())
            lines.append(f"{name:22} {points}")
        else:
            lines.append(f"{name:22} {value:,.6g}" if isinstance(value, float) else f"{name:22} {value}")
    return lines
