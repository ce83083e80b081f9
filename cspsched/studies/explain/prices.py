"""Shadow prices: what a little more of each limit saves, for a policy and for the optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cspsched.errors import PolicyError, UsageError
from cspsched.exact.watch import Listener
from cspsched.improve.rivals import Rival, run_rivals
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.studies.reference import Reference, ReferenceLimits, find_reference
from cspsched.units import ceil_div

MORE_PERCENT = 5


class Resource(StrEnum):
    """A limit that can be widened; its name is that of the field of `Limits`."""

    KV_BLOCKS = "kv_blocks"
    BATCH_TOKENS = "max_batch_tokens"
    BATCH_REQUESTS = "max_batch_requests"


@dataclass(frozen=True, kw_only=True)
class ShadowPrice:
    """What more of a limit saves; nanoseconds, or what the objective counts.

    Attributes
    ----------
    limit, more
        The limit as it is, and what is added: 5 %, rounded up.
    policies_ns
        Saved by each policy, exactly: by simulation; less than 0 if it gets worse, None if it does not run.
    least_ns, most_ns
        Saved by the optimum, certified: both optima lie in intervals that were found anew.
    """

    resource: Resource
    limit: int
    more: int
    policies_ns: tuple[tuple[str, int | None], ...]
    least_ns: int
    most_ns: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "resource": self.resource.value,
            "limit": self.limit,
            "more": self.more,
            "policies": [{"policy": name, "saved_ns": saved_ns} for name, saved_ns in self.policies_ns],
            "optimum_saves_at_least_ns": self.least_ns,
            "optimum_saves_at_most_ns": self.most_ns,
        }


@dataclass(frozen=True, kw_only=True)
class PriceTask:
    """What is asked: policies by their texts with what they reach, and the reference of the instance."""

    instance: Instance
    objective: AnyObjective
    policies: Sequence[tuple[str, Rival]]
    reference: Reference
    limits: ReferenceLimits


def find_price(task: PriceTask, resource: Resource, on_step: Callable[[str], None]) -> ShadowPrice:
    """Widen one limit by 5 %, simulate the policies again and find the reference again.

    A schedule stays feasible under wider limits, so the optimum is never worse there.
    """
    limit: int = getattr(task.instance.limits, resource)
    more = ceil_div(limit * MORE_PERCENT, 100)
    on_step(f"{resource} {limit:,} + {more:,}")
    limits = replace(task.instance.limits, **{resource.value: limit + more})
    wide = replace(task.instance, limits=limits)
    policies, saved_ns = list[Rival](), list[tuple[str, int | None]]()
    for text, rival in task.policies:
        try:
            (again,) = run_rivals(wide, task.objective, [text], on_step)
            policies.append(again)
            saved_ns.append((rival.policy, rival.value_ns - again.value_ns))
        except (PolicyError, UsageError) as reason:
            on_step(f"{rival.policy} does not run: {reason}")
            saved_ns.append((rival.policy, None))
    known = task.reference
    found = find_reference(
        wide, task.objective, policies, limits=task.limits, listener=Listener(step=on_step)
    )
    return ShadowPrice(
        resource=resource,
        limit=limit,
        more=more,
        policies_ns=tuple(saved_ns),
        least_ns=max(0, known.bound_ns - min(found.best_known_ns, known.best_known_ns)),
        most_ns=max(0, known.best_known_ns - found.bound_ns),
    )
