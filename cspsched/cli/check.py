"""`cspsched check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import counted, show
from cspsched.cli.options import Duration, json_option

if TYPE_CHECKING:
    from cspsched.exact.watch import SearchLimits
    from cspsched.studies.checking import Check

GATE_FAILED = 3
FILES = (
    "schedule.json of 'solve', a rung's file of 'solve --ladder', or what 'simulate --save', "
    "'improve --save' and 'import-schedule' write"
)


@click.command("check")
@click.argument("schedule", type=click.Path(path_type=Path))
@click.option(
    "--prove",
    type=Duration(),
    help="Search so long for what a bound of a search is worth: a proof of it, or a schedule below.",
)
@json_option
def check_command(
    schedule: Path,
    prove: float | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> int:
    """Judge SCHEDULE by the referee.

    SCHEDULE is a file that 'solve', 'simulate --save', 'improve --save' or 'import-schedule' wrote. Every
    rule of the problem is checked, all times and the objective are derived again. So are the class, the gap,
    the status, and the bound of a closed-form certificate; a bound that a search closed is named as not
    re-derived, beside the best bound that is. --prove searches again. Exit code 3 if anything is violated or
    false.

    \b
    cspsched check cspsched-solve/schedule.json
    cspsched check cspsched-solve/schedule.json --prove 60s
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.problem.json_io import read_json
    from cspsched.studies.checking import check_result

    data = read_json(schedule)
    _require_result(data, schedule)
    checked = check_result(data, str(schedule), prove=_limits(prove))
    if as_json:
        show(json.dumps(checked.to_json(), indent=1))
    elif checked.faults:
        show("\n".join(f"{fault.rule}: {fault.message}" for fault in checked.faults))
    else:
        show("\n".join(_lines(checked)))
    return GATE_FAILED if checked.faults else 0


def _limits(prove: float | None) -> SearchLimits | None:
    """Limits of a search, which is loaded only if there is one."""
    if prove is None:
        return None
    from cspsched.exact.watch import SearchLimits

    return SearchLimits(time_limit_s=prove)


def _require_result(data: Any, path: Path) -> None:
    """Other files of cspsched are refused with what to check instead."""
    from cspsched.errors import InputError
    from cspsched.problem.schedule import SCHEDULE_SCHEMA

    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("cspsched/"):
        return
    if schema == SCHEDULE_SCHEMA:
        raise InputError(f"{path}: a bare schedule has no instance to be judged by; check {FILES}")
    if not schema.startswith("cspsched/result/"):
        raise InputError(f"{path}: schema is {schema!r}, which holds no schedule; check {FILES}")
    if "metrics" in data and "schedule" not in data:
        raise InputError(f"{path}: is what 'solve --json' prints, without the schedule; check {FILES}")


def _lines(checked: Check) -> Iterator[str]:
    """What is right, what was derived again, and what was not."""
    from cspsched.problem.result import unit_of

    result = checked.result
    assert result.schedule is not None
    values = ", then ".join(
        f"{objective} {value} {unit_of(objective)}"
        for objective, value in (
            *((stage.objective, stage.primal_ns) for stage in result.earlier),
            (result.objective, result.primal_ns),
        )
    )
    requests = counted(len(result.instance.requests), "request")
    batches = counted(result.schedule.num_batches, "batch", "batches")
    yield f"feasible: {requests} in {batches}, {values} as stated"
    is_stated = any(claim.claim == "class" for claim in checked.claims)
    yield f"class: {result.instance.switches.policy_class}{', as stated' if is_stated else ''}"
    for claim in checked.claims:
        if claim.claim in ("bound", "status"):
            yield f"{claim.claim}: {claim.sentence}"
