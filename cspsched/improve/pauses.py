"""Planned preemptions: a request that is to lose its KV cache amid its output becomes two for the machine.

By the rules of the problem a preempted request with prompt I that has generated k of O tokens processes
I + k tokens again, and the last of them yields the next token. So it is a request (I, k), and then one
(I + k, O - k).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cspsched.errors import InputError
from cspsched.improve.plan import Pause
from cspsched.problem.instance import Instance

if TYPE_CHECKING:
    from cspsched.improve.machine import Machine

NOT_YET = np.iinfo(np.int32).max
ALONE = (-1, 0)
"""The last columns of `Machine.table` for a request that waits for no other."""
MOST_REQUESTS = 5_000
"""Of more requests one preemption changes too little for its trials to be worth their time."""


def may_pause(instance: Instance) -> bool:
    """Whether the search plans preemptions: recomputing is allowed, in chunks, and nothing is reserved."""
    switches = instance.switches
    allowed = switches.preemption.recomputes and switches.chunked_prefill and not switches.reservation
    return allowed and len(instance.requests) <= MOST_REQUESTS


def with_pauses(machine: Machine, pauses: tuple[Pause, ...]) -> Machine:
    """The machine with second parts as further requests, which come with the first parts and wait for them.

    Raises
    ------
    InputError
        If a request is to be preempted after its last token.
    """
    from cspsched.improve.machine import AFTER, HOLD, NUM_EVENTS, OUTPUT, PROMPT

    requests, tokens, hold_batches = np.array(pauses, dtype=np.int32).T
    if np.any(tokens >= machine.table[requests, OUTPUT]):
        raise InputError("list schedule: a request is preempted after its last token")
    table = np.concatenate((machine.table, machine.table[requests]))
    second = slice(len(machine.table), None)
    table[requests, OUTPUT] = tokens
    table[second, PROMPT] += tokens
    table[second, OUTPUT] -= tokens
    table[second, AFTER], table[second, HOLD] = requests, hold_batches
    eligible_ns = np.concatenate((machine.eligible_ns, machine.eligible_ns[requests]))
    machine.now[NUM_EVENTS] = len(table)
    return machine._replace(
        keys=np.concatenate((machine.keys, machine.keys[requests])),
        eligible_ns=eligible_ns,
        events=np.argsort(eligible_ns, kind="stable").astype(np.int32),
        table=table,
        chunk_doublings=np.concatenate((machine.chunk_doublings, machine.chunk_doublings[requests])),
        places=np.full((len(table), 3), NOT_YET, dtype=np.int32),
    )
