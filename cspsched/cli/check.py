"""`cspsched check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cspsched.cli.options import json_option

GATE_FAILED = 3


@click.command("check")
@click.argument("schedule", type=click.Path(path_type=Path))
@json_option
def check_command(schedule: Path, as_json: bool) -> int:  # noqa: FBT001 - click passes flags so
    """Judge SCHEDULE by the referee.

    SCHEDULE is a file that 'solve' or 'simulate --save' wrote. Every rule of the problem is checked, all
    times and the objective are derived again. Exit code 3 if anything is violated.

    \b
    cspsched check cspsched-solve/schedule.json
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.errors import InputError
    from cspsched.problem.json_io import read_json
    from cspsched.problem.result import Result

    result = Result.from_json(read_json(schedule), str(schedule))
    if result.schedule is None:
        raise InputError(f"{schedule}: holds no schedule to check")
    violations = result.violations()
    if as_json:
        rows = [violation.to_json() for violation in violations]
        data = {"schema": "cspsched/check/1", "feasible": not rows, "violations": rows}
        click.echo(json.dumps(data, indent=1))
    elif violations:
        click.echo("\n".join(f"{violation.rule}: {violation.message}" for violation in violations))
    else:
        click.echo(
            f"feasible: {len(result.instance.requests)} requests in {result.schedule.num_batches} batches, "
            f"{result.objective} {result.primal_ns} ns as stated"
        )
    return GATE_FAILED if violations else 0
