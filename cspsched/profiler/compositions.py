"""Held-out batches: what a cost model is judged on. None of them lies on a grid of `profile run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cspsched.errors import InputError
from cspsched.problem.cost import BatchFeatures, IntArray
from cspsched.profiler.grids import ragged_lengths
from cspsched.profiler.points import Chunk, attention_pairs

GENERATES = 0.5
"""Share of drawn prefill chunks that end their prompt."""


class Regime(StrEnum):
    """Kinds of batches, reported one by one."""

    DECODE = "decode"
    PREFILL = "prefill"
    MIXED = "mixed"
    REPLAY = "replay"
    """Batches of a simulated schedule."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A batch of the model: prefill chunks first, then decodes.

    Attributes
    ----------
    num_generating
        Requests that generate a token: all decodes, and the last of the prefills.
    """

    regime: Regime
    prefills: tuple[Chunk, ...]
    decodes: tuple[Chunk, ...]
    num_generating: int

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks in the order of the batch."""
        return self.prefills + self.decodes

    def features(self) -> BatchFeatures[int]:
        """What a cost model prices the batch by."""
        prefill_tokens = sum(chunk.tokens for chunk in self.prefills)
        return BatchFeatures(
            tokens=prefill_tokens + len(self.decodes),
            prefill_attention=attention_pairs(self.prefills),
            prefill_tokens=prefill_tokens,
            prefill_context=sum(chunk.context for chunk in self.prefills),
            decode_context=sum(chunk.context for chunk in self.decodes),
            num_generating=self.num_generating,
            num_prefills=len(self.prefills),
            num_decodes=len(self.decodes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How large drawn batches get."""

    max_tokens: int
    max_requests: int
    max_kv_tokens: int
    max_context: int

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.max_requests, self.max_context) < 2 or self.max_kv_tokens < 4:
            raise InputError(f"{self} leaves no room for batches of several requests")


def draw_compositions(per_regime: int, limits: BatchLimits, rng: np.random.Generator) -> list[Composition]:
    """So many batches of each regime but `REPLAY`, in turn, sizes spread log-uniformly up to the limits."""
    kinds: dict[Regime, Callable[[BatchLimits, np.random.Generator], Composition]] = {
        Regime.DECODE: _draw_decode,
        Regime.PREFILL: _draw_prefill,
        Regime.MIXED: _draw_mixed,
    }
    return [draw(limits, rng) for _ in range(per_regime) for draw in kinds.values()]


def stack_features(compositions: Sequence[Composition]) -> BatchFeatures[IntArray]:
    """Features of many batches, int64 of shape (num_batches,) each."""
    rows = np.array([composition.features() for composition in compositions], dtype=np.int64)
    return BatchFeatures(*rows.T)


def _draw_decode(limits: BatchLimits, rng: np.random.Generator) -> Composition:
    decodes = _decodes(_log_uniform(rng, 1, limits.max_requests), limits, rng)
    return Composition(Regime.DECODE, (), decodes, len(decodes))


def _draw_prefill(limits: BatchLimits, rng: np.random.Generator) -> Composition:
    prefills = _prefills(_log_uniform(rng, 2, limits.max_tokens), limits, rng)
    return Composition(Regime.PREFILL, prefills, (), _ending(prefills, rng))


def _draw_mixed(limits: BatchLimits, rng: np.random.Generator) -> Composition:
    count = _log_uniform(rng, 1, min(limits.max_requests, limits.max_tokens) // 2)
    decodes = _decodes(count, limits, rng)
    prefills = _prefills(_log_uniform(rng, 1, limits.max_tokens - count), limits, rng)
    return Composition(Regime.MIXED, prefills, decodes, len(decodes) + _ending(prefills, rng))


def _decodes(count: int, limits: BatchLimits, rng: np.random.Generator) -> tuple[Chunk, ...]:
    mean = _log_uniform(rng, 8, max(8, min(limits.max_context, limits.max_kv_tokens // count) // 2))
    contexts = np.minimum(ragged_lengths(rng, count, mean), limits.max_context)
    return tuple(Chunk(1, int(context)) for context in contexts)


def _prefills(tokens: int, limits: BatchLimits, rng: np.random.Generator) -> tuple[Chunk, ...]:
    """One to four chunks of so many tokens in all, half of them of fresh prompts."""
    count = int(rng.integers(1, min(4, tokens) + 1))
    cuts = np.sort(rng.choice(np.arange(1, max(tokens, 2)), count - 1, replace=False))
    sizes = np.diff([0, *map(int, cuts), tokens])
    return tuple(
        Chunk(int(size), int(rng.integers(2)) * int(rng.integers(1, limits.max_context + 1)))
        for size in sizes
    )


def _ending(prefills: Sequence[Chunk], rng: np.random.Generator) -> int:
    return int(rng.binomial(len(prefills), GENERATES))


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(max(low, high) + 1))))
