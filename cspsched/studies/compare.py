"""Policies on a trace, each with its certified excess over the best possible schedule."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cspsched.bounds.misses import percentiles_ns
from cspsched.costs.frontend import Frontend
from cspsched.errors import InputError, UsageError
from cspsched.exact.watch import SILENT, Listener
from cspsched.improve.rivals import Rival, Run, run_rivals, with_hits_of
from cspsched.policies.base import DEFAULT_HEURISTICS
from cspsched.problem.cost import CostModel
from cspsched.problem.excess import Excess
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import StopReason, tool_versions, unit_of
from cspsched.problem.schedule import Schedule
from cspsched.referee.judge import judge
from cspsched.referee.metrics import Metrics
from cspsched.studies.cache_share import CacheShare, cache_share
from cspsched.studies.provenance import Provenance
from cspsched.studies.reference import Reference, ReferenceLimits, find_reference
from cspsched.units import NS_PER_S, percent

if TYPE_CHECKING:
    from pandas import DataFrame

PERCENTILES = (50, 90, 99)
COMPARISON_SCHEMA = "cspsched/comparison/3"
ENDS = ("fast", "slow")
"""Ends of a cost model's error band: all batches are fast, or all are slow."""
CLAIRVOYANT = (
    "The reference is clairvoyant: it knows all arrivals and output lengths in advance, "
    "which no running policy can."
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PolicyRow:
    """One policy: its metrics and how far it is from the reference."""

    policy: str
    metrics: Metrics
    value_ns: int
    excess: Excess

    @classmethod
    def of(cls, rival: Rival, reference: Reference) -> PolicyRow:
        """What a policy reaches, against a reference for the same instance and objective."""
        return cls(
            policy=rival.policy,
            metrics=rival.whole_run.metrics,
            value_ns=rival.value_ns,
            excess=reference.excess(rival.value_ns),
        )

    def __repr__(self) -> str:
        return f"<{self.policy}: excess {_interval(self.excess)}>"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """Policies on the servable part of an instance, in the order in which they were named.

    Attributes
    ----------
    limits
        What the reference was given to find.
    ends
        The same comparison with the batch times of the ends of the cost model's error band, by name; empty
        if it was not asked for.
    percentile_bounds_ns
        Certified: no schedule has a lower percentile of latency or TTFT; by objective and percentile.
    cache
        What prefix cache hits do to the reference; None where none are allowed.
    warnings
        What of the trace or of the policies' settings does nothing, in sentences.
    provenance
        Where all this comes from, if it was stated.
    frontend
        What reports add to a client's TTFT and latency; no value, bound or excess has it.
    arrivals
        A sentence on where arrivals come from that are not those of the trace.
    """

    instance: Instance
    objective: AnyObjective
    rows: tuple[PolicyRow, ...]
    reference: Reference
    rejections: tuple[Rejection, ...]
    limits: ReferenceLimits
    ends: Mapping[str, Comparison] = field(default_factory=dict)
    percentile_bounds_ns: Mapping[Objective, Mapping[int, int]] = field(default_factory=dict)
    cache: CacheShare | None = None
    warnings: tuple[str, ...] = ()
    provenance: Provenance | None = None
    frontend: Frontend | None = None
    arrivals: str | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C ended a search."""
        whole = (self, *self.ends.values())
        return any(one.reference.stop_reason is StopReason.INTERRUPTED for one in whole)

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.policy} {_interval(row.excess)}" for row in self.rows)
        return f"<Comparison of {len(self.instance.requests):,} requests by {self.objective.label}: {rows}>"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        from cspsched.report.table import html

        return html(self)

    def to_html(self, path: str | Path) -> Path:
        """Write the page, one file with everything inside; returns its path.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        from cspsched.report.html import write_page

        return write_page(self, path)

    def to_frame(self) -> DataFrame:
        """A row a policy: value, excess, and the metrics; statistics are columns such as `ttft_s.p99`."""
        from pandas import json_normalize

        frame: DataFrame = json_normalize(self.to_json()["policies"])
        return frame

    def to_json(self) -> dict[str, Any]:
        """Everything that a report shows, with a schema version and units in the names."""
        return {
            "schema": COMPARISON_SCHEMA,
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
            "fingerprint": self.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": len(self.instance.requests),
            "rejected": [rejection.reason for rejection in self.rejections],
            "limits": self.instance.limits.to_json(),
            "cost": self.instance.cost.name,
            "seed": self.limits.seed,
            "repeats": self.limits.repeats,
            "warnings": list(self.warnings),
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "frontend": None if self.frontend is None else self.frontend.to_json(),
            "arrivals": self.arrivals,
            "percentile_bounds": {
                f"{objective}_s": {f"p{percent}": value_ns / NS_PER_S for percent, value_ns in bounds.items()}
                for objective, bounds in self.percentile_bounds_ns.items()
            },
            **self._figures(),
            **({"uncertainty": {end: one._figures() for end, one in self.ends.items()}} if self.ends else {}),
        }

    def _figures(self) -> dict[str, Any]:
        """The reference and a row for each policy."""
        requests, reference = len(self.instance.requests), self.reference
        return {
            "reference": {**reference.to_json(self.objective, requests), "note": CLAIRVOYANT},
            **({} if self.cache is None else {"prefix_cache": self.cache.to_json()}),
            "policies": [self._row(row) for row in self.rows],
        }

    def _row(self, row: PolicyRow) -> dict[str, Any]:
        metrics = row.metrics.to_json()
        return {
            "policy": row.policy,
            "value_ns": row.value_ns,
            "excess_at_least": row.excess.at_least,
            "excess_at_most": row.excess.at_most,
            **metrics,
            **({} if self.frontend is None else self.frontend.client_s(metrics)),
        }


def compare_policies(
    instance: Instance,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    objective: AnyObjective = Objective.LATENCY,
    *,
    schedules: Mapping[str, Schedule] | None = None,
    limits: ReferenceLimits | None = None,
    band: tuple[CostModel, CostModel] | None = None,
    listener: Listener = SILENT,
) -> Comparison:
    """Simulate each policy, judge it by the referee, and certify how far it is from the best schedule.

    Requests that can never be served are rejected, counted and left out, the same for every policy. The
    reference is found by one procedure that does not know which policies were named (`find_reference`), but
    for this: where one caches prefixes, or a schedule has hits, all are measured against the best schedule
    with hits.

    Parameters
    ----------
    heuristics
        Policies with their settings, such as `vllm:max_num_seqs=256`.
    schedules
        Finished schedules of this very instance by name, such as one imported from a real engine's log; they
        are judged and measured like those of the policies, and stand above them.
    limits
        How much goes into the reference; by default what repeats to the byte.
    band
        Fast and slow cost models: the comparison is made again with the batch times of both, in full, as if
        the fit's errors (p10 and p90) all went the same way.

    Raises
    ------
    UsageError
        If there is no policy and no schedule, one is named twice or is unknown, or a policy emulates bugs
        that change what requests generate; if a band is given with schedules, which have batch times of
        their own.
    InputError
        If a schedule breaks a rule of the problem.
    """
    texts, given = list(heuristics), dict(schedules or {})
    instance = with_hits_of(instance, texts, given.values())
    limits = limits or ReferenceLimits()
    if band is not None and given:
        raise UsageError("an error band prices other batch times than the schedules have; give one of them")
    part = limits if band is None else limits.share(1 / (1 + len(ENDS)))
    whole = _Asked(instance, objective, texts, part)
    comparison = _compared(whole, given, PERCENTILES, listener)
    ends = {}
    for end, cost in zip(ENDS, band or (), strict=False):
        listener.step(f"comparing again, all batches {end}")
        ends[end] = _compared(whole._replace(instance=replace(instance, cost=cost)), {}, (), listener)
    return replace(comparison, limits=limits, ends=ends)


class _Asked(NamedTuple):
    """What is compared."""

    instance: Instance
    objective: AnyObjective
    heuristics: list[str]
    limits: ReferenceLimits


def _compared(
    asked: _Asked, schedules: Mapping[str, Schedule], percentiles: Sequence[int], listener: Listener
) -> Comparison:
    """The comparison under one cost model."""
    started, objective, texts = time.monotonic(), asked.objective, asked.heuristics
    servable, rejections = asked.instance.split_rejected()
    measured = tuple(_given(servable, objective, name, one) for name, one in schedules.items())
    policies = run_rivals(servable, objective, texts, listener.step) if texts or not schedules else ()
    _refuse_twice([one.policy for one in (*measured, *policies)])
    bounds_ns = _percentile_bounds(servable, percentiles, listener)
    left = asked.limits.after(time.monotonic() - started)
    reference = find_reference(servable, objective, policies, measured, limits=left, listener=listener)
    return Comparison(
        instance=servable,
        objective=objective,
        rows=tuple(PolicyRow.of(one, reference) for one in (*measured, *policies)),
        reference=reference,
        rejections=rejections,
        limits=asked.limits,
        percentile_bounds_ns=bounds_ns,
        cache=cache_share(servable, objective, reference),
    )


def _percentile_bounds(
    instance: Instance, percentiles: Sequence[int], listener: Listener
) -> dict[Objective, dict[int, int]]:
    if not percentiles:
        return {}
    listener.step("bounding percentiles")
    return {
        objective: percentiles_ns(instance, percentiles, objective)
        for objective in (Objective.LATENCY, Objective.TTFT)
    }


def _given(instance: Instance, objective: AnyObjective, name: str, schedule: Schedule) -> Rival:
    """A schedule from outside, judged and measured."""
    judged = judge(instance, schedule)
    if judged.violations:
        message = judged.violations[0].message
        raise InputError(f"schedule {name!r} breaks a rule: {message}; see 'cspsched check'")
    run = Run(schedule=schedule, metrics=judged.metrics)
    return Rival(policy=name, value_ns=judged.metrics.objective_ns(objective), run=run)


def _refuse_twice(names: list[str]) -> None:
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise UsageError(f"{twice[0]!r} is named twice; give each policy and schedule a name of its own")


def _interval(excess: Excess) -> str:
    """Both ends, rounded outwards."""
    least = "?" if excess.at_least is None else percent(excess.at_least, ROUND_FLOOR)
    most = "?" if excess.at_most is None else percent(excess.at_most, ROUND_CEILING)
    return f"{least} to {most}"
