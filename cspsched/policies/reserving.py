"""Schedulers that reserve memory for a request's whole life at its admission, and so never preempt."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.problem.instance import Instance
from cspsched.simulate import Step
from cspsched.simulate.kernel.rules import KernelRules, Reserve


class Reservation(StrEnum):
    """Tokens for which an admission reserves KV blocks."""

    MAX = "max"
    """The longest request that can be served: max_model_len, or the device if that is less or not known."""
    POW2 = "pow2"
    """The prompt and the output rounded up to a power of two."""
    ORACLE = "oracle"
    """Exactly what the request will need."""


class ReservingRun(FamilyRun):
    """Queues of one run: all decodes in every batch, and whole prompts as far as reservations fit."""

    def __init__(
        self, instance: Instance, own: OwnLimits, reservation: Reservation = Reservation.MAX
    ) -> None:
        super().__init__(instance, own)
        self._reservation = reservation
        self._blocks = _reserved_blocks(instance, reservation)

    def _base_rules(self) -> KernelRules | None:
        """All of it."""
        rules = super()._base_rules()
        reserve = {
            Reservation.MAX: Reserve.FIXED,
            Reservation.POW2: Reserve.POWER_OF_TWO,
            Reservation.ORACLE: Reserve.PEAK,
        }
        return rules and replace(rules, reserve=reserve[self._reservation], fixed_blocks=self._blocks[0])

    def schedule(self, step: Step) -> None:
        """Every decode, then the queue."""
        self.mixed(step)

    def keep_decodes(self, step: Step) -> tuple[list[int], list[int], int]:
        """All of them: their blocks are reserved."""
        decodes = [request for request in self.running if step.decoding[request]]
        return decodes, [request for request in self.running if not step.decoding[request]], 0

    def blocks_to_admit(self, request: int, known: int) -> int:
        """The reservation."""
        return self._blocks[request]


def _reserved_blocks(instance: Instance, reservation: Reservation) -> list[int]:
    """Blocks that each request of an instance reserves, at most the device."""
    limits = instance.limits
    if reservation is Reservation.MAX:
        # Requests beyond the device are rejected, so that no length above it is ever served.
        tokens = [limits.max_model_len or limits.kv_tokens] * len(instance.requests)
    elif reservation is Reservation.POW2:
        tokens = [
            request.prompt_tokens + (1 << (request.output_tokens - 1).bit_length())
            for request in instance.requests
        ]
    else:
        tokens = [request.peak_kv_tokens for request in instance.requests]
    return [min(limits.blocks_of(reserved), limits.kv_blocks) for reserved in tokens]
