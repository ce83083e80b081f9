"""Places of requests in a queue by rank whose arrivals are known only as they are submitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.layout import BY_RANK, Kernel
from cspsched.simulate.kernel.rules import Order, Rules
from cspsched.simulate.kernel.workload import Workload


class Standing:
    """Gives ranks to requests in the order of their submission, among those of the same key.

    The key is what goes before the arrival: priority, or expected output, or volume. It sets apart as many
    ranks as requests have it, and these are given out as the requests come. Requests of one priority that
    arrive together stand by name, those of another key by submission.

    Parameters
    ----------
    keys
        Key of each request, shape (num_requests,).
    name_of
        Name of a request, if those that arrive together stand by it.
    has_places
        Whether the queue finds requests by their ranks.
    """

    def __init__(self, keys: IntArray, name_of: Callable[[int], str] | None, *, has_places: bool) -> None:
        levels, self._group = np.unique(keys, return_inverse=True)
        counts = np.bincount(self._group, minlength=len(levels))
        self._next_rank = (np.cumsum(counts) - counts).tolist()
        self._together: list[tuple[int, list[int]]] = [(-1, [])] * len(levels)
        self._name_of, self._has_places = name_of, has_places

    @classmethod
    def of(cls, instance: Instance, rules: Rules) -> Standing | None:
        """The standing of an instance's requests under a policy's rules; None if they have no ranks."""
        by_priority = rules.order is Order.PRIORITY
        if not (rules.ranks or by_priority):
            return None
        keys = Workload.from_instance(instance).queue_key(rules)
        name_of = instance.columns.request_id.__getitem__ if by_priority else None
        return cls(keys, name_of, has_places=rules.ranks)

    def enter(self, kernel: Kernel, request: int, arrival_ns: int) -> None:
        """Give a request its rank, and those that arrive together with it theirs anew."""
        group = int(self._group[request])
        last_ns, together = self._together[group]
        if last_ns != arrival_ns:
            together = []
            self._together[group] = arrival_ns, together
        first = self._next_rank[group] - len(together)
        self._next_rank[group] += 1
        together.append(request)
        if self._name_of is not None:
            together.sort(key=self._name_of)
        for rank, one in enumerate(together, first):
            kernel.requests[one].rank = rank
            # Equal for those that arrive together.
            kernel.requests[one].importance = first
            if self._has_places:
                kernel.orders[rank, BY_RANK] = one
