"""One scheduling decision: what a policy may read, and the only ways in which it can change anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from cspsched.errors import PolicyError
from cspsched.simulate.pool import PoolError
from cspsched.simulate.prefix_cache import NOTHING_CACHED, CachedPrefix
from cspsched.simulate.state import State


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
        "_batch",
        "_block_tokens",
        "_cache",
        "_label",
        "_pool",
        "_state",
        "clock_ns",
        "computed_tokens",
        "decoding",
        "dropped",
        "evicted",
        "finishing",
        "held_blocks",
        "hits",
        "host_tokens",
        "known_tokens",
        "moved_blocks",
        "requests_left",
        "restored",
        "swapped",
        "tokens_left",
        "undelivered",
    )

    def __init__(self, state: State, clock_ns: int, label: str) -> None:
        limits = state.instance.limits
        self.clock_ns = clock_ns
        self.known_tokens: Sequence[int] = state.known
        self.computed_tokens: Sequence[int] = state.computed
        self.held_blocks: Sequence[int] = state.pool.held
        self.decoding: Sequence[bool] = state.decoding
        self.tokens_left = limits.max_batch_tokens
        self.requests_left = limits.max_batch_requests
        self.evicted: list[int] = []
        self.hits: dict[int, int] = {}
        self.swapped: set[int] = set()
        self.restored: list[int] = []
        self.finishing: list[int] = []
        self.moved_blocks = 0
        self.dropped = 0
        self.host_tokens: Sequence[int] = state.host
        self.undelivered: Set[int] = state.undelivered
        self._state = state
        self._pool = state.pool
        self._cache = state.cache
        self._block_tokens = limits.block_tokens
        self._label = label
        self._batch: dict[int, int] = {}

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self._pool.free

    @property
    def batch(self) -> Mapping[int, int]:
        """Tokens of every request scheduled so far, in the order of scheduling."""
        return self._batch

    @property
    def free_host_blocks(self) -> int:
        """Free KV blocks in host memory."""
        return self._state.host_free

    def missing_blocks(self, request: int, tokens: int) -> int:
        """KV blocks that a request lacks to process a number of tokens (0 if it holds enough)."""
        needed = -(-(self.computed_tokens[request] + tokens) // self._block_tokens)
        return max(needed - self.held_blocks[request], 0)

    def find_cached(self, request: int) -> CachedPrefix:
        """The longest run of a request's full blocks in the prefix cache, but not all of its known tokens.

        Nothing is found unless the policy's run has a true attribute `caches_prefixes`.
        """
        if self._cache is None:
            return NOTHING_CACHED
        return self._cache.find(request, self.known_tokens[request])

    def reuse(self, request: int, cached: CachedPrefix) -> None:
        """Let a request without KV cache start with what was found for it; then schedule the rest.

        Raises
        ------
        PolicyError
            If the request holds KV blocks or is on the host, nothing was found, or prefixes are not cached.
        """
        if self._cache is None or self.host_tokens[request]:
            raise self._refusal(request, "reuses cached KV blocks but may not")
        try:
            self._cache.reuse(request, cached)
        except PoolError as error:
            raise self._refusal(request, f"reuses cached KV blocks: {error}") from None
        self.hits[request] = self._state.computed[request] = len(cached.blocks) * self._block_tokens

    def schedule(self, request: int, tokens: int, blocks: int) -> None:
        """Put tokens of a request into the batch and give it so many more KV blocks (0 or more).

        Raises
        ------
        PolicyError
            If the request is in the batch already, the tokens are not known (1 to known - computed), C or R
            is exceeded, the blocks are not free, or they cannot hold the KV entries.
        """
        after = self.computed_tokens[request] + tokens
        if (
            tokens < 1
            or after > self.known_tokens[request]
            or request in self._batch
            or self.host_tokens[request]
        ):
            raise self._refusal(request, self._why_not(request, tokens))
        if tokens > self.tokens_left or not self.requests_left:
            raise self._refusal(request, f"does not fit into the batch: {self._room()}, it has {tokens}")
        if blocks:
            try:
                self._pool.take(request, blocks)
            except PoolError as error:
                raise self._refusal(request, f"gets KV blocks that there are not: {error}") from None
        if after > self.held_blocks[request] * self._block_tokens:
            held = self.held_blocks[request]
            raise self._refusal(request, f"needs room for {after} KV entries and holds {held} blocks")
        if self._cache is not None:
            self._state.enter(request, after)
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
        if request in self._state.restored:
            raise self._refusal(request, "is preempted before a batch since it came back from host memory")
        if self.hits.pop(request, 0) == self.computed_tokens[request]:
            # Admitted in this very step: nothing is lost, and what was cached still is.
            self._state.evict(request)
            return self._take_out(request)
        self._note_eviction(request)
        self._state.evict(request)
        return self._take_out(request)

    def restart_output(self, request: int) -> None:
        """Let a preempted request generate all of its output again: a bug of a real engine, emulated."""
        if request not in self.finishing:
            self._state.restart_output(request)

    def drop(self, request: int) -> None:
        """Lose a waiting request for good: a bug of a real engine, emulated.

        Raises
        ------
        PolicyError
            If the request holds KV blocks.
        """
        if self.held_blocks[request] or not self.known_tokens[request]:
            raise self._refusal(request, "is dropped but does not wait")
        self._state.drop(request)
        self.dropped += 1

    def swap_out(self, request: int) -> int:
        """Evict a resident request to host memory and return the tokens that this takes out of the batch.

        All its blocks move, also those that it holds for tokens to come.

        Raises
        ------
        PolicyError
            If the request has no KV entries, the instance has no swap, or host memory is full.
        """
        blocks = self.held_blocks[request]
        if not self.computed_tokens[request] or request in self._state.restored:
            raise self._refusal(request, "is swapped out but has no KV entries of its own to keep")
        if not self._state.instance.switches.preemption.swaps:
            raise self._refusal(request, "is swapped out, but the instance has no swap (switch preemption)")
        if blocks > self.free_host_blocks:
            room = f"{self.free_host_blocks} of {self._state.instance.limits.host_kv_blocks} are free"
            raise self._refusal(request, f"is swapped out with {blocks} KV blocks to host memory, {room}")
        self._note_eviction(request)
        if request not in self.finishing:
            self.swapped.add(request)
            self.moved_blocks += self._state.swap_out(request)
        else:
            self._state.evict(request)
        return self._take_out(request)

    def swap_in(self, request: int) -> None:
        """Bring the KV cache of a request back from host memory, into as many blocks as it held.

        Raises
        ------
        PolicyError
            If the request is not in host memory, was swapped out in this very step, or blocks are missing.
        """
        if not self.host_tokens[request] or request in self.swapped:
            raise self._refusal(request, "is swapped in but was not in host memory before this step")
        try:
            self.moved_blocks += self._state.swap_in(request)
        except PoolError as error:
            raise self._refusal(request, f"is swapped in without room: {error}") from None
        self.restored.append(request)

    def _note_eviction(self, request: int) -> None:
        """An eviction, unless the last token of the request is in flight: then nothing is lost."""
        if self._state.is_finishing(request):
            self.finishing.append(request)
        self.evicted.append(request)

    def _take_out(self, request: int) -> int:
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
        name = self._state.instance.requests[request].request_id
        return PolicyError(f"policy {self._label}: request {name!r} {what} (at {self.clock_ns} ns)")
