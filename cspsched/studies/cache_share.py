"""How much of what is not known about the optimum is due to the prefix cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cspsched.bounds.best_hits.bound import best_hits
from cspsched.improve.ends import lower_end
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.studies.reference import Reference


@dataclass(frozen=True, kw_only=True)
class CacheShare:
    """Both ends of the optimum where prefix cache hits are allowed, and what the hits do to them.

    Attributes
    ----------
    prompt_tokens
        Of all requests.
    findable_tokens
        Prompt tokens that the lower end takes as computed for a request that arrived earlier.
    found_tokens
        Tokens that come out of the cache in the best known schedule; None where it is not kept.
    bound_ns, best_known_ns
        Both ends.
    bound_without_ns
        Lower end if every request processes its whole prompt: no schedule without hits is below.
    certificate_without
        What proves that.
    """

    prompt_tokens: int
    findable_tokens: int
    found_tokens: int | None
    bound_ns: int
    best_known_ns: int
    bound_without_ns: int
    certificate_without: str

    @property
    def share(self) -> float | None:
        """Part of the room between the ends that lies below the bound without hits; None without room."""
        room = self.best_known_ns - self.bound_ns
        return min(self.bound_without_ns - self.bound_ns, room) / room if room else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "share_of_interval": self.share}


def cache_share(instance: Instance, objective: AnyObjective, reference: Reference) -> CacheShare | None:
    """What the cache does to a reference; None where no hits are allowed."""
    hits = best_hits(instance)
    if hits is None:
        return None
    without = replace(instance, switches=replace(instance.switches, prefix_caching=False))
    bound = lower_end(without, objective)
    schedule = reference.schedule
    return CacheShare(
        prompt_tokens=int(instance.columns.prompt_tokens.sum()),
        findable_tokens=int(hits.found.sum()),
        found_tokens=None if schedule is None else int(schedule.hit_tokens.sum()),
        bound_ns=reference.bound_ns,
        best_known_ns=reference.best_known_ns,
        # What holds with hits holds without them.
        bound_without_ns=max(bound.value_ns, reference.bound_ns),
        certificate_without=bound.name if bound.value_ns > reference.bound_ns else reference.certificate,
    )
