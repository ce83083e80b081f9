"""Schedulers that reserve memory for a request's whole life at its admission, and so never preempt."""

from __future__ import annotations

from enum import StrEnum

from cspsched.errors import UsageError
from cspsched.policies.sarathi_family import FamilyRun, OwnLimits
from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class Reservation(StrEnum):
    """Tokens for which an admission reserves KV blocks."""

    MAX = "max"
    """The longest request that the model takes (max_model_len)."""
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
        self._blocks = _reserved_blocks(instance, reservation, own.label)

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


def _reserved_blocks(instance: Instance, reservation: Reservation, label: str) -> list[int]:
    """Blocks that each request of an instance reserves.

    Raises
    ------
    UsageError
        If max_model_len is to be reserved and is not known, or is more than the device holds.
    """
    limits = instance.limits
    if reservation is not Reservation.MAX:
        tokens = [request.peak_kv_tokens for request in instance.requests]
        if reservation is Reservation.POW2:
            tokens = [
                request.prompt_tokens + (1 << (request.output_tokens - 1).bit_length())
                for request in instance.requests
            ]
        # A request fits the device, whatever the rounding makes of it.
        return [min(limits.blocks_of(reserved), limits.kv_blocks) for reserved in tokens]
    if limits.max_model_len is None:
        raise UsageError(
            f"policy {label} reserves max_model_len tokens for every request, and the instance has no "
            "max_model_len; give one"
        )
    blocks = limits.blocks_of(limits.max_model_len)
    if blocks > limits.kv_blocks:
        raise UsageError(
            f"policy {label} reserves max_model_len = {limits.max_model_len} tokens for every request, "
            f"{blocks} KV blocks, and the device has {limits.kv_blocks}; give a smaller max_model_len"
        )
    return [blocks] * len(instance.requests)
