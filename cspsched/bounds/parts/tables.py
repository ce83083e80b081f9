"""What the certificates of an instance read, computed once: request columns, minorants, price tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspsched.bounds.best_hits.bound import BestHits, best_hits
from cspsched.bounds.parts.batches import Consumption, consume
from cspsched.bounds.parts.minorant import minorants
from cspsched.bounds.parts.solo import SoloTable, solo_table
from cspsched.bounds.parts.work import WorkTable
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance


@dataclass(frozen=True, eq=False)
class Tables:
    """Shared ground of the certificates. Every request of the instance must fit the limits alone."""

    instance: Instance

    @cached_property
    def prompts(self) -> IntArray:
        """Prompt tokens, shape (num_requests,)."""
        return self.instance.columns.prompt_tokens

    @cached_property
    def outputs(self) -> IntArray:
        """Output tokens, shape (num_requests,)."""
        return self.instance.columns.output_tokens

    @cached_property
    def arrivals_ns(self) -> IntArray:
        """Arrivals, shape (num_requests,)."""
        return self.instance.columns.arrival_ns

    @cached_property
    def first_tokens(self) -> IntArray:
        """One output token of each request, shape (num_requests,)."""
        return np.ones_like(self.outputs)

    @cached_property
    def hits(self) -> BestHits | None:
        """What the requests find in the prefix cache at best; None where nothing is cached."""
        return best_hits(self.instance)

    @cached_property
    def charged_prompts(self) -> IntArray:
        """Prompt tokens that are charged to each request, shape (num_requests,)."""
        return self.prompts if self.hits is None else self.prompts - self.hits.found

    @cached_property
    def chunks(self) -> IntArray:
        """Batches that each prompt needs, shape (num_requests,)."""
        own = self.prompts if self.hits is None else self.prompts - self.hits.findable
        return -(-own // self.instance.limits.max_batch_tokens)

    def consumption(self, emitted: IntArray) -> Consumption:
        """Blocks, tokens and slots up to some output token of each request."""
        return consume(self.prompts, emitted, self.instance.limits, self.hits)

    @cached_property
    def work(self) -> tuple[WorkTable, ...]:
        """One table of prices for each minorant."""
        longest = int((self.prompts + self.outputs).max()) - 1
        budget = self.instance.limits.max_batch_tokens
        return tuple(WorkTable(one, budget, longest, self.hits) for one in minorants(self.instance))

    @cached_property
    def solo(self) -> SoloTable:
        """Times of a request alone on the machine."""
        return solo_table(self.instance, self.work)
