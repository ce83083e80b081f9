"""Compiled: a queue for each client, and the service that each has got (VTC).

Client c keeps its queue and its counter in row c of the requests: a list by key, linked.
"""

from __future__ import annotations

from cspsched.simulate.kernel.each.layout import (
    BATCHED,
    LOCKED,
)
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.records import NOBODY


@inner
def counter(k: Kernel, client: int) -> float:
    """Service that a client got."""
    return float(k.notes[client].service)


@inner
def set_counter(k: Kernel, client: int, service: float) -> None:
    """Note the service of a client."""
    k.notes[client].service = service


@inner
def _least_served(k: Kernel) -> int:
    """Of the clients with queued requests the one of least counter, of equals the first seen."""
    found = NOBODY
    for client in range(k.now.num_idle):
        if k.notes[client].queue_of_client != NOBODY and (
            found == NOBODY or counter(k, client) < counter(k, found)
        ):
            found = client
    return found


@inner
def enter_client(k: Kernel, request: int) -> None:
    """Queue a request; a client that had nothing queued is lifted to the least of the others that have."""
    client = int(k.notes[request].client)
    k.now.num_idle = max(k.now.num_idle, client + 1)
    before, following = NOBODY, int(k.notes[client].queue_of_client)
    if following == NOBODY:
        least = _least_served(k)
        if least != NOBODY:
            set_counter(k, client, max(counter(k, client), counter(k, least)))
    while following != NOBODY and k.requests[following].key < k.requests[request].key:
        before, following = following, int(k.notes[following].next_of_client)
    k.notes[request].next_of_client = following
    if before == NOBODY:
        k.notes[client].queue_of_client = request
    else:
        k.notes[before].next_of_client = request


@inner
def client_head(k: Kernel) -> int:
    """The request that is served next (somebody waits)."""
    return int(k.notes[_least_served(k)].queue_of_client)


@inner
def admit_client(k: Kernel, request: int) -> None:
    """Take the head of its client's queue, and charge its prompt if that has not been done."""
    notes = k.notes[request]
    client = int(notes.client)
    k.notes[client].queue_of_client = notes.next_of_client
    if not notes.charged:
        notes.charged = 1
        set_counter(k, client, counter(k, client) + k.now.price * k.requests[request].prompt_tokens)


@inner
def charge_decodes(k: Kernel) -> None:
    """Charge every decode of the batch to its client."""
    if k.now.is_locked and k.now.num_idle <= k.now.num_locked:
        _charge_locked(k)
        return
    column, count = (LOCKED, k.now.locked_end) if k.now.is_locked else (BATCHED, k.now.num_batched)
    for position in range(count):
        request = k.slots[position, column]
        if request != NOBODY:
            client = int(k.notes[request].client)
            set_counter(k, client, counter(k, client) + k.now.output_price)


@inner
def _charge_locked(k: Kernel) -> None:
    """Charge the decodes in lockstep, by client; one addition each, as in floating point they round."""
    price = k.now.output_price
    for client in range(k.now.num_idle):
        service = counter(k, client)
        for _ in range(k.notes[client].locked_of_client):
            service += price
        set_counter(k, client, service)
