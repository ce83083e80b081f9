"""`cspsched trace list`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import counted, show
from cspsched.cli.options import json_option
from cspsched.cli.trace.values import value_text

if TYPE_CHECKING:
    from cspsched.trace.format import TraceFormat


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:  # noqa: FBT001 - click passes flags so
    """The bundled traces, whose names every command takes in the place of a file, profiles, and formats.

    \b
    cspsched trace list
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import describe, read_trace
    from cspsched.trace.formats import FORMATS
    from cspsched.trace.generators import load_profile, shipped_profiles
    from cspsched.trace.shipped import shipped_trace_path, shipped_traces

    rows = []
    for name in shipped_traces():
        data = describe(read_trace(shipped_trace_path(name))).to_json()
        kept = ("num_requests", "span_s", "rate_per_s", "prompt_tokens", "output_tokens")
        rows.append({"name": name, **{key: data[key] for key in kept}})
    if as_json:
        formats = [_format_json(made) for made in FORMATS]
        profiles = [{"name": one.name, "source": one.source} for one in map(load_profile, shipped_profiles())]
        data = {"schema": "cspsched/trace-list/1", "rows": rows, "formats": formats, "profiles": profiles}
        show(json.dumps(data, indent=1))
        return
    show("bundled traces")
    for row in rows:
        show(
            f"  {row['name']:12} {counted(row['num_requests'], 'request')} in {value_text(row['span_s'])} s, "
            f"prompts of {value_text(row['prompt_tokens']['mean'])} and outputs of "
            f"{value_text(row['output_tokens']['mean'])} tokens on average"
        )
    show("profiles of traffic, for 'cspsched trace generate --profile NAME'")
    for profile in map(load_profile, shipped_profiles()):
        rate = f"{profile.rate_per_s:.4g}/s" if profile.rate_per_s else "rate to be given"
        lengths = "" if profile.lengths else ", no lengths"
        show(f"  {profile.name:22} {rate}{lengths}; {profile.source}")
    show("formats, each as text, JSON or Parquet, plain or packed by gzip or Zstandard")
    for made in FORMATS:
        show(f"  {made.name:18} {made.title}: {_columns_text(made)}")
    show("  any other          --columns arrival=timestamp:ms,prompt=input_tokens,output=output_tokens")


def _columns_text(made: TraceFormat) -> str:
    columns = list(made.required_columns)
    if made.arrival_column in columns:
        columns[columns.index(made.arrival_column)] += f" [{made.arrival_unit.symbol}]"
    hashed = made.prefix_hashes
    prefix = [] if hashed is None else [f"{hashed.column} [blocks of {hashed.block_tokens} tokens]"]
    return ", ".join([*columns, *(mark for mark in made.marks if mark not in columns), *prefix])


def _format_json(made: TraceFormat) -> dict[str, Any]:
    hashed = made.prefix_hashes
    return {
        "name": made.name,
        "title": made.title,
        "layout": made.layout.value,
        "required_columns": list(made.required_columns),
        "arrival_unit": made.arrival_unit.symbol,
        "prefix_block_tokens": None if hashed is None else hashed.block_tokens,
        "is_written": made.is_written and not made.refusal,
    }
