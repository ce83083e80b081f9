"""What full KV blocks hold: two may be one where their content and everything before it agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from cspsched.problem.columns import Prefix
from cspsched.problem.instance import Instance, Limits

Content = int | tuple[int, int]
"""Name of a full block's content and of everything before it; equal names, equal content."""
Run = tuple[str, int, int]
"""Stream, offset in it, tokens."""


class BlockContents:
    """Names the content of every full KV block of every request.

    Position p of a prompt holds the token (stream, offset) that the request's prefix says. What follows the
    prefix, generated tokens too, is the request's own, and the same whenever it is computed again.

    Requests are named by their position. Blocks that the device has no room for are not shared.
    """

    def __init__(self, prefixes: Iterable[Prefix], limits: Limits) -> None:
        self._limits = limits
        self._names: dict[tuple[int, tuple[Run, ...]], int] = {}
        self._shared = [self._chain(prefix) for prefix in prefixes]

    @classmethod
    def of_instance(cls, instance: Instance) -> BlockContents:
        """Contents of an instance's requests."""
        return cls((request.prefix for request in instance.requests), instance.limits)

    def of(self, request: int, block: int) -> Content:
        """Content of the block at a position, counted from 0, once it is full."""
        shared = self._shared[request]
        return shared[block] if block < len(shared) else (request, block)

    @property
    def num_shared(self) -> int:
        """Names of shared content, which are the numbers below."""
        return len(self._names)

    def shared(self, request: int) -> Sequence[int]:
        """Content of the first blocks of a request, those that hold nothing but its prefix."""
        return self._shared[request]

    def _chain(self, prefix: Prefix) -> list[int]:
        """Names of the blocks that hold nothing but the prefix, each with those before it."""
        chain: list[int] = []
        block_tokens = self._limits.block_tokens
        num_full = min(sum(tokens for _, tokens in prefix) // block_tokens, self._limits.kv_blocks)
        for runs in islice(runs_of_blocks(prefix, block_tokens), num_full):
            parent = chain[-1] if chain else -1
            chain.append(self._names.setdefault((parent, runs), len(self._names)))
        return chain


def runs_of_blocks(prefix: Prefix, block_tokens: int) -> Iterator[tuple[Run, ...]]:
    """Content of each block of a prefix, block by block; the last one may be partial."""
    runs: list[Run] = []
    room = block_tokens
    for stream, tokens in prefix:
        offset = 0
        while offset < tokens:
            length = min(room, tokens - offset)
            runs.append((stream, offset, length))
            offset += length
            room -= length
            if not room:
                yield tuple(runs)
                runs, room = [], block_tokens
    if runs:
        yield tuple(runs)
