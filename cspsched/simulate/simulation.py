"""What a policy made of an instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """What a policy made of an instance.

    Attributes
    ----------
    policy
        Label of the policy.
    schedule
        Every batch in the policy's order; kv_tokens counts tokens computed.
    held_blocks
        Shape (num_batches,): KV blocks held during the batch. At least what the tokens occupy, and more
        where a policy allocates ahead (Sarathi takes a whole prompt's blocks at once).
    num_waiting
        Shape (num_batches,): requests that have arrived and hold no KV block during the batch.
    decided_ns
        Shape (num_batches,): when the policy decided; the start of the batch, or earlier if it decides ahead.
    preempted
        (batch, request) of every preemption as the policy told it. Beside the evictions of the schedule there
        are those of requests whose last token was in flight, which lose nothing.
    output_changes
        {request: tokens generated} where an emulated bug of the real engine, or a cancellation, made them
        more or fewer than were asked for. No schedule of the instance does that, and the referee says so.
    """

    policy: str
    schedule: Schedule
    held_blocks: IntArray
    num_waiting: IntArray
    decided_ns: IntArray
    preempted: tuple[tuple[int, int], ...]
    output_changes: Mapping[int, int] = field(default_factory=dict)
