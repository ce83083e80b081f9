"""Where the aggregated loop finds things."""

from __future__ import annotations

from cspsched.simulate.kernel.layout import ENDED

# Columns of `orders` after those of all policies, where the queue is by quality.
BY_PEAK, CHOSEN, BEST, IS_BEST, ENDS, HELD_TOKENS, AT_END = range(ENDED + 1, ENDED + 8)
# Columns of `slots`.
LISTED, STARTED, STARTED_TOKENS, GENERATING, STACK, SORTED, NEW_TO_COME, NEW_TOKENS, ENOUGH_WAIT = range(9)
