"""Where the loops that visit every request find things, beside what is in the kernel's own layout."""

from __future__ import annotations

from cspsched.simulate.kernel.layout import IMPORTANCE, NEXT, ORDER, RANK, RECOMPUTED

# Positions in `now` from ORDER on: the fields of EachRules in their order, then more of what changes.
(
    LOOP, BATCH_TOKENS, MOST_HOLDERS, MODE, RESERVES, CUT, EVICT, TEST, QUEUE_AFTER_EVICTION, DECODE_STEPS,
    SPARE_BLOCKS, ASSUMED_TOKENS, TOTAL_TOKENS, GROUPS, LEARNS_LENGTHS, LENGTH_THRESHOLD, DECODES_FOLLOW,
    MOST_PREFILL, MIXES_DECODES, CLIENTS, WATERMARK, LONGEST_PROMPT, BY_ARRIVAL, MOST_IN_BATCH,
    PADDED_TOKENS, STAGE_TOKENS, NUM_STAGES, FIXED_BLOCKS, BY_IMPORTANCE, TEST_KNOWN, LONG_PREFILL, ADAPTIVE,
    LOOKAHEAD, MAX_MODEL_LEN, INTERVAL, DECIDES_AHEAD, RETRACTS_FOR, THRESHOLD,
    STARVATION_PERIOD, ASKS, RATIO, PRICE, OUTPUT_PRICE,
    USED_TOKENS, NUM_IN_BATCH, NUM_LISTED, NUM_BATCHED, DECISION, HEAP_SIZE, GROUP_LEFT, IS_FULL, SHARE,
    FRONT, BATCH_START_NS, LAST_PROMPT_NS, LAST_WAS_PROMPT, NUM_IDLE, NUM_STEPS, LAST_PREFILL_STEP,
    CAPACITY_BOUND, QUEUE_START, RENUMBERS, IS_IN_FLIGHT, BUSY_UNTIL_NS, NUM_ENDING, SOMEBODY_FINISHED,
    IS_LOCKED, MUST_UNLOCK, MAY_LOCK, NUM_LOCKED, LOCKED_END, LOCKED_CONTEXT, LOCKED_TOTAL, DECODES_AT,
    LAST_NUMBER, LAST_RANK, CALENDAR_MASK,
) = range(ORDER + 1, ORDER + 78)  # fmt: skip
LENGTH_COUNT, LENGTH_SUM = CALENDAR_MASK + 1, CALENDAR_MASK + 33
"""Of finished requests, by the bits of their prompt: how many, and their tokens together."""
# Of the loop that asks: what it waits for, its place, and question and answer.
STAGE, POSITION, BUDGET, BATCH_MODE, ASKED, MOST, HAS_ANSWER, ANSWER, CHUNK_GIVEN = range(
    LENGTH_SUM + 32, LENGTH_SUM + 41
)
NUM_NOW = CHUNK_GIVEN + 1

# More columns of `rows`: last decode step of the run that is open (or NO_RUN), tokens in the batch that is
# decided, decision in which the request was evicted last, what a policy keeps of a request, and of one in
# lockstep the decode step since which it is, and its place in that list. PLACE is its number in the order.
# The last, in the row of a client's number, says how many of its requests are in lockstep.
LAST_STEP, TOKENS, EVICTED_AT, LEVEL, JOINED, LOCKED_PLACE, LOCKED_OF_CLIENT = range(
    IMPORTANCE + 1, IMPORTANCE + 8
)
NUM_ROW = LOCKED_OF_CLIENT + 1
NO_RUN = -2
IN_LOCKSTEP = 4
"""One more value of PHASE: a decode whose row is as it was when it joined the lockstep."""

# More columns of `wide`: what the queue is sorted by, and what a policy keeps of a request.
KEY, SPENT, IDLE_SINCE_NS = range(RECOMPUTED + 1, RECOMPUTED + 4)
NUM_WIDE = IDLE_SINCE_NS + 1

# Columns of `slots`: running requests in the policy's order, the batch, and lists that a step makes.
# The last holds the decodes in lockstep, with holes; the first then only the others.
LISTED, BATCHED, SORTED_LIST, IDLE, FIRST_LIST, SECOND_LIST = range(6)
HELD_TOKENS, TO_COME, THIRD_LIST, LOCKED = range(6, 10)

NUM_SLOT = 10
# Columns of `rows` under other names where clients have queues: the first that a client has queued (in the
# row of the client's number), the next in the queue, the client, and whether the prompt has been charged.
QUEUE_OF_CLIENT, NEXT_OF_CLIENT, CLIENT, CHARGED = RANK, NEXT, IMPORTANCE, LEVEL
# A column of `slots` where batches are decided ahead: who finishes in one that has not ended, oldest first.
ENDING = FIRST_LIST

# Columns of `wide` and `rows` where a request retracts others: the priority, and whether it is to go.
PRIORITY, IS_VICTIM = SPENT, LEVEL

# And where deadlines rank requests: whether a request is among those with prefill left, and whether it is
# behind all others; its number; the time that its prefill takes; how many prefills are left, and how long
# decodes can wait.
IS_QUEUED, IS_RELEGATED, SUBMITTED_AS, LEFT_NS = NEXT, LEVEL, SPENT, IDLE_SINCE_NS
NUM_QUEUED, LONGEST_NS = GROUP_LEFT, SHARE
# More columns of `wide` there: the priority; in floating point when the first token is due, the time for each
# further one, and the rank.
TIER, DUE_NS, TOKEN_NS, URGENCY = range(NUM_WIDE, NUM_WIDE + 4)
NUM_WIDE_WITH_DEADLINES = URGENCY + 1

KEY_BITS = 33
"""Of a key, for the number of the submission."""
LEVEL_BITS = 40
