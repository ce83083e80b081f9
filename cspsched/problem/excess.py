"""How far a value is above the optimum, as far as that is proven: one interval, one direction of each end."""

from __future__ import annotations

from typing import NamedTuple


class Excess(NamedTuple):
    """Certified interval of (value - optimum) / optimum; None where the end that it is measured from is 0.

    Attributes
    ----------
    at_least
        Over the best known schedule: the optimum is no higher, so no less than this is proven.
    at_most
        Over a proven bound: the optimum is no lower, so no more than this is possible.
    """

    at_least: float | None
    at_most: float | None

    @classmethod
    def of(cls, value_ns: int, *, best_ns: int, bound_ns: int) -> Excess:
        """Excess of a value, given that of the best known schedule and a proven bound on the optimum.

        Parameters
        ----------
        value_ns, best_ns, bound_ns
            In nanoseconds, or in what the objective counts; `bound_ns <= best_ns <= value_ns`.
        """
        return cls(_over(value_ns, best_ns), _over(value_ns, bound_ns))

    @property
    def is_exact(self) -> bool:
        """Whether the optimum is known, so that both ends are the same number."""
        return self.at_least == self.at_most


def _over(value_ns: int, end_ns: int) -> float | None:
    """(value - end) / end, from the exact difference; nothing is no share of nothing."""
    if end_ns:
        return (value_ns - end_ns) / end_ns
    return None if value_ns else 0.0
