"""Arrivals that a coarse clock has stamped, drawn anew within their ticks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.cost import IntArray
from cspsched.units import ns_to_seconds

MIN_TICK_NS = 1_000_000
"""A clock that ticks faster is not coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Uniform offsets within a tick; the same seed gives the same offsets."""

    seed: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        """Read `uniform` or `uniform:SEED`.

        Raises
        ------
        UsageError
            If the text is neither.
        """
        match = re.fullmatch(r"uniform(?::([0-9]{1,9}))?", text)
        if match is None:
            raise UsageError(f"--dejitter is {text!r}, expected uniform or uniform:SEED, such as uniform:7")
        return cls(seed=int(match[1] or 0))

    def spread(self, elapsed_ns: IntArray) -> tuple[IntArray, str]:
        """Sorted arrivals since the first, each drawn within its tick, and what is to be told.

        Requests of a tick keep their order. A tick is as long as the shortest gap above 0.
        """
        gaps_ns = np.diff(elapsed_ns)
        tick_ns = int(gaps_ns[gaps_ns > 0].min()) if gaps_ns.any() else 0
        if tick_ns < MIN_TICK_NS:
            return elapsed_ns, "--dejitter changes nothing: the arrivals are not on ticks of 1 ms or more"
        offsets_ns = np.random.default_rng(self.seed).integers(0, tick_ns, size=len(elapsed_ns))
        # Ticks do not overlap, so sorting keeps each request in its tick.
        drawn_ns = np.sort(elapsed_ns + offsets_ns)
        tick = f"{ns_to_seconds(tick_ns):g} s"
        return drawn_ns - drawn_ns[0], f"arrivals are drawn within their ticks of {tick} (seed {self.seed})"
