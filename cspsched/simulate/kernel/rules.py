"""The decision points that the kernel knows, as small numbers, so that one compiled loop serves all policies.

Each field is one decision. What cannot be said with them is left to the clear engine: then a policy's
`kernel_rules` returns None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cspsched.problem.instance import Instance
from cspsched.simulate.protocol import Policy

if TYPE_CHECKING:
    from cspsched.simulate.kernel.each.rules import EachRules
    from cspsched.simulate.kernel.layout import Kernel


class Order(IntEnum):
    """Order of the waiting queue, and where a preempted request goes."""

    ARRIVAL = 0
    """By arrival; preempted requests to the front."""
    PRIORITY = 1
    """By (priority, arrival, name)."""
    OUTPUT = 2
    """Shortest output first."""
    VOLUME = 3
    """Least O I + O (O - 1) / 2 first."""
    LONGEST_OUTPUT = 4
    """Longest output first."""
    PROMPT = 5
    """Shortest prompt first."""
    GIVEN = 7
    """By the places that the rules say."""
    QUALITY = 6
    """Sorted-F: sets of least output over the square of their size first."""


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


class Reserve(IntEnum):
    """KV blocks that an admission takes."""

    CHUNK = 0
    """Those of its first chunk."""
    KNOWN = 1
    """Those of all known tokens."""
    PEAK = 2
    """Those of I + O - 1 tokens."""
    OUTPUT = 3
    """Those of I + O tokens, at most the device."""
    POWER_OF_TWO = 4
    """Those of I + O rounded up to a power of two, at most the device."""
    FIXED = 5
    """`fixed_blocks`."""


class Chunk(IntEnum):
    """How a prefill is cut."""

    ANY = 0
    """It takes what the budget leaves."""
    TOO_LONG = 1
    """Only a prompt beyond the whole budget is cut, at its admission into an empty batch."""
    BEYOND_BUDGET = 2
    """Only what exceeds the whole budget is cut, wherever it stands."""
    NEVER = 3
    """It waits for a batch that holds it."""
    WHOLE_BLOCKS = 4
    """It takes the whole KV blocks that the budget leaves."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """A policy with all its limits, the instance's included.

    Attributes
    ----------
    kv_blocks, block_tokens
        Usable KV blocks, and tokens of each.
    max_tokens
        Token budget of a batch (in the Sarathi family: of its prefills).
    max_running
        Most running requests. No more than `max_tokens` unless `batch` is RUNNING_FIRST in order of arrival.
    long_prefill
        Longest chunk while more than one request is there; 0 means no limit (RUNNING_FIRST).
    watermark_blocks
        Blocks that an admission leaves free while others run.
    test_known
        Whether an admission with `Reserve.CHUNK` needs room for all known tokens.
    longest_prompt
        Most known tokens of an admission; beyond, the policy refuses to go on. 0 means no limit.
    decode_steps, waiting_ratio
        Of WAITING_RATIO and DECODE_STEPS.
    future_spare, future_extra
        Blocks that have to stay free at every future completion, and tokens that each request counts more
        until it decodes (`Admit.FUTURE`).
    run
        The loop that runs the rules, an `outer` function; None: that of `batch`.
    exact_requests
        Most waiting requests among which the best set is found exactly (`Order.QUALITY`).
    restarts_output
        Emulated bug: a preempted request generates its whole output again.
    prefills_first
        Whether prefills stand before decodes in the log of a batch.
    """

    kv_blocks: int
    block_tokens: int
    max_tokens: int
    max_running: int
    order: Order = Order.ARRIVAL
    batch: Batch = Batch.MIXED
    reserve: Reserve = Reserve.KNOWN
    chunk: Chunk = Chunk.ANY
    gate: Gate = Gate.ALWAYS
    need: Need = Need.KEEP_ONE
    victim: Victim = Victim.NEWEST
    admit: Admit = Admit.RESERVED
    long_prefill: int = 0
    watermark_blocks: int = 0
    test_known: bool = True
    longest_prompt: int = 0
    fixed_blocks: int = 0
    decode_steps: int = 0
    future_spare: int = 0
    future_extra: int = 0
    exact_requests: int = 0
    restarts_output: bool = False
    waiting_ratio: float = 0.0
    prefills_first: bool = True
    run: Callable[[Kernel], int] | None = None


@runtime_checkable
class HasKernelRules(Policy, Protocol):
    """A policy that the kernel runs."""

    def kernel_rules(self, instance: Instance) -> KernelRules | EachRules | None:
        """Rules under an instance's limits and switches; None if the kernel does not know the settings."""
