"""What the certificates of an instance read, computed once: request columns, minorants, price tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
    def work(self) -> tuple[WorkTable, ...]:
        """One table of prices for each minorant."""
        longest = int((self.prompts + self.outputs).max()) - 1
        budget = self.instance.limits.max_batch_tokens
        return tuple(WorkTable(minorant, budget, longest) for minorant in minorants(self.instance))

    @cached_property
    def solo(self) -> SoloTable:
        """Times of a request alone on the machine."""
        return solo_table(self.instance, self.work)
