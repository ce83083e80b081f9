"""`cspsched trace describe`."""

from __future__ import annotations

import json
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cspsched.cli.console import begin, counted, show, tell, tell_warnings
from cspsched.cli.options import (
    SERVING_NAMES,
    instance_serving,
    json_option,
    optional_trace_argument,
    selected_trace,
    serving_options,
    trace_options,
)
from cspsched.cli.trace.values import value_text
from cspsched.errors import UsageError
from cspsched.units import percent

if TYPE_CHECKING:
    from cspsched.studies.load import Load
    from cspsched.trace import Trace
    from cspsched.trace.sharing import PrefixStatistics
    from cspsched.trace.statistics import TokenStatistics, TraceStatistics


@click.command("describe")
@optional_trace_argument
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for a picture of arrivals, lengths and shared prefixes, .png or .svg.",
)
@json_option
@trace_options
@serving_options
@click.pass_context
def describe_command(
    context: click.Context,
    /,
    trace: Path | None,
    plot: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Statistics of TRACE: how many requests, how fast, how long, how bursty.

    TRACE is a file of any known format (see 'cspsched trace list'), - for standard input, or a bundled name;
    chat-2000 if none is given. With a model, a device or another option of the set-up, the load there: what
    share of the device's time the requests need.

    \b
    cspsched trace describe trace.csv --window 0:60 --plot trace.png
    cspsched trace describe trace.csv --model llama-3.1-8b --device a100-80
    cspsched trace describe conversation.jsonl --format mooncake --dejitter uniform
    zcat trace.csv.gz | cspsched trace describe - --columns arrival=time:ms,prompt=in,output=out
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import describe

    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {plot}: expected a name that ends in .png or .svg")
    read = selected_trace(trace, options)
    statistics = describe(read)
    load = _load(read, context, options)
    tell_warnings(read.unused_sentences)
    if plot is not None:
        _write_picture(read, plot)
    if as_json:
        extra = {} if load is None else {"load": load.to_json()}
        show(json.dumps({**statistics.to_json(), **extra}, indent=1))
        return
    for name, text in [*_lines(statistics), *_load_lines(load)]:
        show(f"{name:16} {text}")
    for warning in statistics.warnings:
        show(f"warning: {warning}")


def _load(trace: Trace, context: click.Context, options: dict[str, Any]) -> Load | None:
    """Load on the set-up, if the command line says anything of one."""
    named = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if not named.intersection(SERVING_NAMES):
        return None
    from cspsched.serving import make_instance
    from cspsched.studies.load import load_of

    instance = make_instance(trace, instance_serving(options))
    begin("serving all requests at once for the load")
    return load_of(instance)


def _load_lines(load: Load | None) -> list[tuple[str, str]]:
    if load is None:
        return []
    rejected = f"; {counted(load.num_rejected, 'request')} never fit" if load.num_rejected else ""
    ends = f"{percent(load.at_least, ROUND_FLOOR)} to {percent(load.at_most, ROUND_CEILING)}"
    return [
        (
            "load",
            f"{ends} of the device's time: no scheduler needs less, {load.policy} needs no more{rejected}",
        ),
    ]


def _write_picture(trace: Trace, plot: Path) -> None:
    from cspsched.report.output import write_files
    from cspsched.report.trace import trace_picture

    write_files(plot.parent, {plot.name: trace_picture(trace, plot.suffix)})
    tell(f"wrote {plot}")


def _lines(statistics: TraceStatistics) -> list[tuple[str, str]]:
    tick_ns = statistics.tick_ns
    lines = [
        ("requests", f"{statistics.num_requests:,}"),
        ("span", _with_unit(statistics.span_s, "s")),
        ("rate", _with_unit(statistics.rate_per_s, "requests/s")),
        ("prompt", _tokens_text(statistics.prompt_tokens)),
        ("output", _tokens_text(statistics.output_tokens)),
        ("gaps", f"variation {value_text(statistics.interarrival_cv)} (1 is Poisson)"),
        ("counts in 60 s", f"variance over mean {value_text(statistics.dispersion_60s)} (1 is Poisson)"),
        ("prompt, output", f"rank correlation {value_text(statistics.spearman_prompt_output)}"),
        ("shortest gap", f"{_with_unit(None if tick_ns is None else tick_ns / 1e9, 's')} above 0"),
    ]
    return lines if statistics.prefix is None else [*lines, *_prefix_lines(statistics.prefix)]


def _prefix_lines(prefix: PrefixStatistics) -> list[tuple[str, str]]:
    return [
        (
            "prefix",
            f"{prefix.shared_share:.2%} of the prompt tokens stand in an earlier prompt: "
            "the hit rate of a cache without limits",
        ),
        (
            "",
            f"{counted(prefix.num_sharing, 'request')} with such tokens, "
            f"{_with_unit(prefix.shared_tokens_mean, 'tokens')} on average, "
            f"last used {_with_unit(prefix.reuse_s_p50, 's')} before (median)",
        ),
    ]


def _tokens_text(tokens: TokenStatistics) -> str:
    figures = {
        "mean": tokens.mean,
        "p50": tokens.p50,
        "p95": tokens.p95,
        "p99": tokens.p99,
        "max": tokens.max,
    }
    return ", ".join(f"{name} {value_text(value)}" for name, value in figures.items()) + " tokens"


def _with_unit(value: float | None, unit: str) -> str:
    return value_text(value) if value is None else f"{value_text(value)} {unit}"
