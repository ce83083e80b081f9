"""Memory reserved for a request's whole life at its admission, so that no request is ever preempted."""

from __future__ import annotations

from enum import StrEnum

from cspsched.policies.expected import declared_tokens
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Limits
from cspsched.simulate.kernel.rules import Reserve


class Reservation(StrEnum):
    """Tokens for which an admission reserves KV blocks."""

    MAX = "max"
    """The longest request that can be served: max_model_len, or the device if that is less or not known."""
    POW2 = "pow2"
    """The prompt and the output rounded up to a power of two."""
    ORACLE = "oracle"
    """Exactly what the request will need."""
    DECLARED = "declared"
    """The prompt and max_tokens of the request (else its output), as in the Orca paper (OSDI '22)."""


RESERVE = {
    Reservation.MAX: Reserve.FIXED,
    Reservation.POW2: Reserve.POWER_OF_TWO,
    Reservation.ORACLE: Reserve.PEAK,
    Reservation.DECLARED: Reserve.PEAK,
}


def reserved_outputs(instance: Instance, reservation: Reservation) -> IntArray | None:
    """Return the outputs by which memory is reserved, shape (num_requests,); None if by none."""
    if reservation is Reservation.MAX:
        return None
    return (
        declared_tokens(instance) if reservation is Reservation.DECLARED else instance.columns.output_tokens
    )


def longest_blocks(limits: Limits) -> int:
    """Blocks of the longest request that can be served, at most the device: no longer one is admitted."""
    return min(limits.blocks_of(limits.max_model_len or limits.kv_tokens), limits.kv_blocks)
