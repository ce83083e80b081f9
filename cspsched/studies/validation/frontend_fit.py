"""A frontend constant fitted to measured runs: what clients waited for that no schedule explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from cspsched.costs.frontend import Frontend
from cspsched.errors import InputError
from cspsched.studies.validation.nouns import MeasuredRun
from cspsched.studies.validation.study import (
    Listener,
    RunRow,
    Settings,
    Validation,
    server_of,
    validate_runs,
)
from cspsched.units import NS_PER_S


@dataclass(frozen=True, kw_only=True)
class FittedFrontend:
    """A constant, and what it was fitted to.

    Attributes
    ----------
    left_out_s
        By run and stage, measured less simulated TTFT in seconds: the median, or the mean where the file has
        no median. The constant is their mean.
    cost
        Cost model of all runs, None if they have several.
    """

    frontend: Frontend
    validation: Validation
    left_out_s: tuple[tuple[str, float], ...]
    num_requests: int
    cost: str | Path | None
    has_two_clocks: bool


def fit_frontend(
    runs: Sequence[MeasuredRun], settings: Settings, source: str, listener: Listener = lambda *_: None
) -> FittedFrontend:
    """One constant for all rows: the mean of what the medians of TTFT were above the simulated ones.

    Medians, as a first request on a cold server is not what the frontend takes. All goes before the
    scheduler: what comes behind a token cannot be told from it by times that a client takes.

    Raises
    ------
    InputError
        If no TTFT was measured, or it is below the simulated one.
    UsageError, InputError
        As `validate_runs`.
    """
    off = replace(settings, frontend="off")
    found = validate_runs(runs, off, listener)
    rows = [(row, left) for row in found.rows if (left := _left_out_s(row)) is not None]
    if not rows:
        raise InputError(f"{source}: no TTFT was measured, and nothing else tells what a frontend takes")
    mean_s = fmean(left for _, left in rows)
    if mean_s < 0:
        raise InputError(
            f"{source}: clients had their first token {-mean_s * 1000:.1f} ms before the simulated engine; "
            "the cost model is too slow for a frontend to be fitted, compare with 'cspsched validate'"
        )
    costs = {server_of(run, off)[0].serving.cost for run in runs}
    return FittedFrontend(
        frontend=Frontend(request_ns=round(mean_s * NS_PER_S), source=source),
        validation=found,
        left_out_s=tuple((f"{row.run} {row.stage}".strip(), left) for row, left in rows),
        num_requests=sum(row.num_requests for row, _ in rows),
        cost=costs.pop() if len(costs) == 1 else None,
        has_two_clocks=any(run.has_two_clocks for run in runs),
    )


def _left_out_s(row: RunRow) -> float | None:
    for statistic in ("p50", "mean"):
        difference_s = row.difference_s("ttft", statistic)
        if difference_s is not None:
            return -difference_s
    return None
