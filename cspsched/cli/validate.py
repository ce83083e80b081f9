"""`cspsched validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cspsched.cli.console import Tally, show, tell
from cspsched.cli.options import (
    Option,
    instance_serving,
    json_option,
    serving_options,
)
from cspsched.errors import UsageError


@click.command("validate")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--heuristics",
    "policy",
    cls=Option,
    aliases=("--policy",),
    metavar="POLICY",
    help="Policy of the server.  [default: what the run's file says, else vLLM as it comes]",
)
@click.option(
    "--frontend",
    metavar="WHAT",
    help="Added to a client's TTFT and latency: a time (7.5ms), cost, a shipped name, a file, or off.  "
    "[default: what the run's file says, else off]",
)
@click.option(
    "--arrivals",
    type=click.Choice(["scaled", "poisson", "even"]),
    help="Gaps of a stage with a rate: exponential and scaled to fill it, exponential, or equal.  "
    "[default: the file's, else scaled]",
)
@click.option(
    "--prompts",
    type=click.IntRange(min=0),
    help="Different prompts that the client takes in turn; 0: all are different.  "
    "[default: the file's; 100 where prompts share a system prompt, else 0]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Simulations of every stage, each with arrivals of its own; figures are their means.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="File for a picture of the errors, .png."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="File for the table in Markdown."
)
@json_option
@serving_options
def validate_command(
    runs: tuple[Path, ...],
    policy: str | None,
    frontend: str | None,
    arrivals: str | None,
    prompts: int | None,
    seeds: int,
    plot: Path | None,
    markdown: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Simulate measured RUNS and print how far TTFT, TPOT and latency are off.

    A run is a CSV of load stages with rates (or requests in flight) and measured means and percentiles, a
    requests.jsonl with the times of single requests (vLLM's configuration beside it as meta.json), a TOML
    file that describes either, or a folder with one of these. Model, device, limits and policy are those of
    the run as far as its file says; options go before.

    \b
    cspsched validate stages.csv --frontend vllm-openai --plot errors.png
    cspsched validate run/requests.jsonl --model llama-3.1-8b --device h100
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.report import validation as report
    from cspsched.report.output import require_writable, write_files
    from cspsched.studies.validation import Settings, read_runs, validate_runs
    from cspsched.studies.validation.nouns import Arrivals

    if plot is not None and plot.suffix != ".png":
        raise UsageError(f"--plot {plot}: expected a name that ends in .png")
    for file in filter(None, (plot, markdown)):
        require_writable(file.parent)
    settings = Settings(
        serving=instance_serving(options),
        policy=policy,
        frontend=frontend,
        arrivals=None if arrivals is None else Arrivals(arrivals),
        prompts=prompts,
        seeds=seeds,
    )
    measured = read_runs(runs)
    with Tally("simulating") as count:
        found = validate_runs(measured, settings, count.update)
    show(json.dumps(found.to_json(), indent=1) if as_json else report.text(found))
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: report.markdown(report.table(found))})
    if plot is not None:
        write_files(plot.parent, {plot.name: report.picture(found)})
        tell(f"wrote {plot}")
