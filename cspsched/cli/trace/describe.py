"""`cspsched trace describe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import counted, show, tell_warnings
from cspsched.cli.options import json_option, optional_trace_argument, selected_trace, trace_options
from cspsched.cli.trace.values import value_text

if TYPE_CHECKING:
    from cspsched.trace.sharing import PrefixStatistics
    from cspsched.trace.statistics import TokenStatistics, TraceStatistics


@click.command("describe")
@optional_trace_argument
@json_option
@trace_options
def describe_command(
    trace: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Statistics of TRACE: how many requests, how fast, how long, how bursty.

    TRACE is a file of any known format (see 'cspsched trace list'), - for standard input, or a bundled name;
    chat-2000 if none is given.

    \b
    cspsched trace describe trace.csv --window 0:60
    cspsched trace describe conversation.jsonl --format mooncake --dejitter uniform
    zcat trace.csv.gz | cspsched trace describe - --columns arrival=time:ms,prompt=in,output=out
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.trace import describe

    read = selected_trace(trace, options)
    statistics = describe(read)
    tell_warnings(read.unused_sentences)
    if as_json:
        show(json.dumps(statistics.to_json(), indent=1))
        return
    for name, text in _lines(statistics):
        show(f"{name:16} {text}")
    for warning in statistics.warnings:
        show(f"warning: {warning}")


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
