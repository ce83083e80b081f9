"""`cspsched compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cspsched.cli.console import LiveLine, counted, show, tell, tell_warnings
from cspsched.cli.group import INTERRUPTED, command_line
from cspsched.cli.loop_options import concurrency_option
from cspsched.cli.options import (
    SERVING_NAMES,
    Duration,
    ManyValuesCommand,
    Option,
    chosen_frontend,
    frontend_option,
    heuristics_option,
    instance_serving,
    json_option,
    objective_option,
    one_objective,
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

    from cspsched.problem.cost import CostModel
    from cspsched.problem.instance import Instance
    from cspsched.problem.schedule import Schedule
    from cspsched.studies.compare import Comparison
    from cspsched.studies.reference import ReferenceLimits
    from cspsched.trace import Trace


PIPE_WIDTH = 160
"""Columns that a table may take where there is no terminal."""
TRACE_NAMES = ("limit", "window", "scale_rate")
LOOPS_SCHEMA = "cspsched/comparisons/1"
"""Of the comparisons of a closed loop, one of each policy."""


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
@concurrency_option
@click.option(
    "--time-limit",
    cls=Option,
    aliases=("--improve",),
    type=Duration(),
    help="Longest wait, policies and bounds included; what is left is for the exact solver, or for a search "
    "on larger traces.  [default: none; work and steps are counted, and the result repeats to the byte]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    help="Steps of the search for the best known schedule, about 4 ms each for 2,000 requests.  "
    "[default: 200, fewer above 400,000 output tokens; no limit with --time-limit]",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="--time-limit counts the exact solver's work instead of seconds, and the result repeats.",
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
@frontend_option
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
    concurrency: int | None,
    time_limit: float | None,
    steps: int | None,
    deterministic: bool,  # noqa: FBT001 - click passes flags so
    uncertainty: bool,  # noqa: FBT001 - click passes flags so
    markdown: Path | None,
    out: Path | None,
    frontend: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    workers: int,
    seed: int,
    **options: Any,
) -> int:
    """How far policies are from the best possible schedule of TRACE.

    TRACE is a file or a bundled name; chat-2000 if none is given. With --schedule the requests, limits
    and cost model are those of its file, and policies are simulated on them. The excess is certified: the
    optimum is either proven, or lies between a proven bound and the best known schedule, and the excess is
    given for both ends. The best known schedule is that of a fixed set of policies, of those listed, or of a
    search; which policies are listed changes nothing else. With --max-concurrency, and where the trace has
    sessions, each policy brings about arrivals of its own and is compared with the best schedule for these:
    JSON has a list of comparisons then, and the folder of --out one of each policy.

    \b
    cspsched compare --heuristics vllm sarathi
    cspsched compare trace.csv --objective ttft --out report
    cspsched compare trace.csv --objective misses --ttft-slo 2s --tpot-slo 50ms --time-limit 60s
    cspsched compare trace.csv --limit 500 --heuristics vllm:max_num_seqs=256 sarathi:chunk=512
    cspsched compare trace.csv --max-concurrency 32 --heuristics vllm sglang
    cspsched compare --schedule real=real.json --heuristics vllm
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.exact.watch import Listener
    from cspsched.report.output import require_writable, write_files
    from cspsched.report.table import markdown as as_markdown
    from cspsched.serving import cost_of, make_instance
    from cspsched.studies.closed import compare_closed
    from cspsched.studies.compare import compare_policies
    from cspsched.studies.provenance import provenance_of
    from cspsched.unused import warnings_for

    if concurrency is not None and schedules:
        raise UsageError(
            "--schedule has arrivals of its own, --max-concurrency makes others; give one of them"
        )
    if uncertainty and schedules:
        raise UsageError("--uncertainty prices other batch times, --schedule has its own; give one of them")
    for folder in filter(None, (out, markdown and markdown.parent)):
        require_writable(folder)
    warnings: list[str] = []
    source: Trace | str
    limits = reference_limits(time_limit, steps, workers, seed, deterministic=deterministic)
    if schedules:
        _refuse_other_instance()
        name, (instance, given), band = ", ".join(schedules), _read_schedules(schedules), None
        source, serving = name, None
    else:
        requests, serving = selected_trace(trace, options), instance_serving(options)
        source, name, instance, given = requests, requests.name, make_instance(requests, serving), {}
        warnings = warnings_for(requests, heuristics, closes_loops=True)
        tell_warnings(warnings)
        band = error_band(serving.cost or instance.cost.name) if uncertainty else None
    wanted = one_objective(objective, instance)
    cost = instance.cost.name if serving is None else cost_of(serving)
    around = chosen_frontend(frontend, cost)
    is_closed = not schedules and (concurrency is not None or instance.columns.session_id is not None)
    if is_closed and band is not None:
        raise UsageError(
            "--uncertainty prices other batch times, with which a closed loop has other arrivals"
        )
    with LiveLine(wanted, len(instance.requests)) as live:
        listener = Listener(step=live.tell, progress=live)
        if is_closed:
            found = compare_closed(
                instance, heuristics, wanted, concurrency=concurrency, limits=limits, listener=listener
            )
        else:
            found = (
                compare_policies(
                    instance, heuristics, wanted, schedules=given, limits=limits, band=band, listener=listener
                ),
            )
    comparisons = []
    for comparison, texts in zip(
        found, [[text] for text in heuristics] if is_closed else [heuristics], strict=True
    ):
        facts = provenance_of(
            comparison.instance,
            texts,
            objective=wanted.value,
            seed=seed,
            trace=source,
            serving=serving,
            command=command_line(),
        )
        comparisons.append(replace(comparison, warnings=tuple(warnings), provenance=facts, frontend=around))
    if as_json:
        data = [comparison.to_json() for comparison in comparisons]
        show(json.dumps({"schema": LOOPS_SCHEMA, "comparisons": data} if is_closed else data[0], indent=1))
    else:
        for comparison in comparisons:
            _show(name, comparison)
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: "\n".join(map(as_markdown, comparisons))})
    if out is not None:
        from cspsched.report.files import write_comparison

        for number, comparison in enumerate(comparisons, 1):
            folder = out / f"policy-{number}" if is_closed else out
            written = write_comparison(comparison, folder)
            tell(f"wrote {written[0]} and {len(written) - 1} more files to {folder}")
    return INTERRUPTED if any(comparison.is_interrupted for comparison in comparisons) else 0


def reference_limits(
    time_limit_s: float | None, steps: int | None, workers: int, seed: int, *, deterministic: bool
) -> ReferenceLimits:
    """Limits of the reference: by the clock if there is one, else by work and steps."""
    from cspsched.studies.reference import WORK_S, ReferenceLimits

    if time_limit_s is None or deterministic:
        work_s = WORK_S if time_limit_s is None else time_limit_s
        return ReferenceLimits(work_s=work_s, steps=steps, seed=seed)
    return ReferenceLimits(time_limit_s=time_limit_s, steps=steps, num_workers=workers, seed=seed)


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

    from cspsched.report.table import bounds_row, footnotes, header, rows

    instance, limits = comparison.instance, comparison.instance.limits
    show(
        f"{name}: {counted(len(instance.requests), 'request')}, {instance.cost.name}, "
        f"{limits.kv_blocks:,} KV blocks of {limits.block_tokens}, C {limits.max_batch_tokens:,}, "
        f"R {limits.max_batch_requests:,}"
    )
    lines = [header(comparison), *rows(comparison), *bounds_row(comparison)]
    console = Console(highlight=False)
    turned = list(map(list, zip(*lines, strict=True)))
    room = console.width if console.is_terminal else PIPE_WIDTH
    if _width(lines) > room >= _width(turned):
        lines = turned
    # A table that fits neither way is wrapped by the terminal: nothing may be cut off.
    width = max(console.width, _width(lines))
    Console(highlight=False, width=width, height=console.height).print(_table(lines))
    for note in footnotes(comparison):
        show(note)


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
