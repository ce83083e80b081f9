"""A point: an operator and the batch that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cspsched.problem.cost import triangle


class Chunk(NamedTuple):
    """What a batch processes of one request."""

    tokens: int
    """c: tokens processed."""
    context: int
    """n: KV entries that are there before."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row to be measured.

    Attributes
    ----------
    backend
        Which of the operator's implementations.
    chunks
        One for each sequence; for operators that see tokens only, a single chunk of them all.
    active_experts
        Experts that the tokens are spread over; 0 for operators without any.
    """

    operator: str
    tensor_parallel: int
    backend: str
    chunks: tuple[Chunk, ...]
    active_experts: int = 0

    @property
    def num_tokens(self) -> int:
        """N: tokens processed."""
        return sum(chunk.tokens for chunk in self.chunks)

    @property
    def kv_read(self) -> int:
        """KV entries that attention reads: what was there and what is new."""
        return sum(chunk.tokens + chunk.context for chunk in self.chunks)

    @property
    def attention_pairs(self) -> int:
        """Pairs of a query and a key below the diagonal: the sum of W(n + c) - W(n)."""
        return attention_pairs(self.chunks)

    @property
    def is_ragged(self) -> bool:
        """Whether the sequences differ."""
        return len(set(self.chunks)) > 1


def attention_pairs(chunks: Iterable[Chunk]) -> int:
    """Sum of W(n + c) - W(n) over chunks, with W(x) = x (x + 1) / 2."""
    return sum(triangle(chunk.context + chunk.tokens) - triangle(chunk.context) for chunk in chunks)


def tokens_chunk(num_tokens: int) -> tuple[Chunk, ...]:
    """The batch of an operator that sees nothing but tokens."""
    return (Chunk(num_tokens, 0),)
