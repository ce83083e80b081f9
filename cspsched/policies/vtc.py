"""VTC, fair to clients by virtual token counters (Sheng et al., OSDI '24, arXiv 2401.00588).

Source: rules written down from the behaviour of Ying1123/VTC-artifact (`vtc_req_queue.py`). Each client
(`client_id` of a request) has a counter of the service it got. When its queue becomes non-empty the counter
is lifted to the least of the other clients with queued requests, so that no client saves up service by being
away. Of the clients with queued requests the one of least counter goes next: its head is admitted by the
memory test and budgets of `lightllm`, and input_price x prompt is charged at once; every decode step charges
output_price x tokens. The first client that does not fit ends the round. All clients weigh the same.

Left open by the written rules and decided here: of equal counters the client that was seen first goes; a
paused request returns to the front of its client's queue and its prompt is not charged again; the token that
a prefill generates is not charged, for it is no decode step. A trace without clients is one client, and then
this is `lightllm` with first come, first served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.compiled.jit import inner, merged
from cspsched.errors import UsageError
from cspsched.policies.batching import (
    Configured,
    chunk_tokens,
    decode_with,
    newest,
    prefill_with,
    rules_by_request,
)
from cspsched.policies.lightllm import (
    LightllmSettings,
    fits_for_ever,
    is_time_to_prefill,
    router,
    router_rules,
)
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.cancel import cancel_with
from cspsched.simulate.kernel.columns import BATCHED, LOCKED
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.lists import next_arrival, next_number, numbered_key
from cspsched.simulate.kernel.loops import make_loop
from cspsched.simulate.kernel.records import NO_REQUEST, PolicyState
from cspsched.simulate.kernel.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class VtcSettings:
    """Prices, and the router's arguments; None takes the instance's limit."""

    input_price: float = 1.0
    """Service that a prompt token counts, charged at admission."""
    output_price: float = 2.0
    """Service that a token of a decode step counts."""
    running_max_req_size: int = 1000
    """Most running requests."""
    batch_max_tokens: int | None = None
    """Token budget of a prefill batch. Default: the instance's C."""
    router_max_wait_tokens: int = 1
    """Decode steps between two prefills."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "running_max_req_size", "batch_max_tokens", policy="vtc")
        require_at_least(self, 0, "router_max_wait_tokens", policy="vtc")
        for name in ("input_price", "output_price"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(
                    f"policy 'vtc': {name} is {getattr(self, name)}, expected at least 0, finite"
                )


@dataclass(frozen=True, slots=True)
class Vtc(Configured):
    """VTC (OSDI '24, VTC-artifact): the client that has got the least service goes next."""

    settings: VtcSettings = VtcSettings()
    name: ClassVar[str] = "vtc"
    settings_type: ClassVar[type[VtcSettings]] = VtcSettings
    needs: ClassVar[tuple[Need, ...]] = (
        Need(data=RequestData.CLIENT, without="all are one client and it acts as fcfs"),
    )

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits."""
        settings = self.settings
        like_lightllm = LightllmSettings(
            running_max_req_size=settings.running_max_req_size,
            batch_max_tokens=settings.batch_max_tokens,
            router_max_wait_tokens=settings.router_max_wait_tokens,
        )
        own = PolicyState(
            **router(like_lightllm),
            input_price=float(settings.input_price),
            output_price=float(settings.output_price),
        )
        return rules_by_request(
            instance,
            run_vtc,
            own=own,
            clients=True,
            keeps_notes=True,
            cancel=cancel_with(_forget),
            **router_rules(like_lightllm, instance),
        )


@inner
def _least_served(k: Kernel) -> int:
    """Of the clients with queued requests the one of least counter, of equals the first seen."""
    found = NO_REQUEST
    for client in range(k.own.num_clients):
        if k.notes[client].queue_of_client != NO_REQUEST and (
            found == NO_REQUEST or k.notes[client].service < k.notes[found].service
        ):
            found = client
    return found


@inner
def _enter(k: Kernel, request: int) -> None:
    """Queue a request; a client that had nothing queued is lifted to the least of the others that have."""
    client = int(k.notes[request].client)
    k.own.num_clients = max(k.own.num_clients, client + 1)
    before, following = NO_REQUEST, int(k.notes[client].queue_of_client)
    if following == NO_REQUEST:
        least = _least_served(k)
        if least != NO_REQUEST:
            k.notes[client].service = max(k.notes[client].service, k.notes[least].service)
    while following != NO_REQUEST and k.requests[following].key < k.requests[request].key:
        before, following = following, int(k.notes[following].next_of_client)
    k.notes[request].next_of_client = following
    if before == NO_REQUEST:
        k.notes[client].queue_of_client = request
    else:
        k.notes[before].next_of_client = request


def _forget(k: Kernel, request: int) -> None:
    """Take a request that is cancelled out of its client's queue."""
    client = k.notes[int(k.notes[request].client)]
    before, following = NO_REQUEST, int(client.queue_of_client)
    while following not in (request, NO_REQUEST):
        before, following = following, int(k.notes[following].next_of_client)
    if following == request and before == NO_REQUEST:
        client.queue_of_client = k.notes[request].next_of_client
    elif following == request:
        k.notes[before].next_of_client = k.notes[request].next_of_client


@inner
def submit_by_client(k: Kernel) -> None:
    """Queue all arrivals, each at its client."""
    request = next_arrival(k)
    while request >= 0:
        k.requests[request].key = numbered_key(0, next_number(k))
        _enter(k, request)
        request = next_arrival(k)


@inner
def _head(k: Kernel) -> int:
    """The request that is served next (there is one)."""
    return int(k.notes[_least_served(k)].queue_of_client)


@inner
def _take(k: Kernel, request: int) -> None:
    """Take the head of its client's queue, and charge its prompt if that has not been done."""
    notes = k.notes[request]
    client = k.notes[int(notes.client)]
    client.queue_of_client = notes.next_of_client
    if not notes.charged:
        notes.charged = 1
        client.service += k.own.input_price * k.requests[request].prompt_tokens


@inner
def _charge_decodes(k: Kernel) -> None:
    """Charge every decode of the batch to its client."""
    now = k.now
    if now.is_locked and k.own.num_clients <= now.num_locked:
        _charge_locked(k)
        return
    column, count = (LOCKED, now.locked_end) if now.is_locked else (BATCHED, now.num_batched)
    for position in range(count):
        request = k.slots[position, column]
        if request != NO_REQUEST:
            k.notes[int(k.notes[request].client)].service += k.own.output_price


@inner
def _charge_locked(k: Kernel) -> None:
    """Charge the decodes in lockstep, by client; one addition each, as in floating point they round."""
    price = k.own.output_price
    for client in range(k.own.num_clients):
        service = k.notes[client].service
        for _ in range(k.notes[client].locked_of_client):
            service += price
        k.notes[client].service = service


_decode = decode_with(newest, _enter)
_prefill = prefill_with(chunk_tokens, fits_for_ever, head=_head, take=_take)


@merged
def vtc_step(k: Kernel) -> None:
    """As LightLLM; every decode is charged to its client."""
    if is_time_to_prefill(k):
        _prefill(k)
    if not k.now.num_in_batch:
        k.own.num_steps += 1
        _decode(k)
        _charge_decodes(k)


run_vtc = make_loop("run_vtc", submit=submit_by_client, step=vtc_step)
