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
from cspsched.bounds.parts.chunking import (
    can_search,
    decodes_ns,
    exact_prefills_ns,
    minorant_firsts_ns,
    minorant_prefills_ns,
    minorant_refills_ns,
)
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance

NEVER_NS = 2**62


@dataclass(frozen=True, eq=False)
class SoloTable:
    """Lower bounds on lone times in nanoseconds; Python integers."""

    firsts_ns: ExactArray
    """Time from the arrival of each request to its first token, shape (num_requests,)."""
    own_firsts_ns: ExactArray
    """The same without a wait for what others compute for it: time of its own batches."""
    refills_ns: ExactArray
    """Refill that leaves s tokens resident, shape (longest + 1,)."""
    later_ns: ExactArray
    """Running sum over s of the cheaper of decode and refill, shape (longest + 1,)."""
    method: str
    """`exact` if the prefill times are those of real schedules, `minorant` if they are bounds."""

    def tail_ns(self, prompts: IntArray, outputs: IntArray, emitted: IntArray) -> ExactArray:
        """Time from the output token number `emitted` (at least 1) to the last, shape (num_requests,)."""
        times: ExactArray = self.later_ns[prompts + outputs - 1] - self.later_ns[prompts + emitted - 1]
        return times


def solo_table(instance: Instance, work: Sequence[WorkTable]) -> SoloTable:
    """Lone times up to the longest request; exact where the chunk graph is small."""
    cost, budget, longest, hits = (
        instance.cost,
        instance.limits.max_batch_tokens,
        work[0].longest,
        work[0].hits,
    )
    prompts, block = instance.columns.prompt_tokens, instance.limits.block_tokens
    num_graphs = 1 if hits is None else 1 + len(np.union1d(hits.found_itself, hits.findable))
    is_exact = can_search(cost, budget, longest, num_graphs)
    if hits is None:
        prefills = exact_prefills_ns(cost, budget, longest) if is_exact else minorant_prefills_ns(work)
        firsts = own_firsts = prefills[prompts]
        refills = prefills
    else:

        def after(found: IntArray) -> IntArray:
            if not is_exact:
                return minorant_firsts_ns(work, prompts, found)
            times = np.empty_like(prompts)
            for tokens in np.unique(found).tolist():
                here = found == tokens
                times[here] = exact_prefills_ns(cost, budget, longest, tokens, block)[prompts[here]]
            return times

        own_firsts = after(hits.findable)
        firsts = np.minimum(
            after(hits.found_itself), np.where(hits.waits, own_firsts + hits.wait_ns, NEVER_NS)
        )
        cached = exact_prefills_ns(cost, budget, longest, longest, block) if is_exact else None
        refills = minorant_refills_ns(work) if cached is None else cached
    cheaper = np.minimum(refills, decodes_ns(cost, longest)).astype(object)
    return SoloTable(
        firsts_ns=firsts.astype(object),
        own_firsts_ns=own_firsts.astype(object),
        refills_ns=refills.astype(object),
        later_ns=np.cumsum(cheaper),
        method="exact" if is_exact else "minorant",
    )
