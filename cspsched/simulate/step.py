"""One scheduling decision: what a policy may read, and the only ways in which it can change anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from cspsched.errors import PolicyError
from cspsched.simulate.kernel.actions import is_finishing, preempt, restart_output, schedule, take_out
from cspsched.simulate.kernel.layout import DECODES, Kernel
from cspsched.simulate.kernel.prefix import find_cached, num_free_of, reuse
from cspsched.simulate.kernel.swap import swap_in, swap_out


class CachedPrefix(NamedTuple):
    """The longest run of a request's full blocks that the prefix cache holds."""

    blocks: tuple[int, ...] = ()
    num_free: int = 0
    """Those of the blocks that no request holds; to reuse them takes free blocks."""


NOTHING_CACHED = CachedPrefix()


class Columns:
    """What policies read of all requests, by position, brought up to date wherever it changes.

    Attributes
    ----------
    known
        Prompt and generated tokens that can be processed; 0 before the arrival and after the last token.
    computed
        Tokens with KV entries on the device.
    held
        KV blocks on the device.
    decoding
        Whether a request generated a token when it was last processed, and was not evicted since.
    host
        KV entries in host memory.
    restored
        Requests that came back from host memory since the last batch.
    undelivered
        Requests in a batch that has not ended.
    """

    __slots__ = ("computed", "decoding", "held", "host", "known", "restored", "undelivered")

    def __init__(self, num_requests: int) -> None:
        self.known = [0] * num_requests
        self.computed = [0] * num_requests
        self.held = [0] * num_requests
        self.decoding = [False] * num_requests
        self.host = [0] * num_requests
        self.restored: set[int] = set()
        self.undelivered: set[int] = set()

    def update(self, k: Kernel, request: int) -> None:
        """Read a request that has arrived and is not retired."""
        self.update_all(k, (request,))

    def update_all(self, k: Kernel, requests: Iterable[int]) -> None:
        """Read requests that have arrived and are not retired."""
        rows, known, held, computed, decoding = (
            k.requests, self.known, self.held, self.computed, self.decoding,
        )  # fmt: skip
        for request in requests:
            row = rows[request]
            blocks, generated = row.blocks, row.generated
            known[request] = row.prompt_tokens + generated - (generated == row.output_tokens)
            held[request] = blocks
            computed[request] = row.kv_tokens if blocks else 0
            decoding[request] = blocks > 0 and row.phase == DECODES

    def forget(self, request: int) -> None:
        """Forget a request that is retired or dropped."""
        self.known[request] = self.computed[request] = self.held[request] = self.host[request] = 0
        self.decoding[request] = False


class Step:
    """The decision about the next batch. Requests are named by their position in the instance.

    The columns are the engine's own lists, to be read only; they change with `schedule` and `preempt`.

    Attributes
    ----------
    clock_ns
        Now.
    known_tokens
        Prompt and generated tokens of every request; 0 before its arrival and after its last token.
    computed_tokens
        Tokens of every request with KV entries on the device; the batch being decided is not in it yet.
    held_blocks
        KV blocks of every request.
    decoding
        Whether a request is in its decode phase; else what it lacks is prefill or refill.
    tokens_left, requests_left
        What remains of the instance's token budget C and request limit R in this batch.
    evicted
        Requests preempted so far in this step, recomputed or swapped, in order.
    hits
        Tokens that requests start with out of the prefix cache in this step, {request: tokens}.
    host_tokens
        KV entries of every request in host memory.
    undelivered
        Requests in batches that have not ended, if the policy decides ahead (`batches_in_flight`). One
        of them that was preempted must not be scheduled before its batch ends.
    """

    __slots__ = (
        "_batch", "_columns", "_k", "_label", "_names", "_now", "clock_ns", "computed_tokens", "decoding",
        "dropped", "evicted", "held_blocks", "hits", "host_tokens", "known_tokens", "requests_left",
        "restored", "swapped", "tokens_left", "undelivered",
    )  # fmt: skip

    def __init__(self, k: Kernel, columns: Columns, label: str, names: Sequence[str]) -> None:
        self.clock_ns = k.now.clock_ns
        self.known_tokens: Sequence[int] = columns.known
        self.computed_tokens: Sequence[int] = columns.computed
        self.held_blocks: Sequence[int] = columns.held
        self.decoding: Sequence[bool] = columns.decoding
        self.host_tokens: Sequence[int] = columns.host
        self.undelivered: Set[int] = columns.undelivered
        self.tokens_left = k.now.batch_tokens
        self.requests_left = k.now.max_running
        self.evicted: list[int] = []
        self.hits: dict[int, int] = {}
        self.swapped: set[int] = set()
        self.restored: list[int] = []
        self.dropped = 0
        self._k, self._now = k, k.now
        self._columns = columns
        self._label = label
        self._names = names
        self._batch: dict[int, int] = {}

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self._k.now.free_blocks

    @property
    def batch(self) -> Mapping[int, int]:
        """Tokens of every request scheduled so far, in the order of scheduling."""
        return self._batch

    @property
    def free_host_blocks(self) -> int:
        """Free KV blocks in host memory."""
        return self._k.now.free_host_blocks

    def missing_blocks(self, request: int, tokens: int) -> int:
        """KV blocks that a request lacks to process a number of tokens (0 if it holds enough)."""
        needed = -(-(self.computed_tokens[request] + tokens) // self._k.now.block_tokens)
        return max(needed - self.held_blocks[request], 0)

    def find_cached(self, request: int) -> CachedPrefix:
        """The longest run of a request's full blocks in the prefix cache, but not all of its known tokens.

        Nothing is found unless the policy's run has a true attribute `caches_prefixes`.
        """
        k = self._k
        if not k.now.caches_prefixes or not self.known_tokens[request]:
            return NOTHING_CACHED
        count, first = find_cached(k, request), k.notes[request].first_place
        found = (k.cache.contents[place.content].first for place in k.cache.places[first : first + count])
        return CachedPrefix(tuple(found), num_free_of(k, request, count))

    def reuse(self, request: int, cached: CachedPrefix) -> None:
        """Let a request without KV cache start with what was found for it; then schedule the rest.

        Raises
        ------
        PolicyError
            If the request holds KV blocks or is on the host, nothing was found, or prefixes are not cached.
        """
        if not self._k.now.caches_prefixes or self.host_tokens[request]:
            raise self._refusal(request, "reuses cached KV blocks but may not")
        if self.held_blocks[request]:
            held = self.held_blocks[request]
            raise self._refusal(request, f"reuses cached KV blocks: it holds {held}, expected none")
        if not cached.blocks or cached.blocks != self.find_cached(request).blocks:
            raise self._refusal(request, "reuses cached KV blocks that were not found for it in this step")
        reuse(self._k, request, len(cached.blocks))
        self._columns.update(self._k, request)
        self.hits[request] = self.computed_tokens[request]

    def schedule(self, request: int, tokens: int, blocks: int) -> None:
        """Put tokens of a request into the batch and give it so many more KV blocks (0 or more).

        Raises
        ------
        PolicyError
            If the request is in the batch already, the tokens are not known (1 to known - computed), C or R
            is exceeded, the blocks are not free, or they cannot hold the KV entries.
        """
        columns, now = self._columns, self._now
        after = columns.computed[request] + tokens
        if tokens < 1 or after > columns.known[request] or request in self._batch or columns.host[request]:
            raise self._refusal(request, self._why_not(request, tokens))
        if tokens > self.tokens_left or not self.requests_left:
            raise self._refusal(request, f"does not fit into the batch: {self._room()}, it has {tokens}")
        if blocks and not 1 <= blocks <= now.free_blocks:
            told = f"{blocks} KV blocks asked for, {now.free_blocks} of {now.kv_blocks} are free"
            raise self._refusal(request, f"gets KV blocks that there are not: {told}")
        held = columns.held[request] + blocks
        if after > held * now.block_tokens:
            raise self._refusal(request, f"needs room for {after} KV entries and holds {held} blocks")
        schedule(self._k, request, tokens, blocks)
        columns.held[request] = held
        self.tokens_left -= tokens
        self.requests_left -= 1
        self._batch[request] = tokens

    def preempt(self, request: int) -> int:
        """Evict a resident request (recompute) and return the tokens that this takes out of the batch.

        A request that was admitted in this very step is only withdrawn; it has lost nothing.

        Raises
        ------
        PolicyError
            If the request holds no KV blocks.
        """
        if not self.held_blocks[request]:
            raise self._refusal(request, "is preempted but holds no KV blocks")
        if request in self._columns.restored:
            raise self._refusal(request, "is preempted before a batch since it came back from host memory")
        if self.hits.pop(request, 0) != self.computed_tokens[request]:
            self.evicted.append(request)
        preempt(self._k, request)
        return self._take_out(request)

    def restart_output(self, request: int) -> None:
        """Let a preempted request generate all of its output again: a bug of a real engine, emulated."""
        row = self._k.requests[request]
        if row.generated < row.output_tokens:
            restart_output(self._k, request)
            self._columns.update(self._k, request)

    def drop(self, request: int) -> None:
        """Lose a waiting request for good: a bug of a real engine, emulated.

        Raises
        ------
        PolicyError
            If the request holds KV blocks.
        """
        if self.held_blocks[request] or not self.known_tokens[request]:
            raise self._refusal(request, "is dropped but does not wait")
        self._k.now.num_waiting -= 1
        self._k.now.num_unfinished -= 1
        self._columns.forget(request)
        self.dropped += 1

    def swap_out(self, request: int) -> int:
        """Evict a resident request to host memory and return the tokens that this takes out of the batch.

        All its blocks move, also those that it holds for tokens to come.

        Raises
        ------
        PolicyError
            If the request has no KV entries, the instance has no swap, or host memory is full.
        """
        blocks, now = self.held_blocks[request], self._k.now
        if not self.computed_tokens[request] or request in self._columns.restored:
            raise self._refusal(request, "is swapped out but has no KV entries of its own to keep")
        if not now.swaps:
            raise self._refusal(request, "is swapped out, but the instance has no swap (switch preemption)")
        if blocks > now.free_host_blocks:
            room = f"{now.free_host_blocks} of {now.host_blocks} are free"
            raise self._refusal(request, f"is swapped out with {blocks} KV blocks to host memory, {room}")
        self.evicted.append(request)
        self.hits.pop(request, 0)
        if is_finishing(self._k, request):
            preempt(self._k, request)
            return self._take_out(request)
        tokens = self._take_out(request)
        take_out(self._k, request)
        swap_out(self._k, request)
        self.swapped.add(request)
        self._columns.update(self._k, request)
        self._columns.host[request] = self._k.notes[request].host_tokens
        return tokens

    def swap_in(self, request: int) -> None:
        """Bring the KV cache of a request back from host memory, into as many blocks as it held.

        Raises
        ------
        PolicyError
            If the request is not in host memory, was swapped out in this very step, or blocks are missing.
        """
        if not self.host_tokens[request] or request in self.swapped:
            raise self._refusal(request, "is swapped in but was not in host memory before this step")
        blocks, now = self._k.notes[request].host_blocks, self._k.now
        if blocks > now.free_blocks:
            told = f"{blocks} KV blocks asked for, {now.free_blocks} of {now.kv_blocks} are free"
            raise self._refusal(request, f"is swapped in without room: {told}")
        swap_in(self._k, request)
        self.restored.append(request)
        self._columns.restored.add(request)
        self._columns.update(self._k, request)
        self._columns.host[request] = 0

    def _take_out(self, request: int) -> int:
        """Take a request out of the batch, here and in the columns."""
        self._columns.update(self._k, request)
        tokens = self._batch.pop(request, 0)
        if tokens:
            self.tokens_left += tokens
            self.requests_left += 1
        return tokens

    def _room(self) -> str:
        return f"{self.tokens_left} tokens and {self.requests_left} requests are left"

    def _why_not(self, request: int, tokens: int) -> str:
        if request in self._batch:
            return "is scheduled twice in one batch"
        known = self.known_tokens[request]
        if not known:
            return "is scheduled before its arrival or after its last token"
        if self.host_tokens[request]:
            return "is scheduled while its KV cache is in host memory"
        most = known - self.computed_tokens[request]
        return f"is scheduled with {tokens} tokens, expected 1 to {most}"

    def _refusal(self, request: int, what: str) -> PolicyError:
        name = self._names[request]
        return PolicyError(f"policy {self._label}: request {name!r} {what} (at {self.clock_ns} ns)")
