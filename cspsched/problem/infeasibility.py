"""Why requests can never be served, in words: by family of rules and by request.

All requests of an instance have a schedule exactly if each has one alone: then one after another they all
have, with none in the memory or the batches of another. So plain arithmetic decides, and no solver is asked.
Those that have none are rejected and left out; only if none is left is the instance infeasible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cspsched.problem.instance import Instance
from cspsched.problem.request import Request

INFEASIBLE_SCHEMA = "cspsched/infeasible/1"
MOST_NAMED_REQUESTS = 3


@dataclass(frozen=True, kw_only=True)
class BrokenFamily:
    """One family of rules, the requests that it shuts out, and from which limit on it would not."""

    family: str
    """`max_model_len`, `memory` or `no chunking`."""
    request_ids: tuple[str, ...]
    limit: int
    unit: str
    """`tokens` or `blocks`."""
    needed: int
    """Smallest limit that shuts no request out."""
    remedy: str
    """Option of the command line that says so."""

    @property
    def sentence(self) -> str:
        """Who is shut out, and what to do."""
        count = len(self.request_ids)
        shown = ", ".join(map(repr, self.request_ids[:MOST_NAMED_REQUESTS]))
        more = f" and {count - MOST_NAMED_REQUESTS} more" if count > MOST_NAMED_REQUESTS else ""
        requests = "request" if count == 1 else "requests"
        return (
            f"{self.family}: {requests} {shown}{more}, up to {self.needed} {self.unit} where {self.limit} "
            f"are allowed ({self.remedy})"
        )


@dataclass(frozen=True, kw_only=True)
class Infeasibility:
    """Proof that an instance has no schedule that serves all requests."""

    reasons: tuple[str, ...]
    """A sentence for each request that can never be served."""
    num_requests: int
    families: tuple[BrokenFamily, ...]

    @property
    def sentence(self) -> str:
        """The first request with its arithmetic, then every family with its remedy."""
        count = len(self.reasons)
        more = f" (and {count - 1} more)" if count > 1 else ""
        head = f"{self.reasons[0]}{more}"
        if self.is_total:
            head = f"no request can be served; the first: {head}"
        return f"{head}; {self.remedies}"

    @property
    def is_total(self) -> bool:
        """Whether no request can be served, so that there is no schedule of any."""
        return len(self.reasons) == self.num_requests

    @property
    def remedies(self) -> str:
        """Every family with the limit that shuts no request out."""
        return "; ".join(family.sentence for family in self.families)

    def to_json(self) -> dict[str, Any]:
        """Plain values with a schema version."""
        return {
            "schema": INFEASIBLE_SCHEMA,
            "status": "infeasible",
            "num_requests": self.num_requests,
            "rejected": list(self.reasons),
            "families": [
                {
                    "family": family.family,
                    "request_ids": list(family.request_ids),
                    f"limit_{family.unit}": family.limit,
                    f"needed_{family.unit}": family.needed,
                    "remedy": family.remedy,
                }
                for family in self.families
            ],
        }


def find_infeasibility(instance: Instance) -> Infeasibility | None:
    """Why some requests of an instance can never be served, or None if all can."""
    reasons = tuple(
        rejection.reason for request in instance.requests if (rejection := instance.rejection_of(request))
    )
    if not reasons:
        return None
    return Infeasibility(
        reasons=reasons, num_requests=len(instance.requests), families=tuple(_families(instance))
    )


def _families(instance: Instance) -> list[BrokenFamily]:
    limits = instance.limits
    budget = None if instance.switches.chunked_prefill else limits.max_batch_tokens
    found = [
        _family(instance, "max_model_len", limits.max_model_len, _peak, "tokens", "--max-model-len {}"),
        _family(
            instance, "memory", limits.kv_blocks, lambda r: limits.blocks_of(_peak(r)), "blocks",
            "--kv-blocks {}",
        ),
        _family(
            instance, "no chunking", budget, lambda r: r.prompt_tokens, "tokens",
            "--chunking or --max-batch-tokens {}",
        ),
    ]  # fmt: skip
    return [family for family in found if family is not None]


def _peak(request: Request) -> int:
    return request.peak_kv_tokens


def _family(
    instance: Instance,
    name: str,
    limit: int | None,
    need: Callable[[Request], int],
    unit: str,
    remedy: str,
) -> BrokenFamily | None:
    """The requests that need more than a limit, if there are any."""
    if limit is None:
        return None
    names = tuple(request.request_id for request in instance.requests if need(request) > limit)
    if not names:
        return None
    needed = max(map(need, instance.requests))
    return BrokenFamily(
        family=name,
        request_ids=names,
        limit=limit,
        unit=unit,
        needed=needed,
        remedy=remedy.format(needed),
    )
