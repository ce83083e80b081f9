"""`cspsched bracket`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import tell
from cspsched.cli.improve import exit_code, run_search, search_options
from cspsched.cli.options import (
    ManyValuesCommand,
    json_option,
    optional_trace_argument,
    serving_options,
    trace_options,
)


@click.command("bracket", cls=ManyValuesCommand)
@optional_trace_argument
@search_options
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the picture of the bracket, such as bracket.png or bracket.svg.",
)
@json_option
@trace_options
@serving_options
def bracket_command(
    trace: Path | None,
    picture: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> int:
    """Interval that holds the optimum of TRACE, with a proof at both ends.

    TRACE is a CSV file or a bundled name; chat-2000 if none is given. The lower end is a certified bound, the
    upper end the best schedule that 'improve' finds. Each policy's excess over the optimum is given for both.

    \b
    cspsched bracket trace.csv --objective latency --picture bracket.png
    cspsched bracket trace.csv --objective makespan --heuristics vllm sarathi:chunk=512 --time-limit 5min
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.improve import Bracket
    from cspsched.report import bracket as report
    from cspsched.report.output import require_writable

    if picture is not None:
        require_writable(picture.parent)
    bracket = Bracket(improvement=run_search(trace, options))
    if as_json:
        click.echo(json.dumps(bracket.to_json(), indent=1))
    else:
        click.echo(report.text(bracket))
    if picture is not None:
        report.write_picture(bracket, picture)
        tell(f"wrote {picture}")
    return exit_code(bracket.improvement)
