"""`cspsched trace fetch`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cspsched.cli.console import show, tell
from cspsched.cli.options import json_option, output_option


@click.command("fetch")
@click.argument("name", required=False)
@output_option("File to write.  [default: the name, in this folder]", "-o")
@json_option
def fetch_command(
    name: str | None,
    output: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> None:
    """Download the public trace NAME, checked by its SHA-256; without NAME, list them.

    Needs the extra 'fetch' (pip install 'cspsched[fetch]'). The licence of the data is told.

    \b
    cspsched trace fetch
    cspsched trace fetch azure-2023-conv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from dataclasses import asdict

    from cspsched.trace.fetch import fetch_trace, public_traces

    known = public_traces()
    if name is None:
        rows = [{"name": key, **asdict(one)} for key, one in known.items()]
        if as_json:
            show(json.dumps({"schema": "cspsched/public-traces/1", "rows": rows}, indent=1))
            return
        for key, one in known.items():
            show(f"{key:22} {one.title} ({one.size_bytes / 1e6:.1f} MB, {one.licence})")
        return
    path = fetch_trace(name, output)
    one = known[name]
    if as_json:
        row = {"name": name, "file": str(path), **asdict(one)}
        show(json.dumps({"schema": "cspsched/public-traces/1", "rows": [row]}, indent=1))
    tell(f"{path}: {one.title}; licence {one.licence}; cite {one.cite}")
