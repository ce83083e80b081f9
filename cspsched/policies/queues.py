"""Waiting queues in the two orders of vLLM, and whom each order preempts."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from cspsched.problem.instance import Instance


class WaitingQueue(Protocol):
    """Requests that wait, with the order's rules for preemption."""

    victim_may_continue: bool
    """Whether the pass goes on to the next request after a request had to evict itself."""

    def __len__(self) -> int:
        """Requests that wait."""

    def push(self, request: int) -> None:
        """Enter a new request."""

    def push_back(self, request: int) -> None:
        """Enter a preempted request."""

    def head(self) -> int:
        """The request that is served next (the queue is not empty)."""

    def pop(self) -> int:
        """Remove the head."""

    def remove(self, request: int) -> None:
        """Remove a request, wherever it stands."""

    def victim(self, running: Sequence[int]) -> int:
        """Position in `running` (not empty, in order of admission) of the request to preempt."""


class FcfsQueue:
    """First come, first served: preempted requests go to the front, the last admitted is preempted."""

    victim_may_continue = False

    def __init__(self) -> None:
        self._requests: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def push(self, request: int) -> None:
        """Enter at the end."""
        self._requests.append(request)

    def push_back(self, request: int) -> None:
        """Enter at the front."""
        self._requests.appendleft(request)

    def head(self) -> int:
        """First of the queue."""
        return self._requests[0]

    def pop(self) -> int:
        """Remove the first."""
        return self._requests.popleft()

    def remove(self, request: int) -> None:
        """Remove a request."""
        self._requests.remove(request)

    def victim(self, running: Sequence[int]) -> int:
        """The last admitted, whenever it arrived."""
        return len(running) - 1


class PriorityQueue:
    """By (priority, arrival, name), smaller first; preempts the running request of largest priority value."""

    victim_may_continue = True

    def __init__(self, instance: Instance) -> None:
        self._importance = [(request.priority, request.arrival_ns) for request in instance.requests]
        names = [request.request_id for request in instance.requests]
        self._order = sorted(range(len(names)), key=lambda i: (*self._importance[i], names[i]))
        self._rank = [0] * len(names)
        for rank, request in enumerate(self._order):
            self._rank[request] = rank
        self._ranks: list[int] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def push(self, request: int) -> None:
        """Enter at its rank."""
        heapq.heappush(self._ranks, self._rank[request])

    def push_back(self, request: int) -> None:
        """Enter at its rank."""
        self.push(request)

    def head(self) -> int:
        """Lowest of the queue."""
        return self._order[self._ranks[0]]

    def pop(self) -> int:
        """Remove the lowest."""
        return self._order[heapq.heappop(self._ranks)]

    def remove(self, request: int) -> None:
        """Remove a request."""
        self._ranks.remove(self._rank[request])
        heapq.heapify(self._ranks)

    def victim(self, running: Sequence[int]) -> int:
        """The first among those of the largest (priority, arrival)."""
        return max(range(len(running)), key=lambda k: self._importance[running[k]])
