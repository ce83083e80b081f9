"""Times that a request needs at least even if it is alone on the machine.

Theorem (problem.md, section 5): a request's batches are no shorter than they would be without the other
requests, for batch times are non-decreasing in every feature. Alone, the first token costs a prefill of I
tokens, and each later token, with s tokens resident, the cheaper of a lone decode (exact) and a lone refill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.chunking import can_search, decodes_ns, exact_prefills_ns, minorant_prefills_ns
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance


@dataclass(frozen=True, eq=False)
class SoloTable:
    """Lower bounds on lone times in nanoseconds, by resident tokens s; Python integers."""

    prefills_ns: ExactArray
    """Prefill of s tokens with one token emitted, shape (longest + 1,)."""
    later_ns: ExactArray
    """Running sum over s of the cheaper of decode and refill, shape (longest + 1,)."""
    method: str
    """`exact` if the prefill times are those of real schedules, `minorant` if they are bounds."""

    def first_token_ns(self, prompts: IntArray) -> ExactArray:
        """Time from the start of a prompt to its first token, shape (num_requests,)."""
        times: ExactArray = self.prefills_ns[prompts]
        return times

    def tail_ns(self, prompts: IntArray, outputs: IntArray, emitted: IntArray) -> ExactArray:
        """Time from the output token number `emitted` (at least 1) to the last, shape (num_requests,)."""
        times: ExactArray = self.later_ns[prompts + outputs - 1] - self.later_ns[prompts + emitted - 1]
        return times


def solo_table(instance: Instance, work: Sequence[WorkTable]) -> SoloTable:
    """Lone times up to the longest request; exact where the chunk graph is small."""
    cost, budget, longest = instance.cost, instance.limits.max_batch_tokens, work[0].longest
    is_exact = can_search(cost, budget, longest)
    prefills = exact_prefills_ns(cost, budget, longest) if is_exact else minorant_prefills_ns(work)
    cheaper = np.minimum(prefills, decodes_ns(cost, longest)).astype(object)
    return SoloTable(prefills.astype(object), np.cumsum(cheaper), "exact" if is_exact else "minorant")
