"""Where the aggregated loop finds things."""

from __future__ import annotations

# Columns of `orders` after the heap, where the queue is by quality.
BY_PEAK, CHOSEN, BEST, IS_BEST, ENDS, HELD_TOKENS, AT_END = range(3, 10)
# Columns of `slots`.
LISTED, STARTED, STARTED_TOKENS, GENERATING, STACK, SORTED, NEW_TO_COME, NEW_TOKENS, ENOUGH_WAIT = range(9)
