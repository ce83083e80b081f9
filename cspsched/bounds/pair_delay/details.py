"""What a `pair-delay` certificate counts, and in what."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray

ShortArray = npt.NDArray[np.int32]

PAIR_DELAY = "pair-delay"
SHARE_UNIT = 16
"""Shares are in sixteenths."""
MOST_CHUNKS = 256
"""Prompts in more batches are bounded together."""


class Pairs(NamedTuple):
    """Pairs by the younger request, in the order of arrival of the older one."""

    starts: IntArray
    """Where the pairs of each younger request begin, and the end of the last; shape (num_requests + 1,)."""
    older: ShortArray
    """The older request."""
    left: ShortArray
    """Tokens that it has left at least."""
