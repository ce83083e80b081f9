"""`cspsched bound`."""

from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import show, tell_rejections, tell_warnings
from cspsched.cli.options import (
    instance_serving,
    json_option,
    objective_option,
    one_objective,
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

    TRACE is a file or a bundled name; chat-2000 if none is given. The best bound comes first; --json
    has the numbers that each proof needs.

    \b
    cspsched bound trace.csv --objective latency
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.bounds import certificates
    from cspsched.improve.ends import lower_end
    from cspsched.problem.objectives import Objective
    from cspsched.serving import make_instance
    from cspsched.unused import warnings_for

    requests = selected_trace(trace, options)
    given = make_instance(requests, instance_serving(options))
    wanted = one_objective(objective, given)
    instance, rejections = given.split_rejected()
    tell_rejections(rejections)
    tell_warnings(warnings_for(requests))
    if isinstance(wanted, Objective):
        found = [(one.name, one.value_ns, dict(one.details)) for one in certificates(instance, wanted)]
    else:
        end = lower_end(instance, wanted)
        found = [(end.name, end.value_ns, {})]
    if as_json:
        rows = [{"name": name, "value_ns": value_ns, "details": details} for name, value_ns, details in found]
        data = {"schema": "cspsched/bounds/1", "objective": wanted.value, "certificates": rows}
        show(json.dumps(data, indent=1))
        return
    for name, value_ns, _ in found:
        show(f"{wanted.label} >= {wanted.show(value_ns, len(instance.requests), floor)}  {name}")
