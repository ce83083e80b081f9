"""`cspsched explain`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cspsched.cli.compare import reference_limits
from cspsched.cli.console import LiveLine, show, tell, tell_rejections, tell_warnings
from cspsched.cli.group import INTERRUPTED, command_line
from cspsched.cli.options import (
    Duration,
    ManyValuesCommand,
    heuristics_option,
    instance_serving,
    json_option,
    objective_option,
    one_objective,
    optional_trace_argument,
    seed_option,
    selected_trace,
    serving_options,
    trace_options,
    workers_option,
)

PARTS = ("causes", "information", "prices")


@click.command("explain", cls=ManyValuesCommand)
@optional_trace_argument
@heuristics_option
@click.option(
    "--parts",
    type=click.Choice(PARTS),
    multiple=True,
    default=PARTS,
    metavar="PART...",
    help="What is explained: causes (which decision costs what), information (what is owed to ignorance, for "
    "all built-in policies), prices (what 5 % more of each limit saves).  "
    "[default: causes information prices]",
)
@click.option("--request", metavar="ID", help="Also why this request waited, span by span.")
@objective_option
@click.option(
    "--time-limit",
    type=Duration(),
    help="Longest wait for each reference: one, and three more for the prices.  [default: none; work and "
    "steps are counted, and the result repeats to the byte]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    help="Steps of the search for the best known schedule.  [default: as compare]",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="File for the tables in Markdown."
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="File for the tables as one HTML page."
)
@json_option
@workers_option
@seed_option
@trace_options
@serving_options
def explain_command(
    trace: Path | None,
    heuristics: tuple[str, ...],
    parts: tuple[str, ...],
    request: str | None,
    objective: str,
    time_limit: float | None,
    steps: int | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    workers: int,
    seed: int,
    **options: Any,
) -> int:
    """Why policies are above the optimum of TRACE.

    TRACE is a file or a bundled name; chat-2000 if none is given. The causes of a policy's excess over
    the best known schedule are differences of simulated schedules, each with one more decision of the best
    known one; they add up to the excess. Ctrl-C keeps what was found.

    \b
    cspsched explain --heuristics vllm sarathi
    cspsched explain trace.csv --heuristics sarathi:chunk=512 --parts causes --json
    cspsched explain trace.csv --heuristics vllm --request r17 --parts prices --kv-blocks 3000
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.exact.watch import Listener
    from cspsched.report import explain as report
    from cspsched.report.output import require_writable, write_files
    from cspsched.serving import make_instance
    from cspsched.studies.explain import ExplanationTask, Part, explain
    from cspsched.studies.provenance import provenance_of
    from cspsched.unused import warnings_for

    for place in filter(None, (markdown, html)):
        require_writable(place.parent)
    limits = reference_limits(time_limit, steps, workers, seed, deterministic=False)
    requests = selected_trace(trace, options)
    serving = instance_serving(options)
    instance = make_instance(requests, serving)
    warnings = warnings_for(requests, heuristics)
    tell_warnings(warnings)
    task = ExplanationTask(
        instance=instance,
        objective=one_objective(objective, instance),
        heuristics=heuristics,
        parts=tuple(map(Part, parts)),
        request=request,
        limits=limits,
    )
    with LiveLine(task.objective, len(instance.requests)) as live:
        explanation = explain(task, listener=Listener(step=live.tell, progress=live))
    tell_rejections(explanation.rejections)
    facts = provenance_of(
        explanation.instance,
        heuristics,
        objective=task.objective.value,
        seed=seed,
        trace=requests,
        serving=serving,
        command=command_line(),
    )
    explanation = replace(explanation, warnings=tuple(warnings), provenance=facts)
    if as_json:
        show(json.dumps(explanation.to_json(), indent=1))
    else:
        show(f"{requests.name}\n\n{report.text(explanation)}")
    for file, written in ((markdown, report.markdown), (html, report.page)):
        if file is not None:
            write_files(file.parent, {file.name: written(explanation)})
            tell(f"wrote {file}")
    return INTERRUPTED if explanation.interrupted else 0
