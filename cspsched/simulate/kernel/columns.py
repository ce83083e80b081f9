"""Where the loops that visit every request find things, beside what is in the kernel's own layout."""

from __future__ import annotations

IN_LOCKSTEP = 4
"""One more value of `RequestState.phase`: a decode whose record is as it was when it joined the lockstep."""

# Columns of `slots`: running requests in the policy's order, the batch, and lists that a step makes.
# The last holds the decodes in lockstep, with holes; the first then only the others.
LISTED, BATCHED, SORTED_LIST, IDLE, FIRST_LIST, SECOND_LIST = range(6)
HELD_TOKENS, TO_COME, THIRD_LIST, LOCKED = range(6, 10)

NUM_SLOT = 10
# A column of `slots` where batches are decided ahead: who finishes in one that has not ended, oldest first.
ENDING = FIRST_LIST
# One more, where prefixes are cached: who generated in it.
UNSEEN = SECOND_LIST

KEY_BITS = 33
"""Of a key, for the number of the submission."""
LEVEL_BITS = 40
