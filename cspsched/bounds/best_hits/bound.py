"""What a request can find in the prefix cache at best.

Theorem (docs/bounds.md, section 14). Before a request emits its first token, every block of its prompt that
is shared has been computed by a request that holds it: not before the first of these arrives. So the first
computation of a block can be charged to the request that holds it and *arrives first*, whatever the schedule
does: it lies between that request's arrival and its first token. Of a request's prompt the blocks that an
earlier request holds come first, and cost it nothing; all others are charged to it.

What a request processes itself may be less: nothing of a block that any other request holds. Where the others
arrive later, it has to wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.prefix import BlockContents


@dataclass(frozen=True, eq=False)
class BestHits:
    """Best possible hits of every request, int64, shape (num_requests,)."""

    found: IntArray
    """First prompt tokens that are charged to requests that arrive earlier, in full blocks."""
    findable: IntArray
    """First prompt tokens that other requests may have computed, in full blocks, not the last token."""
    wait_ns: IntArray
    """How long after its arrival a request can find more than `found` at the earliest; 0 where it cannot."""

    @classmethod
    def none(cls, num_requests: int) -> BestHits:
        """Of requests that find nothing."""
        return cls(*np.zeros((3, num_requests), dtype=np.int64))

    @property
    def found_itself(self) -> IntArray:
        """First prompt tokens that a request need not process: of what is charged to others, not the last."""
        return np.minimum(self.found, self.findable)

    @property
    def waits(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Whether a request could find more if it waited for later ones."""
        more: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = self.findable > self.found
        return more


def best_hits(instance: Instance) -> BestHits | None:
    """Best possible hits of an instance; None where its switches say that there are none."""
    if not instance.switches.prefix_caching:
        return None
    columns, block = instance.columns, instance.limits.block_tokens
    hits = BestHits.none(len(columns.prompt_tokens))
    if columns.prefix is None:
        return hits
    contents = BlockContents(columns.prefix, instance.limits)
    # Of those that arrive together the shortest comes first, so that the order of the file means nothing.
    order = np.lexsort((columns.output_tokens, columns.prompt_tokens, columns.arrival_ns)).tolist()
    arrivals = columns.arrival_ns.tolist()
    holder, second_ns = [-1] * contents.num_shared, [-1] * contents.num_shared
    for i in order:
        for name in contents.shared(i):
            if holder[name] < 0:
                holder[name] = i
            elif second_ns[name] < 0:
                second_ns[name] = arrivals[i]
    longest = (columns.prompt_tokens - 1) // block
    for i in order:
        chain = contents.shared(i)
        # Who holds a block holds all before it: these come first in the chain.
        earlier = sum(holder[name] != i for name in chain)
        others = earlier + sum(second_ns[name] >= 0 for name in chain[earlier:])
        hits.found[i] = block * earlier
        hits.findable[i] = block * min(others, longest[i])
        if hits.findable[i] > hits.found[i]:
            hits.wait_ns[i] = second_ns[chain[earlier]] - arrivals[i]
    return hits
