"""Requests as columns, so that ten million of them need no objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.problem.columns import NONE, Prefix
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.request import MAX_ARRIVAL_NS, MAX_TOKENS
from cspsched.simulate.kernel.rules import Order, Rules

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Columns of shape (num_requests,), in the order of the file.

    Attributes
    ----------
    arrival_ns
        int64, nanoseconds.
    prompt_tokens, output_tokens
        int32, at least 1.
    priority
        int64, smaller is served first; None: all alike.
    names
        Names of the requests; None: names rise with the position.
    client
        Number of each request's client, from 0; None: all are of one client.
    prefixes
        What each prompt begins with (see `Request.prefix`); None: nothing is shared.
    ttft_limit_ns, tpot_limit_ns
        float64, nanoseconds, nan where a request has no limit; None: none has one.
    """

    arrival_ns: IntArray
    prompt_tokens: Int32Array
    output_tokens: Int32Array
    priority: IntArray | None = None
    names: Sequence[str] | None = None
    client: Int32Array | None = None
    prefixes: Sequence[Prefix] | None = None
    ttft_limit_ns: FloatArray | None = None
    tpot_limit_ns: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.arrival_ns)
        if not count:
            raise InputError("the workload has no requests")
        for name, most, least in (
            ("arrival_ns", MAX_ARRIVAL_NS, 0),
            ("prompt_tokens", MAX_TOKENS, 1),
            ("output_tokens", MAX_TOKENS, 1),
        ):
            column: npt.NDArray[Any] = getattr(self, name)
            if column.shape != (count,):
                raise InputError(f"workload: {name} has the shape {column.shape}, expected ({count},)")
            if column.min() < least or column.max() > most:
                raise InputError(
                    f"workload: {name} goes from {column.min()} to {column.max()}, expected {least} to {most}"
                )

    @classmethod
    def from_instance(cls, instance: Instance) -> Workload:
        """Columns of an instance's requests."""
        columns = instance.columns
        return cls(
            arrival_ns=columns.arrival_ns,
            prompt_tokens=columns.prompt_tokens.astype(np.int32),
            output_tokens=columns.output_tokens.astype(np.int32),
            priority=columns.priority,
            names=columns.request_id,
            client=None if columns.client_id is None else _numbered(columns.client_id),
            prefixes=columns.prefix,
            ttft_limit_ns=_limits(columns.ttft_limit_ns),
            tpot_limit_ns=_limits(columns.tpot_limit_ns),
        )

    @property
    def num_requests(self) -> int:
        """Requests."""
        return len(self.arrival_ns)

    @property
    def largest_peak(self) -> int:
        """Most KV entries that a request holds: the largest I + O - 1."""
        return int((self.prompt_tokens.astype(np.int64) + self.output_tokens - 1).max())

    def submission_order(self) -> Int32Array:
        """Requests in the order of (arrival, file)."""
        return np.argsort(self.arrival_ns, kind="stable").astype(np.int32)

    def queue_order(self, rules: Rules) -> Int32Array:
        """Requests in the order of the waiting queue, if all were in it."""
        submission = self.submission_order()
        if rules.order is Order.ARRIVAL:
            return submission
        if rules.order is Order.PRIORITY:
            rank = np.arange(self.num_requests) if self.names is None else _rank(self.names)
            return np.lexsort((rank, self.arrival_ns, self.priorities)).astype(np.int32)
        return submission[np.argsort(self.queue_key(rules)[submission], kind="stable")]

    def queue_key(self, rules: Rules) -> IntArray:
        """What goes before the arrival of each request in the order of the waiting queue, if it has ranks."""
        if rules.order is Order.PRIORITY:
            return self.priorities
        key = self.expected_tokens(rules)
        if rules.order is Order.VOLUME:
            key = key * self.prompt_tokens + key * (key - 1) // 2
        return key

    def ranks(self, rules: Rules) -> Int32Array:
        """Place of each request in `queue_order`."""
        ranks = np.empty(self.num_requests, dtype=np.int32)
        ranks[self.queue_order(rules)] = np.arange(self.num_requests, dtype=np.int32)
        return ranks

    def expected_tokens(self, rules: Rules) -> IntArray:
        """What a policy takes for the output of each request."""
        return (self.output_tokens if rules.expected_tokens is None else rules.expected_tokens).astype(
            np.int64
        )

    def places(self, rules: Rules) -> IntArray:
        """Place of each request in an order of the queue in which equals go by submission."""
        if rules.places is not None:
            return rules.places
        if rules.order is Order.OUTPUT:
            return self.expected_tokens(rules)
        if rules.order is Order.LONGEST_OUTPUT:
            return MAX_TOKENS - self.expected_tokens(rules)
        if rules.order is Order.PROMPT:
            return self.prompt_tokens.astype(np.int64)
        return np.zeros(self.num_requests, dtype=np.int64)

    def by_priority(self, places: IntArray) -> IntArray:
        """Place of each request if the priority goes before places in an order."""
        levels = np.unique(self.priorities, return_inverse=True)[1]
        keys = levels.astype(np.int64) * (places.max() + 1) + places
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)

    def clients_by_arrival(self) -> Int32Array:
        """Client of each request, numbered in the order of their first submissions."""
        if self.client is None:
            return np.zeros(self.num_requests, dtype=np.int32)
        in_order = self.client[self.submission_order()]
        known, first = np.unique(in_order, return_index=True)
        number = np.empty(int(known.max()) + 1, dtype=np.int32)
        number[known[np.argsort(first)]] = np.arange(len(known))
        return number[self.client]

    def importance(self) -> Int32Array:
        """Rank of each request by (priority, arrival), equal where both are."""
        order = np.lexsort((self.arrival_ns, self.priorities))
        priority, arrival_ns = self.priorities[order], self.arrival_ns[order]
        differs = (priority[1:] != priority[:-1]) | (arrival_ns[1:] != arrival_ns[:-1])
        ranks = np.empty(self.num_requests, dtype=np.int32)
        ranks[order] = np.concatenate(([0], np.cumsum(differs)))
        return ranks

    @property
    def priorities(self) -> IntArray:
        """Priority of each request, 0 where there are none."""
        if self.priority is None:
            return np.zeros(self.num_requests, dtype=np.int64)
        return self.priority


def _rank(names: Sequence[str]) -> IntArray:
    """Position of each name among all."""
    rank = np.empty(len(names), dtype=np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return rank


def _numbered(clients: Sequence[str]) -> Int32Array:
    """Number of each client, in the order of the first."""
    numbers = {client: number for number, client in enumerate(dict.fromkeys(clients))}
    return np.array([numbers[client] for client in clients], dtype=np.int32)


def _limits(limits_ns: IntArray | None) -> FloatArray | None:
    return None if limits_ns is None else np.where(limits_ns == NONE, np.nan, limits_ns)
