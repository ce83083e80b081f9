"""The decisions of a policy that the aggregated loop serves, as small numbers, and what the loop keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Batch(IntEnum):
    """What may share a batch, and what comes first."""

    RUNNING_FIRST = 0
    """vLLM V1: what runs in order of admission, under one token budget; then the queue."""
    MIXED = 1
    """Decodes, started prefills, the queue."""
    PREFILL_ONLY = 2
    """Prefills alone; decodes only if there are none."""
    DECODE_ONLY = 3
    """Decodes alone; prefills only if there are none."""
    TURNS = 4
    """Turns of prefills and of decodes."""
    WAITING_RATIO = 5
    """TGI: prefills alone, if enough requests wait or enough decode steps have passed."""
    DECODE_STEPS = 6
    """LightLLM: prefills alone, every so many decode steps."""


class Gate(IntEnum):
    """When the queue may be tried."""

    ALWAYS = 0
    NOT_AFTER_EVICTION = 1
    """Not in a step that preempted."""
    NOBODY_RUNS = 2
    """Only when no request runs."""
    NOTHING_STARTED = 3
    """Not in a batch that continues a started prefill."""


class Need(IntEnum):
    """When decodes lack memory."""

    KEEP_ONE = 0
    """When all that they take is more than what is free; but the last running request is never evicted."""
    ONE_SPARE = 1
    """When one does not see a free block, whether it takes one or not (Sarathi family)."""


class Victim(IntEnum):
    """Who is preempted."""

    NEWEST = 0
    """The last admitted."""
    LEAST_IMPORTANT = 1
    """The first among those of the largest (priority, arrival)."""


class Admit(IntEnum):
    """The memory test of an admission."""

    RESERVED = 0
    """What it reserves is free, above the watermark."""
    FUTURE = 1
    """The memory of all running requests fits at every future completion."""


ALL_SERVED = 2**62
"""`Aggregated.served_end` while none sits out."""


@dataclass(slots=True, kw_only=True)
class Aggregated:
    """Decisions, then the state of the loop.

    Attributes
    ----------
    long_prefill
        Longest chunk while more than one request is there; 0 means no limit (RUNNING_FIRST).
    test_known
        Whether an admission with `Reserve.CHUNK` needs room for all known tokens.
    decode_steps, waiting_ratio
        Of WAITING_RATIO and DECODE_STEPS.
    future_spare, future_extra
        Blocks that have to stay free at every future completion, and tokens that each request counts more
        until it decodes (`Admit.FUTURE`).
    exact_requests
        Most waiting requests among which the best set is found exactly (`Order.QUALITY`).
    restarts_output
        Emulated bug: a preempted request generates its whole output again.
    """

    batch: Batch = Batch.MIXED
    gate: Gate = Gate.ALWAYS
    need: Need = Need.KEEP_ONE
    victim: Victim = Victim.NEWEST
    admit: Admit = Admit.RESERVED
    long_prefill: int = 0
    test_known: bool = True
    decode_steps: int = 0
    waiting_ratio: float = 0.0
    future_spare: int = 0
    future_extra: int = 0
    exact_requests: int = 0
    turn: int = 0
    decode_count: int = 0
    num_unplaced: int = 0
    peak_blocks: int = 0
    served_end: int = ALL_SERVED
    running_end: int = 0
    queue_head: int = 0
    queue_back: int = 0
    num_started: int = 0
