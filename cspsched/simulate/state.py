"""State of all requests on one replica, in columns, and what running a batch does to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cspsched.problem.cost import BatchFeatures
from cspsched.problem.instance import Instance
from cspsched.simulate.pool import BlockPool
from cspsched.simulate.prefix_cache import PrefixCachePool


class Outcome(NamedTuple):
    """What a batch did."""

    features: BatchFeatures[int]
    kv_tokens: list[int]
    """KV entries of each processed request after the batch, in the order of the batch."""
    finished: list[int]
    """Requests that generate their last token, in the order of the batch."""


class State:
    """Parallel lists indexed by the position of a request in the instance.

    Attributes
    ----------
    known
        Prompt and generated tokens that can be processed; 0 before the request is submitted and once it is
        retired.
    computed
        Tokens whose KV entries are on the device.
    decoding
        The request generated a token when it was last processed, and was not evicted since.
    pool
        The KV blocks on the device.
    cache
        The same pool, if prefixes are cached.
    host
        KV entries of every request in host memory.
    host_free
        Free KV blocks in host memory.
    restored
        Requests that came back from host memory since the last batch.
    output_changes
        Tokens that a request generates in all where an emulated bug makes them others than asked for.
    undelivered
        Requests in a batch that has not ended: what it generates is counted in `known`, nobody has seen it.
    """

    __slots__ = (
        "_blocks_on_host", "_decoding_on_host", "_final", "_prompt", "_unseen", "cache", "computed",
        "decoding", "host", "host_free", "instance", "known", "num_active", "num_submitted", "output_changes",
        "pool", "restored", "undelivered",
    )  # fmt: skip

    def __init__(self, instance: Instance, *, caches_prefixes: bool = False) -> None:
        count = len(instance.requests)
        self.instance = instance
        self._prompt = [request.prompt_tokens for request in instance.requests]
        self._final = [request.prompt_tokens + request.output_tokens for request in instance.requests]
        self.output_changes: dict[int, int] = {}
        self.known = [0] * count
        self.computed = [0] * count
        self.decoding = [False] * count
        self.host = [0] * count
        self.host_free = instance.limits.host_kv_blocks
        self.restored: set[int] = set()
        self._blocks_on_host = [0] * count
        self._decoding_on_host = [False] * count
        self.undelivered: set[int] = set()
        self.num_active = self.num_submitted = 0
        self._unseen = [0] * count
        self.cache = PrefixCachePool(instance) if caches_prefixes else None
        self.pool = self.cache or BlockPool(capacity=instance.limits.kv_blocks, num_requests=count)

    @property
    def num_waiting(self) -> int:
        """Requests submitted, unfinished and without a KV block on the device."""
        return self.num_active - self.pool.num_holders

    def submit(self, request: int) -> None:
        """Make the prompt of a request known."""
        self.known[request] = self._prompt[request]
        self.num_active += 1
        self.num_submitted += 1

    def evict(self, request: int) -> None:
        """Drop the KV cache of a request; its generated tokens are kept."""
        self.pool.release(request)
        self.computed[request] = 0
        self.decoding[request] = False

    def restart_output(self, request: int) -> None:
        """Let a request generate its whole output once more, as if what it has were prompt."""
        output_tokens = self.instance.requests[request].output_tokens
        self._final[request] = self.known[request] + output_tokens
        self.output_changes[request] = self._final[request] - self._prompt[request]

    def drop(self, request: int) -> None:
        """Lose a request that holds nothing; it keeps what it has generated."""
        self.output_changes[request] = self.known[request] - self._prompt[request]
        self.retire([request])

    def swap_out(self, request: int) -> int:
        """Move all KV blocks of a request to host memory, filled or not, and return how many."""
        blocks = self._blocks_on_host[request] = self.pool.held[request]
        self.host[request], self._decoding_on_host[request] = self.computed[request], self.decoding[request]
        self.host_free -= blocks
        self.evict(request)
        return blocks

    def swap_in(self, request: int) -> int:
        """Move the KV blocks of a request back to the device and return how many."""
        blocks = self._blocks_on_host[request]
        self.pool.take(request, blocks)
        self.computed[request], self.decoding[request] = self.host[request], self._decoding_on_host[request]
        self.host_free += blocks
        self.host[request] = 0
        self.restored.add(request)
        return blocks

    def retire(self, requests: Iterable[int]) -> None:
        """Free what finished requests hold; those preempted with their last token in flight hold nothing."""
        for request in requests:
            if self.pool.held[request]:
                self.evict(request)
            self.known[request] = 0
            self.num_active -= 1

    def is_finishing(self, request: int) -> bool:
        """Whether the last token of a request is in flight."""
        return self.computed[request] + 1 == self._final[request]

    def enter(self, request: int, tokens: int) -> None:
        """Let the cache know the first tokens of a request, as far as somebody has seen them."""
        assert self.cache is not None
        self.cache.enter(request, min(tokens, self.known[request] - self._unseen[request]))

    def launch(self, batch: Iterable[int]) -> list[int]:
        """Note that a batch, just processed, has not ended; return who generates in it."""
        generating = [request for request in batch if self.decoding[request]]
        for request in generating:
            self._unseen[request] += 1
        return generating

    def deliver(self, generating: Iterable[int]) -> None:
        """Let the tokens of a launched batch be seen, and cached unless their request was evicted."""
        for request in generating:
            self._unseen[request] -= 1
            if self.cache is not None and self.pool.held[request]:
                self.cache.enter(request, self.computed[request] - self._unseen[request])

    def process(self, batch: Mapping[int, int]) -> Outcome:
        """Process tokens {request: tokens} of a batch: grow the KV cache, generate, add up the features.

        Finished requests keep their blocks until they are retired. A decode processes exactly one token
        and always generates, hence the short branch.
        """
        known, computed, decoding, final = self.known, self.computed, self.decoding, self._final
        attention = prefill_tokens = prefill_context = decode_context = 0
        num_decodes = num_generating = 0
        self.restored.clear()
        kv_tokens: list[int] = []
        finished: list[int] = []
        for request, tokens in batch.items():
            before = computed[request]
            after = computed[request] = before + tokens
            kv_tokens.append(after)
            if decoding[request]:
                num_decodes += 1
                decode_context += before
            else:
                attention += tokens * (before + after + 1) // 2
                prefill_tokens += tokens
                prefill_context += before
                if after < known[request]:
                    continue
                num_generating += 1
                decoding[request] = True
            if after + 1 == final[request]:
                finished.append(request)
            else:
                known[request] = after + 1
        features = BatchFeatures(
            tokens=prefill_tokens + num_decodes,
            prefill_attention=attention,
            prefill_tokens=prefill_tokens,
            prefill_context=prefill_context,
            decode_context=decode_context,
            num_generating=num_generating + num_decodes,
            num_prefills=len(kv_tokens) - num_decodes,
            num_decodes=num_decodes,
        )
        return Outcome(features, kv_tokens, finished)
