"""`cspsched compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cspsched.cli.console import LiveLine, counted, tell
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.options import (
    SERVING_NAMES,
    Duration,
    ManyValuesCommand,
    heuristics_option,
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
from cspsched.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from cspsched.compare import Comparison
    from cspsched.problem.cost import CostModel
    from cspsched.problem.instance import Instance
    from cspsched.problem.schedule import Schedule


TRACE_NAMES = ("limit", "window", "scale_rate")


@click.command("compare", cls=ManyValuesCommand)
@optional_trace_argument
@heuristics_option
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    metavar="NAME=FILE",
    help="A finished schedule ('import-schedule', 'simulate --save') as a row; its instance replaces TRACE.",
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
    "--improve",
    "improve_limit",
    type=Duration(),
    help="Where the trace is too large for the exact solver: search so long for a schedule better than every "
    "policy's, as 'improve' does.",
)
@click.option(
    "--uncertainty",
    is_flag=True,
    help="Also the excess at both ends of the cost model's error band (all batches fast, all slow).",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="File for the table in Markdown."
)
@click.option("--out", type=out_type, help="Folder for report.html, tables and pictures.")
@json_option
@workers_option
@seed_option
@trace_options
@serving_options
def compare_command(
    trace: Path | None,
    heuristics: tuple[str, ...],
    schedules: tuple[str, ...],
    objective: str,
    time_limit: float,
    improve_limit: float | None,
    uncertainty: bool,  # noqa: FBT001 - click passes flags so
    markdown: Path | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    workers: int,
    seed: int,
    **options: Any,
) -> int:
    """How far policies are from the best possible schedule of TRACE.

    TRACE is a CSV file or a bundled name; chat-2000 if none is given. With --schedule the requests, limits
    and cost model are those of its file, and policies are simulated on them. The excess is certified: the
    optimum is either proven, or lies between a proven bound and the best known schedule, and the excess is
    given for both ends.

    \b
    cspsched compare --heuristics vllm sarathi
    cspsched compare trace.csv --objective latency --out report
    cspsched compare trace.csv --limit 500 --heuristics vllm:max_num_seqs=256 sarathi:chunk=512
    cspsched compare --schedule real=real.json --heuristics vllm
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.compare import compare_at_band, compare_policies
    from cspsched.exact.search import SearchLimits
    from cspsched.improve import ImproveLimits
    from cspsched.problem.metrics import Objective
    from cspsched.problem.result import StopReason
    from cspsched.report.output import require_writable, write_files
    from cspsched.report.table import excess
    from cspsched.report.table import markdown as as_markdown
    from cspsched.serving import make_instance

    if uncertainty and schedules:
        raise UsageError("--uncertainty prices other batch times, --schedule has its own; give one of them")
    for folder in filter(None, (out, markdown and markdown.parent)):
        require_writable(folder)
    if schedules:
        _refuse_other_instance()
        name, (instance, given), band = ", ".join(schedules), _read_schedules(schedules), None
    else:
        requests, serving = selected_trace(trace, options), instance_serving(options)
        name, instance, given = requests.name, make_instance(requests, serving), {}
        band = error_band(serving.cost or instance.cost.name) if uncertainty else None
    with LiveLine(Objective(objective), len(instance.requests)) as live:
        comparison = compare_policies(
            instance,
            heuristics,
            Objective(objective),
            schedules=given,
            limits=SearchLimits(time_limit_s=time_limit, num_workers=workers, seed=seed),
            improve=None if improve_limit is None else ImproveLimits(time_limit_s=improve_limit, seed=seed),
            on_step=tell,
            on_progress=live,
        )
    ends = {}
    if band is not None:
        tell("comparing at both ends of the cost model's error band")
        ends = compare_at_band(instance, band, heuristics, Objective(objective))
    if as_json:
        data = comparison.to_json()
        if ends:
            data["uncertainty"] = {end: one.to_json()["policies"] for end, one in ends.items()}
        click.echo(json.dumps(data, indent=1))
    else:
        _show(name, comparison)
        for end, one in ends.items():
            told = ", ".join(f"{row.policy} {excess(row.excess)}" for row in one.rows)
            click.echo(f"Certified excess if all batches are {end}: {told}.")
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: as_markdown(comparison)})
    if out is not None:
        from cspsched.report.files import write_comparison

        written = write_comparison(comparison, out)
        tell(f"wrote {written[0]} and {len(written) - 1} more files to {out}")
    return INTERRUPTED if comparison.reference.stop_reason is StopReason.INTERRUPTED else 0


def error_band(cost: str | Path) -> tuple[CostModel, CostModel]:
    """Fast and slow ends of the error band of a cost model."""
    from cspsched.costs.estimator import Estimator

    estimator = Estimator.load(cost)
    if replace(estimator.low, name="") == replace(estimator.high, name=""):
        raise UsageError(
            f"cost model {cost} states no error band, so --uncertainty has nothing to say; the fitted models "
            "have one (cspsched costs)"
        )
    return estimator.low, estimator.high


def _refuse_other_instance() -> None:
    """With a schedule there is nothing left that makes an instance."""
    context = click.get_current_context()
    for name in ("trace", *TRACE_NAMES, *SERVING_NAMES):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = name.upper() if name == "trace" else f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} is given with --schedule, whose file holds the whole instance", context
            )


def _read_schedules(texts: tuple[str, ...]) -> tuple[Instance, dict[str, Schedule]]:
    """The instance that all the files share, and their schedules by name."""
    from cspsched.errors import InputError
    from cspsched.problem.json_io import read_json
    from cspsched.problem.result import Result

    found: dict[str, Schedule] = {}
    instances = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in found:
            raise UsageError(f"--schedule is {text!r}, expected NAME=FILE with a name of its own")
        result = Result.from_json(read_json(Path(path)), path)
        if result.schedule is None:
            raise InputError(f"{path}: holds no schedule to compare")
        found[name] = result.schedule
        instances.append(result.instance)
        if instances[0].fingerprint() != result.instance.fingerprint():
            raise InputError(f"{path}: is a schedule of another instance than that of {texts[0]}")
    return instances[0], found


def _show(name: str, comparison: Comparison) -> None:
    """Print the table, turned on its side where a terminal is too narrow for it."""
    from rich.console import Console

    from cspsched.report.table import footnotes, header, rows

    instance, limits = comparison.instance, comparison.instance.limits
    click.echo(
        f"{name}: {counted(len(instance.requests), 'request')}, {instance.cost.name}, "
        f"{limits.kv_blocks:,} KV blocks of {limits.block_tokens}, C {limits.max_batch_tokens:,}, "
        f"R {limits.max_batch_requests:,}"
    )
    lines = [header(comparison), *rows(comparison)]
    console = Console(highlight=False)
    turned = list(map(list, zip(*lines, strict=True)))
    if console.is_terminal and _width(lines) > console.width >= _width(turned):
        lines = turned
    # A table that fits neither way is wrapped by the terminal: nothing may be cut off.
    width = max(console.width, _width(lines))
    Console(highlight=False, width=width, height=console.height).print(_table(lines))
    for note in footnotes(comparison):
        click.echo(note)


def _table(lines: list[list[str]]) -> Table:
    """Table of a header and rows, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for position, title in enumerate(lines[0]):
        table.add_column(Text(title), justify="right" if position else "left", no_wrap=True)
    for row in lines[1:]:
        table.add_row(*map(Text, row))
    return table


def _width(lines: list[list[str]]) -> int:
    """Columns of a terminal that the table takes: a cell has a blank on either side and a line after it."""
    from rich.cells import cell_len

    return 1 + sum(max(map(cell_len, column)) + 3 for column in zip(*lines, strict=True))
