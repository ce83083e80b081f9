"""`cspsched bound`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import tell_rejections
from cspsched.cli.options import (
    instance_serving,
    json_option,
    objective_option,
    optional_trace_argument,
    selected_trace,
    serving_options,
    trace_options,
)


@click.command("bound")
@optional_trace_argument
@objective_option
@json_option
@trace_options
@serving_options
def bound_command(
    trace: Path | None,
    objective: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Certified lower bounds on what any scheduler can reach on TRACE.

    TRACE is a CSV file or a bundled name; chat-2000 if none is given. The best bound comes first; --json
    has the numbers that each proof needs.

    \b
    cspsched bound trace.csv --objective latency
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.bounds import certificates
    from cspsched.problem.metrics import Objective
    from cspsched.serving import make_instance

    requests = selected_trace(trace, options)
    instance, rejections = make_instance(requests, instance_serving(options)).split_rejected()
    tell_rejections(rejections)
    found = certificates(instance, Objective(objective))
    count = len(instance.requests)
    if as_json:
        rows = [{"name": one.name, "value_ns": one.value_ns, "details": dict(one.details)} for one in found]
        data = {"schema": "cspsched/bounds/1", "objective": objective, "certificates": rows}
        click.echo(json.dumps(data, indent=1))
        return
    what = objective if objective == "makespan" else f"mean {objective}"
    for one in found:
        click.echo(f"{what} >= {Objective(objective).mean_s(one.value_ns, count):.9f} s  {one.name}")
