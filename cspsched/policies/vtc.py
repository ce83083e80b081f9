"""VTC, fair to clients by virtual token counters (Sheng et al., OSDI '24, arXiv 2401.00588).

Source: rules written down from the behaviour of Ying1123/VTC-artifact (`vtc_req_queue.py`). Each client
(`client_id` of a request) has a counter of the service it got. When its queue becomes non-empty the counter
is lifted to the least of the other clients with queued requests, so that nobody saves up service by being
away. Of the clients with queued requests the one of least counter goes next: its head is admitted by the
memory test and budgets of `lightllm`, and input_price x prompt is charged at once; every decode step charges
output_price x tokens. The first client that does not fit ends the round. All clients weigh the same.

Left open by the written rules and decided here: of equal counters the client that was seen first goes; a
paused request returns to the front of its client's queue and its prompt is not charged again; the token that
a prefill generates is not charged, for it is no decode step. A trace without clients is one client, and then
this is `lightllm` with first come, first served.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import ClassVar

from cspsched.errors import UsageError
from cspsched.policies.batching import Compiled, Configured
from cspsched.policies.lightllm import LightllmRun, LightllmSettings
from cspsched.policies.needs import Need, RequestData
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.each.rules import AnyRules


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
class Vtc(Compiled, Configured):
    """VTC (OSDI '24, VTC-artifact): the client that has got the least service goes next."""

    settings: VtcSettings = VtcSettings()
    name: ClassVar[str] = "vtc"
    settings_type: ClassVar[type[VtcSettings]] = VtcSettings
    needs: ClassVar[tuple[Need, ...]] = (
        Need(data=RequestData.CLIENT, without="all are one client and it acts as fcfs"),
    )

    def new_run(self, instance: Instance) -> VtcRun:
        """Empty queues and counters at 0 under the instance's limits and the settings."""
        return VtcRun(instance, self.settings)


class VtcRun(LightllmRun):
    """Queues of one run; `counters` is the service of each client, in the order of their first arrival."""

    def __init__(self, instance: Instance, settings: VtcSettings) -> None:
        router = LightllmSettings(
            running_max_req_size=settings.running_max_req_size,
            batch_max_tokens=settings.batch_max_tokens,
            router_max_wait_tokens=settings.router_max_wait_tokens,
        )
        super().__init__(instance, router)
        self.counters: dict[str, float] = {}
        self._prices = settings
        self._queues: dict[str, list[int]] = {}
        self._charged: set[int] = set()

    def kernel_rules(self) -> AnyRules | None:
        """All of it."""
        prices = self._prices
        return self._rules_by_request(
            clients=True, price=float(prices.input_price), output_price=float(prices.output_price)
        )

    def submit(self, request: int) -> None:
        """Queue an arrival at its client's end."""
        super().submit(request)
        self._enter_queue(request)

    def requeue(self, request: int) -> None:
        """Queue a paused request at its client's front, for it came before those that still wait."""
        super().requeue(request)
        self._enter_queue(request)

    def decode(self, step: Step) -> None:
        """One token for every decode, each charged to its client."""
        super().decode(step)
        for request in step.batch:
            self.counters[self._client(request)] += self._prices.output_price

    def _client(self, request: int) -> str:
        return self.requests[request].client_id

    def _enter_queue(self, request: int) -> None:
        """Lift the counter of a client that had nothing queued to the least of those that have."""
        client = self._client(request)
        queue = self._queues.setdefault(client, [])
        counter = self.counters.setdefault(client, 0.0)
        if not queue:
            others = [self.counters[other] for other, queued in self._queues.items() if queued]
            self.counters[client] = max(counter, min(others, default=counter))
        insort(queue, request, key=self.rank.__getitem__)

    def _admit(self, step: Step) -> bool:
        """Admit the head of the client of least counter if it fits; whether another may follow."""
        client = min((name for name, queue in self._queues.items() if queue), key=self.counters.__getitem__)
        request = self._queues[client][0]
        self.waiting.remove(request)
        self.waiting.insert(0, request)
        may_follow = super()._admit(step)
        if request not in step.batch:
            # Back to its place: the list of all who wait stays in order of arrival.
            insort(self.waiting, self.waiting.pop(0), key=self.rank.__getitem__)
            return False
        self._queues[client].pop(0)
        if request not in self._charged:
            self._charged.add(request)
            self.counters[client] += self._prices.input_price * self.requests[request].prompt_tokens
        return may_follow
