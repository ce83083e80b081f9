"""A KV block pool with identities: full blocks keep what they hold until somebody needs their room.

The order in which blocks are reused is that of vLLM 0.33.0 (`vllm/v1/core/block_pool.py`), because it decides
what a later request, or a preempted one when it comes back, still finds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from cspsched.problem.instance import Instance
from cspsched.problem.prefix import BlockContents, Content
from cspsched.simulate.pool import BlockPool, PoolError


class CachedPrefix(NamedTuple):
    """The longest run of a request's full blocks that the cache holds."""

    blocks: tuple[int, ...] = ()
    num_free: int = 0
    """Those of the blocks that nobody holds; to reuse them takes free blocks."""


NOTHING_CACHED = CachedPrefix()


class PrefixCachePool(BlockPool):
    """KV blocks that may be held by several requests.

    The free blocks are a queue. New blocks are taken from its front and forget what they held. Of the blocks
    that a request leaves, last first, those with content in the cache go to the end and the others to the
    front. Blocks of equal content are all kept; the first that was entered is found.
    """

    __slots__ = (
        "_block_tokens", "_blocks", "_cached", "_content", "_contents", "_entered", "_free", "_holders",
    )  # fmt: skip

    def __init__(self, instance: Instance) -> None:
        capacity, count = instance.limits.kv_blocks, len(instance.requests)
        super().__init__(capacity=capacity, num_requests=count)
        self._block_tokens = instance.limits.block_tokens
        self._contents = BlockContents.of_instance(instance)
        self._free = OrderedDict.fromkeys(range(capacity))
        self._holders = [0] * capacity
        self._content: list[Content | None] = [None] * capacity
        self._cached: dict[Content, dict[int, None]] = {}
        self._blocks: list[list[int]] = [[] for _ in range(count)]
        self._entered = [0] * count

    def find(self, request: int, known_tokens: int) -> CachedPrefix:
        """What the cache holds of a request; at least one of its known tokens is left to be processed."""
        found: list[int] = []
        for position in range((known_tokens - 1) // self._block_tokens):
            same = self._cached.get(self._contents.of(request, position))
            if not same:
                break
            found.append(next(iter(same)))
        return CachedPrefix(tuple(found), sum(not self._holders[block] for block in found))

    def reuse(self, request: int, cached: CachedPrefix) -> None:
        """Give a request, which holds nothing, the blocks that were found for it.

        Raises
        ------
        PoolError
            If it holds blocks already, or there are none to give.
        """
        if self._blocks[request] or not cached.blocks:
            raise PoolError(f"{len(cached.blocks)} cached blocks for {len(self._blocks[request])} held ones")
        for block in cached.blocks:
            if not self._holders[block]:
                del self._free[block]
            self._hold(request, block)
        self._entered[request] = len(cached.blocks)
        self._recount(request)

    def take(self, request: int, blocks: int) -> None:
        """Give more blocks to a request; same errors as without a cache."""
        self._require_free(blocks)
        for _ in range(blocks):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._hold(request, block)
        self._recount(request)

    def release(self, request: int) -> int:
        """Take all blocks of a request back; same errors as without a cache."""
        blocks = self._blocks[request]
        if not blocks:
            raise PoolError("no KV blocks to release")
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if self._content[block] is None:
                    self._free.move_to_end(block, last=False)
        self._blocks[request] = []
        self._entered[request] = 0
        self._recount(request)
        return len(blocks)

    def enter(self, request: int, tokens: int) -> None:
        """Let others find the full blocks of a request's first tokens, which it holds."""
        num_full = tokens // self._block_tokens
        if num_full <= self._entered[request]:
            return
        blocks = self._blocks[request]
        for position in range(self._entered[request], num_full):
            content = self._contents.of(request, position)
            self._content[blocks[position]] = content
            self._cached.setdefault(content, {})[blocks[position]] = None
        self._entered[request] = num_full

    def _hold(self, request: int, block: int) -> None:
        self._holders[block] += 1
        self._blocks[request].append(block)

    def _forget(self, block: int) -> None:
        content = self._content[block]
        if content is not None:
            self._content[block] = None
            same = self._cached[content]
            del same[block]
            if not same:
                del self._cached[content]

    def _recount(self, request: int) -> None:
        """Keep the counts of the pool up to date."""
        before, now = self.held[request], len(self._blocks[request])
        self.num_holders += (now > 0) - (before > 0)
        self.held[request] = now
        self.free = len(self._free)
