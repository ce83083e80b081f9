"""Compiled: a queue for each client, and the service that each has got (VTC).

Client c keeps its queue and its counter in row c of the requests: a list by key, linked.
"""

from __future__ import annotations

import numpy as np

from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    CHARGED,
    CLIENT,
    IS_LOCKED,
    KEY,
    LOCKED,
    LOCKED_END,
    LOCKED_OF_CLIENT,
    NEXT_OF_CLIENT,
    NUM_BATCHED,
    NUM_IDLE,
    NUM_LOCKED,
    OUTPUT_PRICE,
    PRICE,
    QUEUE_OF_CLIENT,
    SPENT,
)
from cspsched.simulate.kernel.each.lists import get_float
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import NOBODY, PROMPT, Kernel


@inner
def counter(k: Kernel, client: int) -> float:
    """Service that a client got."""
    return float(k.wide[client : client + 1, SPENT].view(np.float64)[0])


@inner
def set_counter(k: Kernel, client: int, service: float) -> None:
    """Note the service of a client."""
    k.wide[client : client + 1, SPENT].view(np.float64)[0] = service


@inner
def _least_served(k: Kernel) -> int:
    """Of the clients with queued requests the one of least counter, of equals the first seen."""
    found = NOBODY
    for client in range(k.now[NUM_IDLE]):
        if k.rows[client, QUEUE_OF_CLIENT] != NOBODY and (
            found == NOBODY or counter(k, client) < counter(k, found)
        ):
            found = client
    return found


@inner
def enter_client(k: Kernel, request: int) -> None:
    """Queue a request; a client that had nothing queued is lifted to the least of the others that have."""
    client = int(k.rows[request, CLIENT])
    k.now[NUM_IDLE] = max(k.now[NUM_IDLE], client + 1)
    before, following = NOBODY, int(k.rows[client, QUEUE_OF_CLIENT])
    if following == NOBODY:
        least = _least_served(k)
        if least != NOBODY:
            set_counter(k, client, max(counter(k, client), counter(k, least)))
    while following != NOBODY and k.wide[following, KEY] < k.wide[request, KEY]:
        before, following = following, int(k.rows[following, NEXT_OF_CLIENT])
    k.rows[request, NEXT_OF_CLIENT] = following
    if before == NOBODY:
        k.rows[client, QUEUE_OF_CLIENT] = request
    else:
        k.rows[before, NEXT_OF_CLIENT] = request


@inner
def client_head(k: Kernel) -> int:
    """The request that is served next (somebody waits)."""
    return int(k.rows[_least_served(k), QUEUE_OF_CLIENT])


@inner
def admit_client(k: Kernel, request: int) -> None:
    """Take the head of its client's queue, and charge its prompt if that has not been done."""
    row = k.rows[request]
    client = int(row[CLIENT])
    k.rows[client, QUEUE_OF_CLIENT] = row[NEXT_OF_CLIENT]
    if not row[CHARGED]:
        row[CHARGED] = 1
        set_counter(k, client, counter(k, client) + get_float(k, PRICE) * row[PROMPT])


@inner
def charge_decodes(k: Kernel) -> None:
    """Charge every decode of the batch to its client."""
    if k.now[IS_LOCKED] and k.now[NUM_IDLE] <= k.now[NUM_LOCKED]:
        _charge_locked(k)
        return
    column, count = (LOCKED, k.now[LOCKED_END]) if k.now[IS_LOCKED] else (BATCHED, k.now[NUM_BATCHED])
    for position in range(count):
        request = k.slots[position, column]
        if request != NOBODY:
            client = int(k.rows[request, CLIENT])
            set_counter(k, client, counter(k, client) + get_float(k, OUTPUT_PRICE))


@inner
def _charge_locked(k: Kernel) -> None:
    """Charge the decodes in lockstep, by client; one addition each, as in floating point they round."""
    price = get_float(k, OUTPUT_PRICE)
    for client in range(k.now[NUM_IDLE]):
        service = counter(k, client)
        for _ in range(k.rows[client, LOCKED_OF_CLIENT]):
            service += price
        set_counter(k, client, service)
