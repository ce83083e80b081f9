"""`cspsched profile validate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import Tally, show, tell
from cspsched.cli.options import (
    BUNDLED_TRACE,
    MOST_SEED,
    Duration,
    json_option,
    out_type,
    selected_trace,
    trace_options,
)
from cspsched.cli.profile_options import measuring_device_option, repeats_option

if TYPE_CHECKING:
    from cspsched.costs.presets import CostInfo
    from cspsched.profiler.validation import Validation

GATE_FAILED = 3
LIMITS = {
    "cuda": {"max_tokens": 8192, "max_requests": 256, "max_kv_tokens": 524288, "max_context": 16384},
    "cpu": {"max_tokens": 512, "max_requests": 32, "max_kv_tokens": 16384, "max_context": 1500},
}
"""Largest drawn batches: where an engine works on a large GPU; what a core does in a fraction of a second."""
ALL_REGIMES = "all"


@click.command("validate")
@click.option("--cost", required=True, help="Cost model: a name (see 'cspsched costs') or a TOML/JSON file.")
@click.option("--model", help="LLM (see 'cspsched models').  [default: the cost model's]")
@measuring_device_option
@click.option(
    "--batches",
    type=click.IntRange(min=24),
    default=120,
    show_default=True,
    help="Held-out batches; one half calibrates, the other judges.",
)
@click.option(
    "--loop-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Consecutive batches of the replayed schedule whose total time is compared, too.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help=f"Trace that is replayed under Sarathi.  [default: {BUNDLED_TRACE}]",
)
@trace_options
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=2),
    help="Largest batch in tokens.  [default: by the device]",
)
@click.option(
    "--max-batch-requests",
    type=click.IntRange(min=2),
    help="Largest batch in requests.  [default: by the device]",
)
@click.option(
    "--kv-tokens", type=click.IntRange(min=4), help="Most KV entries of a batch.  [default: by the device]"
)
@click.option(
    "--max-context",
    type=click.IntRange(min=2),
    help="Longest context of a request.  [default: by the device]",
)
@click.option(
    "--attention",
    type=click.Choice(["split", "unified"]),
    default="split",
    show_default=True,
    help="Whether prefills and decodes have an attention kernel each, or one together.",
)
@click.option("--time-budget", type=Duration(), help="Begin no further batch after this time.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=MOST_SEED),
    default=1,
    show_default=True,
    help="Seed of the batches drawn, of their order, and of the data.",
)
@repeats_option
@click.option(
    "--gate",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    help="Exit with code 3 if the calibrated mean error is above this.",
)
@click.option(
    "--out", type=out_type, help="Folder for validation.json and the calibrated cost model, cost.json."
)
@json_option
def validate_command(
    cost: str, model: str | None, device: str | None, gate: float | None, out: Path | None,
    as_json: bool, **options: Any,  # noqa: FBT001 - click passes flags so
) -> int:  # fmt: skip
    """Judge a cost model by whole steps of a decoder that are measured here.

    A decoder with random weights runs held-out batches: decodes only, prefills only, both, and batches of a
    schedule. Raw errors are those of the cost model as it is; for the calibrated ones the step time and a
    factor for each group of terms are fitted to one half of the batches. Both are of the other half.

    \b
    cspsched profile validate --cost cost.json --model tiny-llama --device cpu --out validation
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.models import load_model
    from cspsched.costs.presets import DEFAULT_MODEL, describe_cost, load_cost
    from cspsched.profiler.backends import default_device
    from cspsched.profiler.validation import ValidationSettings, validate

    info = describe_cost(cost)
    name, device = model or info.model or DEFAULT_MODEL, device or default_device()
    trace = selected_trace(options.pop("trace"), options)
    settings = ValidationSettings(
        model=load_model(name),
        device=device,
        limits=_limits(device, options),
        requests=tuple(trace.requests),
        unified=options.pop("attention") == "unified",
        time_budget_s=options.pop("time_budget"),
        **options,
    )
    with Tally(f"measuring {name}") as count:
        found = validate(
            load_cost(cost),
            settings,
            lambda done, total, batch: count.update(
                done, total, f"{batch.composition.regime} {batch.sample.median_us:.0f} us"
            ),
        )
    for reason in found.failed:
        tell(f"not measured: {reason}")
    if out is not None:
        _write(found, info, name, out)
    show(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(_lines(found)))
    worst = next(row["calibrated MAPE"] for row in found.table() if row["regime"] == ALL_REGIMES)
    if gate is not None and worst > gate:
        tell(f"the calibrated mean error is {worst} %, the gate is {gate:g} %")
        return GATE_FAILED
    return 0


def _limits(device: str, options: dict[str, Any]) -> Any:
    from cspsched.profiler.compositions import BatchLimits

    given = {
        "max_tokens": options.pop("max_batch_tokens"),
        "max_requests": options.pop("max_batch_requests"),
        "max_kv_tokens": options.pop("kv_tokens"),
        "max_context": options.pop("max_context"),
    }
    return BatchLimits(**{name: given[name] or default for name, default in LIMITS[device].items()})


def _lines(found: Validation) -> Iterator[str]:
    """Errors as a table, and what the calibration changed."""
    rows = found.table()
    yield "errors in %       " + "".join(f"{name:>17}" for name in list(rows[0])[2:])
    for row in rows:
        regime, batches, *figures = row.values()
        yield f"{regime:8}{batches:4} batches" + "".join(f"{figure:17.2f}" for figure in figures)
    factors = ", ".join(f"{name} x {factor:g}" for name, factor in found.calibration.factors.items())
    yield f"calibrated: step {found.calibration.step_ns / 1e6:.3f} ms, {factors}"
    if found.loop is not None:
        measured, raw, calibrated = found.loop
        yield (
            f"loop: {measured / 1e6:.1f} ms measured, raw {raw / measured - 1:+.2%}, "
            f"calibrated {calibrated / measured - 1:+.2%}"
        )


def _write(found: Validation, info: CostInfo, model: str, folder: Path) -> None:
    """The figures with every batch, and the calibrated cost model with where it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    described = {name: value for name, value in asdict(info).items() if name != "name" and value is not None}
    described |= {
        "model": model,
        "title": f"{info.title}, calibrated",
        "source": f"{info.source}; calibrated by 'cspsched profile validate'",
    }
    text = json.dumps({**found.calibration.cost.to_json(), **described}, indent=1)
    (folder / "cost.json").write_text(text + "\n", encoding="utf-8")
