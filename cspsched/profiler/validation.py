"""Judges a cost model: measured steps of a whole decoder against what the model says, raw and calibrated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cspsched.costs.fit import FloatArray, RelativeErrors, relative_errors
from cspsched.costs.models import LlmModel
from cspsched.errors import LimitError
from cspsched.problem.cost import CostModel
from cspsched.problem.request import Request
from cspsched.profiler.calibration import LEAST_BATCHES, Calibration, calibrate
from cspsched.profiler.compositions import (
    BatchLimits,
    Composition,
    Regime,
    draw_compositions,
    stack_features,
)
from cspsched.profiler.decoder import Decoder, composition_slots
from cspsched.profiler.replay import pick_spread, replay_batches
from cspsched.profiler.timing import CpuTimer, CudaTimer, Sample, Timer, measure
from cspsched.profiler.workbench import Workbench

VALIDATION_SCHEMA = "cspsched/validation/1"
NS_PER_US = 1e3
NEW_LINE = "\n"


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """What is measured.

    Attributes
    ----------
    batches
        Held-out batches, a quarter of each regime; every other one calibrates and the rest judge.
    loop_steps
        Consecutive batches of the replayed schedule, whose total time is compared; 0 for none.
    unified
        Whether the decoder's attention takes prefills and decodes in one kernel.
    time_budget_s
        When no further batch is begun; None for never.
    """

    model: LlmModel
    device: str
    limits: BatchLimits
    requests: tuple[Request, ...]
    seed: int
    batches: int = 120
    loop_steps: int = 0
    unified: bool = False
    repeats: int = 15
    time_budget_s: float | None = None


class Measured(NamedTuple):
    """A batch and what it took."""

    composition: Composition
    sample: Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """Measured batches with two predictions of each.

    Attributes
    ----------
    measured
        In the order of measuring; calibrating and judging batches are told apart by `judges`.
    judges
        Shape (num_batches,): whether a batch had no part in the calibration.
    measured_ns, raw_ns, calibrated_ns
        Shape (num_batches,).
    failed
        Why batches could not be run, each reason once.
    loop
        Totals over consecutive batches in nanoseconds: measured, raw, calibrated; None if not all were run.
    """

    measured: tuple[Measured, ...]
    judges: np.ndarray[Any, np.dtype[np.bool_]]
    measured_ns: FloatArray
    raw_ns: FloatArray
    calibrated_ns: FloatArray
    calibration: Calibration
    failed: tuple[str, ...] = ()
    loop: tuple[float, float, float] | None = None

    def errors(self, predicted_ns: FloatArray, regime: Regime | None = None) -> RelativeErrors | None:
        """Errors on the judging batches, of one regime or of all; None if there are none."""
        of_regime = [regime in (None, batch.composition.regime) for batch in self.measured]
        chosen = self.judges & np.array(of_regime)
        if not chosen.any():
            return None
        return relative_errors(predicted_ns[chosen], self.measured_ns[chosen])

    def table(self) -> list[dict[str, Any]]:
        """Errors in percent by regime, and over all; the judging batches only."""
        rows = []
        for regime in (*Regime, None):
            raw, calibrated = self.errors(self.raw_ns, regime), self.errors(self.calibrated_ns, regime)
            if raw is not None and calibrated is not None:
                names = [batch.composition.regime for batch in self.measured]
                count = sum(regime in (None, names[k]) for k in np.flatnonzero(self.judges))
                rows.append({"regime": regime or "all", "batches": count, **_columns(raw, calibrated)})
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, every batch included."""
        calibration = self.calibration
        return {
            "schema": VALIDATION_SCHEMA,
            "errors_percent": self.table(),
            "step_ns": calibration.step_ns,
            "factors": calibration.factors,
            "failed": list(self.failed),
            "loop_ns": dict(zip(("measured", "raw", "calibrated"), self.loop, strict=True))
            if self.loop
            else None,
            "batches": [self._batch_json(k) for k in range(len(self.measured))],
        }

    def _batch_json(self, k: int) -> dict[str, Any]:
        composition, sample = self.measured[k]
        return {
            "regime": composition.regime,
            "judges": bool(self.judges[k]),
            "prefills": [list(chunk) for chunk in composition.prefills],
            "decodes": [chunk.context for chunk in composition.decodes],
            "num_generating": composition.num_generating,
            "measured_us": round(sample.median_us, 3),
            "iqr_us": round(sample.iqr_us, 3),
            "noisy": sample.noisy,
            "raw_us": round(float(self.raw_ns[k]) / NS_PER_US, 3),
            "calibrated_us": round(float(self.calibrated_ns[k]) / NS_PER_US, 3),
        }


def validate(
    cost: CostModel,
    settings: ValidationSettings,
    on_batch: Callable[[int, int, Measured], None],
    clock: Callable[[], float] = time.monotonic,
) -> Validation:
    """Measure held-out batches with a whole decoder and compare.

    Parameters
    ----------
    on_batch
        Called after each batch with how many are done, how many there are, and the last.

    Raises
    ------
    UsageError
        If torch or the device is missing.
    LimitError
        If the time was up before enough batches were measured.
    """
    start_s, rng = clock(), np.random.default_rng(settings.seed)
    replayed = replay_batches(settings.requests, cost, settings.limits)
    quarter = max(1, settings.batches // len(Regime))
    drawn = draw_compositions(quarter, settings.limits, rng) + pick_spread(replayed, quarter, rng)
    # Every other batch of each regime judges; the order of measuring is random, so that a cut takes of all.
    judging = {id(batch) for regime in Regime for batch in _of(drawn, regime)[1::2]}
    batches = [drawn[k] for k in rng.permutation(len(drawn))]
    loop = replayed[: settings.loop_steps]
    total = len(batches) + len(loop)
    held_out: list[Measured] = []
    looped: list[Measured] = []
    failed: list[str] = []
    for number, result in enumerate(_measure_steps([*batches, *loop], settings), start=1):
        if isinstance(result, str):
            failed.append(result)
        else:
            (held_out if number <= len(batches) else looped).append(result)
            on_batch(number, total, result)
        if settings.time_budget_s is not None and clock() - start_s >= settings.time_budget_s:
            break
    judges = np.array([id(batch.composition) in judging for batch in held_out], dtype=np.bool_)
    if np.count_nonzero(~judges) < LEAST_BATCHES or not judges.any():
        raise LimitError(
            f"{len(held_out)} of {len(batches)} batches were measured, too few to calibrate and judge; "
            + (f"the first that failed: {failed[0]}" if failed else "give more --time-budget or --batches")
        )
    found = _compared(cost, tuple(held_out), judges, looped if len(looped) == len(loop) else [])
    return replace(found, failed=tuple(dict.fromkeys(failed)))


def _compared(
    cost: CostModel, held_out: tuple[Measured, ...], judges: Any, looped: Sequence[Measured]
) -> Validation:
    times_ns = _times_ns(held_out)
    features = stack_features([batch.composition for batch in held_out])
    calibrating = type(features)(*(column[~judges] for column in features))
    calibration = calibrate(cost, calibrating, times_ns[~judges])
    return Validation(
        measured=held_out,
        judges=judges,
        measured_ns=times_ns,
        raw_ns=predicted_ns(cost, held_out),
        calibrated_ns=predicted_ns(calibration.cost, held_out),
        calibration=calibration,
        loop=(
            float(_times_ns(looped).sum()),
            float(predicted_ns(cost, looped).sum()),
            float(predicted_ns(calibration.cost, looped).sum()),
        )
        if looped
        else None,
    )


def predicted_ns(cost: CostModel, batches: Sequence[Measured]) -> FloatArray:
    """What a cost model says, shape (num_batches,)."""
    features = [batch.composition.features() for batch in batches]
    return np.array([cost.batch_time_ns(batch) for batch in features], dtype=np.float64)


def _measure_steps(batches: Sequence[Composition], settings: ValidationSettings) -> Iterator[Measured | str]:
    """Measure batch by batch, lazily; where torch cannot run one, why.

    Raises
    ------
    LimitError
        If nothing works on the device any more.
    """
    bench = Workbench(settings.model, settings.device, seed=settings.seed)
    timer: Timer = CudaTimer(bench.torch) if settings.device == "cuda" else CpuTimer()
    slots = max(composition_slots(batch) for batch in batches)
    with bench.torch.inference_mode():
        decoder = Decoder(bench, kv_tokens=slots, unified=settings.unified)
        for batch in batches:
            result: Measured | str
            try:
                result = Measured(batch, measure(timer, [decoder.step(batch)], repeats=settings.repeats))
            except Exception as error:  # noqa: BLE001 - as in a profile: one batch less
                result = f"{batch.regime}: {str(error).partition(NEW_LINE)[0] or type(error).__name__}"
                bench.require_device()
            yield result


def _of(batches: Sequence[Composition], regime: Regime) -> list[Composition]:
    return [batch for batch in batches if batch.regime is regime]


def _times_ns(batches: Sequence[Measured]) -> FloatArray:
    return np.array([batch.sample.median_us for batch in batches]) * NS_PER_US


def _columns(raw: RelativeErrors, calibrated: RelativeErrors) -> dict[str, float]:
    named = (("raw", raw), ("calibrated", calibrated))
    return {
        f"{name} {figure}": round(100 * value, 2)
        for name, errors in named
        for figure, value in zip(("MAPE", "p95", "bias"), errors, strict=True)
    }
