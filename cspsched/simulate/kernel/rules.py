"""Rules: the functions and numbers by which the kernel runs a policy.

The replica knows no policy. What makes it fast (decodes in lockstep, a calendar of finishes, counts of block
growth) it offers by properties that a policy states here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.protocol import Policy

if TYPE_CHECKING:
    from cspsched.simulate.kernel.layout import Kernel


class Order(IntEnum):
    """Order of the waiting queue, and where a preempted request goes."""

    ARRIVAL = 0
    """By arrival; preempted requests to the front."""
    PRIORITY = 1
    """By (priority, arrival, name)."""
    OUTPUT = 2
    """Shortest expected output first."""
    VOLUME = 3
    """Least O I + O (O - 1) / 2 first, O as expected."""
    LONGEST_OUTPUT = 4
    """Longest expected output first."""
    PROMPT = 5
    """Shortest prompt first."""
    GIVEN = 7
    """By the places that the rules say."""
    QUALITY = 6
    """Sorted-F: sets of least output over the square of their size first."""


class Reserve(IntEnum):
    """KV blocks that an admission takes; O is the expected output."""

    CHUNK = 0
    """Those of its first chunk."""
    KNOWN = 1
    """Those of all known tokens."""
    PEAK = 2
    """Those of I + O - 1 tokens, at most the device."""
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


class Entries(IntEnum):
    """Order of the entries of a batch in the schedule."""

    BY_NUMBER = 0
    """By the number of their spans."""
    PREFILLS_FIRST = 1
    """Prefills, then decodes, each by number."""
    DECODES_FIRST = 2
    """Decodes, then prefills, each by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy under an instance's limits; what a loop does not name it does not read.

    Attributes
    ----------
    run
        The loop that runs the rules, an `outer` function: it is compiled only if a policy asks for it.
    cancel
        Cancels a request at a time (see `kernel.cancel`), plain Python; None: all that wait are in the heap.
    own
        What the policy alone reads and writes, settings and state: an object of a slotted dataclass of
        numbers, which is `Kernel.own` in the run.
    kv_blocks, block_tokens
        Usable KV blocks, and tokens of each.
    max_tokens, batch_tokens
        The policy's own token budget of a batch, and the instance's.
    max_running
        Most running requests; of a policy that serves by rank most in a batch.
    most_holders
        Most requests that ever hold KV blocks.
    ttft_limit_ns, tpot_limit_ns
        Deadlines of requests that have none of their own, if the policy looks at deadlines (else 0).
    clients
        Whether decodes in lockstep are counted by client.
    decides_ahead
        Whether the next batch is decided while one runs, before its tokens are known.
    by_priority, places
        Whether the priority of a request goes before its place in the order of the queue; the places, if the
        order is `GIVEN`.
    expected_tokens
        What the policy takes for the outputs before they are generated, shape (num_requests,); None: it does
        not look at them.
    most_new_tokens
        Most tokens to come that a request in lockstep is expected to have, if there is a limit.
    stages
        Chunks by the stage of a prompt.
    order_columns
        Columns of `Kernel.orders` that the policy uses.
    ranks
        Whether requests have ranks: places in the order of the queue, all different.
    entries
        In which order a batch gets its entries.
    lockstep
        Whether decodes run in lockstep wherever nothing speaks against it.
    keeps_order
        Whether running requests stand in an order of the policy's own in place of that of their admissions.
    sorts_by_key, joins_from_batch
        Whether that order is by key; whether it is that of the batch, of those that begin to decode.
    stands_by_admission
        Whether prefills stand among the decodes of a batch, all by admission; else before or after them.
    keeps_notes
        Whether the policy keeps `RequestNotes`.
    host_blocks
        KV blocks in host memory, if victims may move there.
    swaps
        Whether a policy in Python may move them there.
    flights
        Most batches in flight, of a policy that is asked at arrivals while there are fewer; without lockstep.
    caches_prefixes
        Whether requests start with full blocks that others have left on the device.
    restarts_output, drops_above
        Emulated bugs: a preempted request generates its whole output again; a longer request, or
        one that the watermark keeps out for ever, is dropped (0: none is).
    """

    kv_blocks: int
    block_tokens: int
    max_tokens: int
    max_running: int
    order: Order = Order.ARRIVAL
    run: Callable[[Kernel], int]
    cancel: Callable[[Kernel, int, int], None] | None = None
    batch_tokens: int
    most_holders: int
    reserve: Reserve = Reserve.KNOWN
    chunk: Chunk = Chunk.ANY
    learns_lengths: bool = False
    clients: bool = False
    watermark_blocks: int = 0
    longest_prompt: int = 0
    fixed_blocks: int = 0
    lookahead: int = 0
    max_model_len: int = 0
    decides_ahead: bool = False
    most_new_tokens: int = 0
    host_blocks: int = 0
    flights: int = 0
    swaps: bool = False
    caches_prefixes: bool = False
    restarts_output: bool = False
    drops_above: int = 0
    ttft_limit_ns: float = 0.0
    tpot_limit_ns: float = 0.0
    order_columns: int = 4
    ranks: bool = False
    entries: Entries = Entries.BY_NUMBER
    lockstep: bool = True
    keeps_order: bool = False
    sorts_by_key: bool = False
    joins_from_batch: bool = False
    stands_by_admission: bool = False
    keeps_notes: bool = False
    stages: tuple[int, ...] = ()
    by_priority: bool = False
    places: IntArray | None = None
    expected_tokens: IntArray | None = None
    own: Any = field(default_factory=PolicyState)

    @property
    def has_deadlines(self) -> bool:
        """Whether the policy looks at deadlines."""
        return self.ttft_limit_ns > 0

    @property
    def notes_decisions(self) -> bool:
        """Whether a batch may start later than it was decided."""
        return self.decides_ahead or self.host_blocks > 0 or self.flies

    @property
    def flies(self) -> bool:
        """Whether batches end later than they are processed."""
        return self.flights > 0 and not self.lockstep


@runtime_checkable
class HasKernelRules(Policy, Protocol):
    """A policy that the kernel runs."""

    def kernel_rules(self, instance: Instance) -> Rules | None:
        """Rules under an instance's limits and switches; None if the kernel does not know the settings."""
