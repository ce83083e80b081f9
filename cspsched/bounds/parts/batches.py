"""How much of the machine a request takes at least, and how many batches a set of requests needs at least.

Theorem (problem.md, section 5; InferMax, arXiv 2411.07447, for the KV cache): up to its k-th output token a
request occupies, summed over batches, at least

* blocks: ceil((I + j) / b) in the batch that emits token j + 1, whatever happened before, and, because a
  chunk has at most C tokens, ceil((I - l C) / b) in the l-th batch of its prompt before the first token;
* tokens: I for the first output token, 1 for each later one (a refill takes more);
* slots: ceil(I / C) for the first output token, 1 for each later one.

A batch offers `kv_blocks` blocks, C tokens and R slots, and at most one slot to a request.

With prefix cache hits (docs/bounds.md, section 14) tokens and blocks that an earlier request holds count for
that one, and a prompt's slots are those of the tokens that no other request holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.bounds.best_hits.bound import BestHits
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Limits
from cspsched.problem.request import Request
from cspsched.units import ceil_div

ExactArray = npt.NDArray[Any]
"""Python integers (dtype object) unless said otherwise: sums over a trace never overflow."""

TOKENS, KV_VOLUME, SLOTS, LONGEST_REQUEST = "tokens", "kv-volume", "slots", "longest-request"


@dataclass(frozen=True, eq=False)
class Consumption:
    """What each request takes at least, summed over batches; int64, shape (num_requests,)."""

    limits: Limits
    blocks: IntArray
    tokens: IntArray
    slots: IntArray

    def total_counts(self) -> dict[str, int]:
        """Batches that all requests together need, by each argument.

        Tokens come first: where counts or bounds tie, the simplest argument is named.
        """
        return {
            TOKENS: ceil_div(sum(self.tokens.tolist()), self.limits.max_batch_tokens),
            KV_VOLUME: ceil_div(sum(self.blocks.tolist()), self.limits.kv_blocks),
            SLOTS: ceil_div(sum(self.slots.tolist()), self.limits.max_batch_requests),
            LONGEST_REQUEST: int(self.slots.max()),
        }

    def suffix_counts(self, order: IntArray) -> dict[str, ExactArray]:
        """Batches that the requests from each position of an order on need, by each argument."""
        blocks, tokens, slots = (
            amounts[order] if sum(amounts.tolist()) < INT64_SAFE else amounts[order].astype(object)
            for amounts in (self.blocks, self.tokens, self.slots)
        )
        return {
            TOKENS: -(-suffix_sums(tokens) // self.limits.max_batch_tokens),
            KV_VOLUME: -(-suffix_sums(blocks) // self.limits.kv_blocks),
            SLOTS: -(-suffix_sums(slots) // self.limits.max_batch_requests),
            LONGEST_REQUEST: np.maximum.accumulate(slots[::-1])[::-1],
        }


@dataclass(frozen=True, slots=True)
class BatchCount:
    """A number of batches that no schedule undercuts, and the argument that gave it."""

    num_batches: int
    reason: str


def batch_count_bound(requests: Sequence[Request], limits: Limits) -> BatchCount:
    """Lower bound on the number of batches of every feasible schedule of some requests.

    Parameters
    ----------
    requests
        At least one; each must fit the limits alone.
    limits
        Capacities of the replica.

    Returns
    -------
    BatchCount
        The largest of the four arguments `kv-volume`, `tokens`, `slots` and `longest-request`.
    """
    prompts = np.array([request.prompt_tokens for request in requests], dtype=np.int64)
    outputs = np.array([request.output_tokens for request in requests], dtype=np.int64)
    return largest(consume(prompts, outputs, limits).total_counts())


def largest(counts: dict[str, int]) -> BatchCount:
    """The argument that counts the most batches, the first of equals."""
    reason = max(counts, key=counts.__getitem__)
    return BatchCount(counts[reason], reason)


def consume(
    prompts: IntArray, emitted: IntArray, limits: Limits, hits: BestHits | None = None
) -> Consumption:
    """Consumption of requests up to a number of output tokens of each (at least 1).

    Parameters
    ----------
    prompts, emitted
        Prompt tokens and output tokens counted, shape (num_requests,).
    hits
        Best possible hits of these requests; None without prefix cache.
    """
    block, budget = limits.block_tokens, limits.max_batch_tokens
    emitting = _blocks_up_to(prompts + emitted - 1, block) - _blocks_up_to(prompts - 1, block)
    sums = earlier_chunks(-(-np.arange(int(prompts.max()) + 1) // block), budget)
    hits = hits or BestHits.none(len(prompts))
    chunks = -(-(prompts - hits.findable) // budget)
    held = sums[prompts] - sums[prompts - (chunks - 1) * budget]
    slots = chunks - 1 + emitted
    return Consumption(
        limits=limits,
        blocks=emitting + held - hits.found // block * slots,
        tokens=prompts - hits.found + emitted - 1,
        slots=slots,
    )


def earlier_chunks(values: IntArray, budget: int) -> IntArray:
    """For each s the sum of values[s - l budget] over l = 1, 2, ... with s - l budget > 0."""
    rows = ceil_div(len(values), budget)
    if rows < 2:
        return np.zeros_like(values)
    padded = np.zeros(rows * budget, dtype=values.dtype)
    padded[: len(values)] = values
    padded[0] = 0
    sums = np.cumsum(padded.reshape(rows, budget), axis=0)
    shifted = np.concatenate((np.zeros((1, budget), dtype=values.dtype), sums[:-1]))
    return shifted.reshape(-1)[: len(values)]


def suffix_sums(values: ExactArray) -> ExactArray:
    """Sum of the values from each position on."""
    sums: ExactArray = np.cumsum(values[::-1])[::-1]
    return sums


def _blocks_up_to(tokens: IntArray, block: int) -> IntArray:
    """Sum of ceil(s / block) over s = 1..tokens."""
    full, rest = tokens // block, tokens % block
    return block * (full * (full + 1) // 2) + rest * (full + 1)
