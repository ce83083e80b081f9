"""`cspsched compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import LiveLine, tell
from cspsched.cli.options import (
    Duration,
    ManyValuesCommand,
    instance_serving,
    json_option,
    objective_option,
    optional_trace_argument,
    out_type,
    seed_option,
    selected_trace,
    serving_options,
    trace_options,
    workers_option,
)


@click.command("compare", cls=ManyValuesCommand)
@optional_trace_argument
@click.option(
    "--heuristics",
    multiple=True,
    default=("vllm", "sarathi"),
    show_default="vllm sarathi",
    metavar="POLICY...",
    help="Policies with their settings, such as vllm:max_num_seqs=256 sarathi:chunk=512.",
)
@objective_option
@click.option(
    "--time-limit",
    type=Duration(),
    default="30s",
    show_default=True,
    help="For the exact optimum, tried where the trace is small; 0s leaves it out.",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write the table to a file."
)
@click.option("--out", type=out_type, help="Write report.html, tables and pictures to a folder.")
@json_option
@workers_option
@seed_option
@trace_options
@serving_options
def compare_command(
    trace: Path | None,
    heuristics: tuple[str, ...],
    objective: str,
    time_limit: float,
    markdown: Path | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    workers: int,
    seed: int,
    **options: Any,
) -> None:
    """How far policies are from the best possible schedule of TRACE (a bundled one if none is given).

    The excess is certified: the optimum is either proven, or lies between a proven bound and the best known
    schedule, and the excess is given for both ends.

    \b
    cspsched compare --heuristics vllm sarathi
    cspsched compare trace.csv --objective latency --out report
    cspsched compare trace.csv --limit 500 --heuristics vllm:max_num_seqs=256 sarathi:chunk=512
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.compare import compare_policies
    from cspsched.exact.search import SearchLimits
    from cspsched.problem.metrics import Objective
    from cspsched.report.files import write_comparison, write_files
    from cspsched.report.table import markdown as as_markdown
    from cspsched.serving import make_instance

    requests = selected_trace(trace, options)
    instance = make_instance(requests, instance_serving(options))
    live = LiveLine(Objective(objective), len(instance.requests))
    comparison = compare_policies(
        instance,
        heuristics,
        Objective(objective),
        limits=SearchLimits(time_limit_s=time_limit, num_workers=workers, seed=seed),
        on_step=tell,
        on_progress=live,
    )
    live.close()
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        _show(requests.name, comparison)
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: as_markdown(comparison)})
    if out is not None:
        written = write_comparison(comparison, out)
        tell(f"wrote {written[0]} and {len(written) - 1} more files to {out}")


def _show(name: str, comparison: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from cspsched.report.table import footnotes, header, rows

    instance = comparison.instance
    limits = instance.limits
    table = Table(
        title=f"{name}: {len(instance.requests):,} requests, {instance.cost.name}, "
        f"{limits.kv_blocks:,} KV blocks of {limits.block_tokens}, C {limits.max_batch_tokens:,}, "
        f"R {limits.max_batch_requests:,}",
    )
    for position, column in enumerate(header(comparison)):
        table.add_column(column, justify="right" if position else "left")
    for row in rows(comparison):
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    console.print(table)
    for note in footnotes(comparison):
        click.echo(note)
