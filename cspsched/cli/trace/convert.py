"""`cspsched trace convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import counted, show, tell, tell_warnings
from cspsched.cli.options import json_option, selected_trace, trace_argument, trace_options


@click.command("convert")
@trace_argument
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--to",
    "target",
    default="native",
    show_default=True,
    metavar="FORMAT",
    help="Format to write (see 'cspsched trace list').",
)
@json_option
@trace_options
def convert_command(
    trace: Path,
    output: Path,
    target: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Write TRACE to OUTPUT in another format, and say what that format cannot hold.

    OUTPUT may end in .parquet, .gz or .zst; - is standard output.

    \b
    cspsched trace convert conversation.jsonl trace.csv --format mooncake
    cspsched trace convert trace.csv trace.parquet
    cspsched trace convert trace.csv.gz - --to mooncake --limit 1000
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import write_trace
    from cspsched.trace.detect import format_called
    from cspsched.trace.source import STDIN
    from cspsched.trace.write import trace_bytes

    made = format_called(target)
    read = selected_trace(trace, options)
    tell_warnings(read.unused_sentences)
    if output == STDIN:
        content, losses = trace_bytes(read.requests, made)
        click.echo(content, nl=False)
    else:
        losses = write_trace(read.requests, output, made)
    if losses:
        tell(f"warning: format {made.name} does not hold {', '.join(losses)}")
    if as_json and output != STDIN:
        data = {"file": str(output), "format": made.name, "num_requests": len(read.requests)}
        show(json.dumps({"schema": "cspsched/converted-trace/1", **data, "not_held": list(losses)}, indent=1))
    tell(f"wrote {counted(len(read.requests), 'request')} to {output}")
