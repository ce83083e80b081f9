"""Seeds of the parts of a trace, each with a stream of its own."""

from __future__ import annotations

import numpy as np


def child_of(seeds: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """The seeds of a part, the same every time: `spawn` would count."""
    return np.random.SeedSequence(seeds.entropy, spawn_key=(*seeds.spawn_key, number))
