"""Work that no schedule avoids, priced by a minorant.

Theorem (problem.md, section 5): let s = I + k be the tokens that are resident when token k + 1 of a request
is emitted. What the request processes between its tokens k and k + 1 costs at least

* k = 0: a prefill of s tokens. Its last complete pass over the prompt processes s tokens with attention W(s),
  in at least ceil(s / C) chunks; the l-th chunk from the end starts at s - l C or later, so the context read
  again is at least sum over l >= 1 of max(0, s - l C);
* k >= 1: the cheaper of one decode (1 token, context s - 1) and a refill, which is a prefill of s tokens.

Both depend on s alone, so one table over s and its running sum price every request.

With prefix cache hits (docs/bounds.md, section 14) a prompt costs the tokens and the attention that are
charged to it, and the chunks and their context that it cannot do without. A refill finds what the request has
computed before: its last token is processed, and each token before that is processed or read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.bounds.best_hits.bound import BestHits
from cspsched.bounds.parts.batches import ExactArray
from cspsched.bounds.parts.minorant import Minorant
from cspsched.problem.cost import INT64_SAFE, IntArray, triangle

NOTHING = np.zeros(1, dtype=np.int64)
"""Of every prompt."""


@dataclass(frozen=True, eq=False)
class WorkTable:
    """Prices of tokens under one minorant, in nanoseconds times its scale, for up to `longest` tokens."""

    minorant: Minorant
    max_batch_tokens: int
    longest: int
    hits: BestHits | None = None
    """Best possible hits of the requests, whose columns are in the same order; None without prefix cache."""

    @cached_property
    def _resident(self) -> ExactArray:
        """0..longest, as int64 where no sum over the table can overflow, else as Python integers."""
        end = np.array([self.longest], dtype=object)
        worst = int(self._prefills(end)[0]) + int(self._decodes(end)[0])
        exact = np.int64 if worst * (self.longest + 1) < INT64_SAFE else object
        return np.arange(self.longest + 1).astype(exact)

    @cached_property
    def prefills(self) -> ExactArray:
        """Price of the prefill of s tokens that emits a token, shape (longest + 1,)."""
        return self._prefills(self._resident)

    @cached_property
    def refills(self) -> ExactArray:
        """Price of the refill that emits a token with s tokens resident, shape (longest + 1,)."""
        if self.hits is None:
            return self.prefills
        price = self.minorant.scaled
        processed = price("tokens") + price("prefill_tokens") + price("prefill_attention") * self._resident
        kept = np.minimum(processed, price("prefill_context"))
        prices: ExactArray = np.cumsum(kept) - kept - kept[0] + processed
        prices += price("prefill_request") + price("head")
        return prices

    def firsts(self, prompts: IntArray) -> ExactArray:
        """Price of the first token of all requests, less what they find; shape (num_requests,)."""
        return (
            self.after_hits(prompts, self.hits.found, self.hits.findable)
            if self.hits
            else self.prefills[prompts]
        )

    def after_hits(self, prompts: IntArray, found: IntArray, findable: IntArray) -> ExactArray:
        """Price of prompts of which some first tokens are processed by others, and more may be."""
        kind = self._resident.dtype
        return self._prefills(*(column.astype(kind) for column in (prompts, found, findable)))

    @cached_property
    def decodes(self) -> ExactArray:
        """Price of the decode that leaves s tokens resident, shape (longest + 1,); entry 0 means nothing."""
        prices: ExactArray = self._decodes(self._resident)
        return prices

    @cached_property
    def _later(self) -> ExactArray:
        """Running sum over s of the cheaper of decode and refill."""
        sums: ExactArray = np.cumsum(np.minimum(self.refills, self.decodes))
        return sums

    def until(self, prompts: IntArray, emitted: IntArray) -> ExactArray:
        """Work of requests up to some output token of each, Python integers, shape (num_requests,)."""
        return self.compact_until(prompts, emitted).astype(object)

    def compact_until(self, prompts: IntArray, emitted: IntArray) -> ExactArray:
        """The same as int64 where each number is small enough for that; sums may not be."""
        work: ExactArray = self.firsts(prompts) + (self._later[prompts + emitted - 1] - self._later[prompts])
        return work

    def total(self, prompts: IntArray, emitted: IntArray) -> int:
        """Sum of the work of all requests."""
        work = self.compact_until(prompts, emitted)
        is_safe = work.dtype != object and int(work.max()) * len(work) < INT64_SAFE
        return int(work.sum()) if is_safe else int(sum(work.tolist()))

    def _prefills(
        self, resident: ExactArray, found: ExactArray = NOTHING, findable: ExactArray = NOTHING
    ) -> ExactArray:
        price, budget = self.minorant.scaled, self.max_batch_tokens
        chunks = -(-(resident - findable) // budget)
        later_chunks = np.minimum(chunks, resident // budget)
        context = later_chunks * resident - budget * triangle(later_chunks)
        work: ExactArray = (
            (resident - found) * (price("tokens") + price("prefill_tokens"))
            + (triangle(resident) - triangle(found)) * price("prefill_attention")
            + context * price("prefill_context")
            + chunks * price("prefill_request")
            + price("head")
        )
        return work

    def _decodes(self, resident: ExactArray) -> ExactArray:
        price = self.minorant.scaled
        fixed = price("tokens") + price("decode_request") + price("head")
        work: ExactArray = (resident - 1) * price("decode_context") + fixed
        return work
