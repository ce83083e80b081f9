"""A certificate: a proven lower bound with everything that is needed to check it."""

from __future__ import annotations

from dataclasses import dataclass

from cspsched.problem.objectives import Objective

Details = dict[str, int | str]


@dataclass(frozen=True)
class Certificate:
    """No feasible schedule of the instance has an objective below `value_ns`.

    Attributes
    ----------
    name
        The theorem that was used, such as `kv-volume` or `srpt`.
    objective
        What is bounded.
    value_ns
        The bound in integer nanoseconds (sums for latency and TTFT).
    details
        What the theorem was applied to: the minorant, the batch count, the split. Rationals are exact text.
    """

    name: str
    objective: Objective
    value_ns: int
    details: Details


def best_first(certificates: list[Certificate]) -> tuple[Certificate, ...]:
    """Certificates by falling value; equal values keep their order."""
    return tuple(sorted(certificates, key=lambda certificate: -certificate.value_ns))
