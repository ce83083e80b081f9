"""`cspsched import-schedule`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from cspsched.cli.console import show, tell
from cspsched.cli.options import json_option, objective_option, one_objective, output_option

IMPORT_SCHEMA = "cspsched/import/1"
file_type = click.Path(path_type=Path, dir_okay=False)


@click.command("import-schedule")
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--trace",
    type=file_type,
    help="Requests on the log's clock: request_id, arrival, prompt_tokens, output_tokens, ...  "
    "[default: those that the log knows]",
)
@click.option(
    "--config",
    type=file_type,
    help="JSON file of the engine's configuration, for what the log does not say itself.",
)
@click.option("--cost", help="Cost model that prices the batches.  [default: the configuration's]")
@click.option(
    "--times",
    type=click.Choice(["model", "recorded"]),
    default="model",
    show_default=True,
    help="Start every batch as early as the cost model allows, or not before the engine did.",
)
@output_option("File for the schedule.", "--save", required=True)
@objective_option
@json_option
def import_schedule_command(
    log: Path,
    trace: Path | None,
    config: Path | None,
    cost: str | None,
    times: str,
    output: Path,
    objective: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> None:
    """Turn the log of a real engine's scheduler into a schedule.

    LOG has one JSON line an iteration (docs/recording.md), plain or .gz; its end may be cut off. The batches
    are the engine's, their durations those of the cost model, so that 'check' can judge the schedule and
    'compare' can set it beside policies and the optimum. Requests that never finish are left out.

    \b
    cspsched import-schedule run.jsonl --cost h100-llama-3.1-8b --output real.json
    cspsched check real.json
    cspsched compare --schedule real=real.json --heuristics vllm sarathi
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.presets import load_cost
    from cspsched.recording.cases import read_config
    from cspsched.recording.imported import Times, import_recording
    from cspsched.recording.log import read_recording
    from cspsched.recording.values import read_requests
    from cspsched.report.output import require_writable, write_files

    require_writable(output.parent)
    recording = read_recording(log)
    imported = import_recording(
        recording,
        read_requests(trace) if trace is not None else recording.requests,
        {**(read_config(config) if config is not None else {}), **recording.config},
        cost=load_cost(cost) if cost is not None else None,
        times=Times(times),
        where=str(log),
    )
    wanted = one_objective(objective, imported.result.instance)
    value_ns = imported.metrics.objective_ns(wanted)
    result = replace(imported.result, objective=wanted, primal_ns=value_ns)
    for note in imported.notes:
        tell(note)
    if recording.num_cut_off:
        tell(f"the last {recording.num_cut_off} iterations have no output yet and are left out")
    write_files(output.parent, {output.name: json.dumps(result.to_json()) + "\n"})
    if as_json:
        data = {"schema": IMPORT_SCHEMA, "source": result.found_by, "notes": list(imported.notes)}
        show(json.dumps({**data, **imported.metrics.to_json()}, indent=1))
    tell(f"wrote {output}")
