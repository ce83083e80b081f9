"""Policies on a trace, each with its certified excess over the best possible schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cspsched.bounds import best_bound
from cspsched.errors import InputError, InternalError, UsageError
from cspsched.exact.search import Progress, SearchLimits
from cspsched.exact.solver import solve_exactly
from cspsched.improve import ImproveLimits, find_better
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.metrics import Metrics, Objective, measure
from cspsched.problem.referee import find_violations
from cspsched.problem.result import StopReason, tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.simulate import Policy, Simulation
from cspsched.simulate.kernel import run_policy
from cspsched.solving import DEFAULT_HEURISTICS

COMPARISON_SCHEMA = "cspsched/comparison/1"
SMALL_CELLS = 1_500
"""Requests times batches up to which a comparison tries to find the exact optimum."""
CLAIRVOYANT = (
    "The reference is clairvoyant: it knows all arrivals and output lengths in advance, "
    "which no running policy can."
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the policies are measured against. Values in nanoseconds."""

    best_known_ns: int
    best_known_by: str
    bound_ns: int
    certificate: str
    stop_reason: StopReason

    @property
    def is_optimum(self) -> bool:
        """Whether the best known schedule is proven optimal."""
        return self.best_known_ns == self.bound_ns


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyRow:
    """One policy: its metrics and how far it is from the reference."""

    policy: str
    metrics: Metrics
    value_ns: int
    excess: tuple[float, float]
    """Certified interval of (policy - optimum) / optimum: over the best known schedule, over the bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Policies on the servable part of an instance, in the order in which they were named."""

    instance: Instance
    objective: Objective
    rows: tuple[PolicyRow, ...]
    reference: Reference
    rejections: tuple[Rejection, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything that a report shows, with a schema version and units in the names."""
        requests, reference = len(self.instance.requests), self.reference
        return {
            "schema": COMPARISON_SCHEMA,
            "objective": self.objective.value,
            "fingerprint": self.instance.fingerprint(),
            "versions": tool_versions(),
            "num_requests": requests,
            "rejected": [rejection.reason for rejection in self.rejections],
            "limits": self.instance.to_json()["limits"],
            "cost": self.instance.cost.name,
            "reference": {
                "is_optimum": reference.is_optimum,
                "best_known_s": self.objective.mean_s(reference.best_known_ns, requests),
                "best_known_by": reference.best_known_by,
                "bound_s": self.objective.mean_s(reference.bound_ns, requests),
                "best_known_ns": reference.best_known_ns,
                "bound_ns": reference.bound_ns,
                "certificate": reference.certificate,
                "note": CLAIRVOYANT,
            },
            "policies": [
                {
                    "policy": row.policy,
                    "value_ns": row.value_ns,
                    "excess_at_least": row.excess[0],
                    "excess_at_most": row.excess[1],
                    **row.metrics.to_json(),
                }
                for row in self.rows
            ],
        }


def compare_policies(
    instance: Instance,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    objective: Objective = Objective.MAKESPAN,
    *,
    schedules: Mapping[str, Schedule] | None = None,
    limits: SearchLimits | None = None,
    improve: ImproveLimits | None = None,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Simulate each policy, judge it by the referee, and certify how far it is from the best schedule.

    Requests that can never be served are rejected, counted and left out, the same for every policy. Where
    the trace is small enough the exact solver provides the reference, within `limits`.

    Parameters
    ----------
    heuristics
        Policies with their settings, such as `vllm:max_num_seqs=256`.
    schedules
        Finished schedules of this very instance by name, such as one imported from a real engine's log; they
        are judged and measured like those of the policies, and stand above them.
    improve
        Where the trace is too large for the exact solver, look so long for a schedule that is better than
        that of every policy; None leaves it out.
    on_step
        Told in words what is being done.

    Raises
    ------
    UsageError
        If there is no policy and no schedule, one is named twice or is unknown, or a policy caches prefixes
        or emulates bugs that change what requests generate.
    InputError
        If a schedule breaks a rule of the problem, or uses the prefix cache, which the bounds do not know.
    """
    policies = [make_policy(text) for text in heuristics]
    given = dict(schedules or {})
    labels = [*given, *(policy.label for policy in policies)]
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"name at least one policy, and each once; got: {', '.join(labels) or 'none'}")
    tell = on_step or (lambda _: None)
    servable, rejections = instance.split_rejected()
    measured = {name: _judged_input(instance, name, schedule) for name, schedule in given.items()}
    for policy in policies:
        _refuse_prefix_cache(policy)
        tell(f"simulating {policy.label} on {len(servable.requests)} requests")
        simulation = run_policy(servable, policy)
        _refuse_other_outputs(simulation)
        measured[policy.label] = _judged(servable, policy.label, simulation.schedule)
    tell(f"bounding {objective}")
    reference = _reference(servable, objective, measured, limits or SearchLimits(), improve, on_progress)
    rows = tuple(
        _row(label, metrics, metrics.objective_ns(objective), reference)
        for label, metrics in measured.items()
    )
    return Comparison(
        instance=servable, objective=objective, rows=rows, reference=reference, rejections=rejections
    )


def compare_at_band(
    instance: Instance, band: tuple[CostModel, CostModel], heuristics: Iterable[str], objective: Objective
) -> dict[str, Comparison]:
    """The comparison again with the batch times of both ends of a cost model's error band.

    All batches are fast, or all are slow: what the fit's errors (p10 and p90) could mean at most if they went
    the same way everywhere. Policies are measured against the best of them and the closed-form bound.

    Parameters
    ----------
    band
        Fast and slow cost models.

    Raises
    ------
    UsageError
        As `compare_policies`.
    """
    texts = list(heuristics)
    no_search = SearchLimits(time_limit_s=0)
    return {
        end: compare_policies(replace(instance, cost=cost), texts, objective, limits=no_search)
        for end, cost in zip(("fast", "slow"), band, strict=True)
    }


def _refuse_prefix_cache(policy: Policy) -> None:
    """The bounds count shared blocks and cached tokens in full, so they would bound nothing."""
    if getattr(getattr(policy, "settings", None), "enable_prefix_caching", False):
        raise UsageError(
            f"policy {policy.label} caches prefixes, which the bounds do not know: there is no excess; leave "
            "enable_prefix_caching out, or use 'cspsched simulate'"
        )


def _refuse_other_outputs(simulation: Simulation) -> None:
    """Who generates other tokens than were asked for is not to be compared."""
    if simulation.output_changes:
        raise UsageError(
            f"policy {simulation.policy} gives other numbers of tokens than were asked for to "
            f"{len(simulation.output_changes)} requests: there is no excess; leave emulate_bugs out, or use "
            "'cspsched simulate'"
        )


def _judged(instance: Instance, label: str, schedule: Schedule) -> Metrics:
    """Metrics of a schedule that the referee accepts."""
    violations = find_violations(instance, schedule)
    if violations and violations[0].rule == "preemption":
        raise UsageError(
            f"policy {label} does what the instance does not allow: {violations[0].message}; "
            "allow it (--preemption) or choose another policy"
        )
    if violations:
        raise InternalError(f"policy {label} breaks a rule: {violations[0].message}; please report")
    return measure(instance, schedule)


def _judged_input(instance: Instance, name: str, schedule: Schedule) -> Metrics:
    """Metrics of a schedule from outside."""
    if schedule.uses_prefix_cache:
        raise InputError(
            f"schedule {name!r} uses the prefix cache, which the bounds do not know yet; "
            "record the engine with prefix caching off"
        )
    violations = find_violations(instance, schedule)
    if violations:
        raise InputError(f"schedule {name!r} breaks a rule: {violations[0].message}; see 'cspsched check'")
    return measure(instance, schedule)


def _row(label: str, metrics: Metrics, value_ns: int, reference: Reference) -> PolicyRow:
    excess = tuple((value_ns - least) / least for least in (reference.best_known_ns, reference.bound_ns))
    return PolicyRow(policy=label, metrics=metrics, value_ns=value_ns, excess=(excess[0], excess[1]))


def _reference(
    instance: Instance,
    objective: Objective,
    measured: dict[str, Metrics],
    limits: SearchLimits,
    improve: ImproveLimits | None,
    on_progress: Callable[[Progress], None] | None,
) -> Reference:
    """Exact optimum where it can be had, else the best policy or improvement and the best bound."""
    batches = min(metrics.history.schedule.num_batches for metrics in measured.values())
    if limits.time_limit_s > 0 and batches * len(instance.requests) <= SMALL_CELLS:
        candidates = [(label, metrics.history.schedule) for label, metrics in measured.items()]
        result = solve_exactly(instance, objective, limits, candidates=candidates, on_progress=on_progress)
        return Reference(
            best_known_ns=_known(result.primal_ns),
            best_known_by=result.found_by or "",
            bound_ns=_known(result.dual_ns),
            certificate=result.certificate or "",
            stop_reason=result.stop_reason,
        )
    label, best = min(
        ((label, metrics.objective_ns(objective)) for label, metrics in measured.items()),
        key=lambda found: found[1],
    )
    bound = best_bound(instance, objective)
    why_open = StopReason.TOO_LARGE
    if improve is not None:
        found, stop_reason = find_better(instance, objective, best, bound.value_ns, improve, on_progress)
        label, best = (found.found_by, found.value_ns) if found else (label, best)
        why_open = StopReason.INTERRUPTED if stop_reason is StopReason.INTERRUPTED else why_open
    return Reference(
        best_known_ns=best,
        best_known_by=label,
        bound_ns=bound.value_ns,
        certificate=bound.name,
        stop_reason=StopReason.PROVEN if best == bound.value_ns else why_open,
    )


def _known(value: int | None) -> int:
    if value is None:
        raise InternalError("the exact solver returned no value for an instance with a known schedule")
    return value
