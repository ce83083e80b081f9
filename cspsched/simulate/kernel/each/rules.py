"""Rules of policies that choose per request in every batch: decision points as small numbers, once more.

The loops of this package visit every running request in every step, as the clear engine does, but compiled.
So a decision may look at anything: ranks that change, whoever arrived last, what each request still lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from cspsched.simulate.kernel.rules import Admit, Chunk, KernelRules, Order, Reserve

if TYPE_CHECKING:
    from cspsched.simulate.kernel.layout import Kernel

Program = Callable[["Kernel"], int]
"""Runs a kernel until all is done, a log is full, or something is wrong; the answer says which."""


class Loop(IntEnum):
    """The loop that runs the rules; each is compiled only if a policy asks for it."""

    QUEUE = 0
    """A queue and running requests, prefill and decode as parts (`QueueRun`)."""
    RANKED = 1
    """Running and waiting requests in one order (`RankedRun`)."""
    FAMILY = 2
    """The Sarathi family with V0 and Vidur's schedulers (`FamilyRun`)."""
    VLLM = 3
    """vLLM V1 with all that the other loop leaves out."""
    DECIDED = 4
    """As vLLM V1, but a policy in Python is asked (`cspsched.simulate.decisions`)."""


class Mode(IntEnum):
    """How a batch is put together."""

    MIXED = 0
    """Decodes, then prefills."""
    PREFILL_ONLY = 1
    """Prefills alone; decodes only if there are none."""
    DECODE_ONLY = 2
    """Decodes alone; prefills only if there are none."""
    PREFILL_FIRST = 3
    """Prefills, then decodes in what they leave."""
    WAITING_RATIO = 4
    """TGI: prefills alone, if enough requests wait or enough decode steps have passed."""
    DECODE_STEPS = 5
    """LightLLM: prefills alone, every so many decode steps."""
    SGLANG = 6
    """Prefills alone or with decodes, unless the batch is full; a share of the outputs decays."""
    MAX_UTILIZATION = 7
    """TensorRT-LLM: blocks for the next step only, in order of arrival."""
    REMAINING = 8
    """By remaining output; whoever is past its share goes first (RANKED)."""
    LEVELS = 9
    """FastServe's queues (RANKED)."""
    PADDED = 10
    """Vidur's vLLM: padded prompts alone (FAMILY)."""
    STALL_FREE = 11
    """Vidur's Sarathi: decodes, then prefills (FAMILY)."""
    WHOLE = 12
    """Vidur's Orca and FasterTransformer: decodes, then whole prompts, all memory reserved (FAMILY)."""
    CHUNKED = 13
    """vLLM V0 with chunks (FAMILY)."""
    EQUAL_PROGRESS = 14
    """TensorRT-LLM: decodes, then a block for every context in turn."""
    DEADLINES = 15
    """Niyama without relegation: by deadline and work left (RANKED)."""
    RELEGATING = 16
    """Niyama (RANKED)."""


class Evict(IntEnum):
    """Who is evicted first."""

    NEWEST = 0
    """The last admitted."""
    LAST_IN_ORDER = 1
    """The last in the order of the queue."""
    FEWEST_KNOWN = 2
    """The fewest known tokens; of equals the last in the order of the queue."""
    FEWEST_GENERATED = 3
    """The fewest generated tokens, then the longest prompt; of equals the last admitted."""
    LEAST_IMPORTANT = 4
    """The first among those of the largest (priority, arrival)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EachRules:
    """A policy with all its limits, the instance's included; what a loop does not name it does not read.

    Attributes
    ----------
    kv_blocks, block_tokens
        Usable KV blocks, and tokens of each.
    max_tokens, batch_tokens
        The policy's own token budget of a batch, and the instance's.
    max_running
        Most running requests, or (RANKED) most in a batch.
    most_holders
        Most requests that ever hold KV blocks.
    queue_after_eviction
        Whether the queue is tried in a step that evicted.
    spare_blocks
        What has to stay free at the peak (Admit.FUTURE).
    assumed_tokens, ratio
        LightLLM: output assumed while less than a share of the blocks is used. TGI and SGLang: the ratio.
        Niyama: alpha; the prices are then the limits in nanoseconds of a request that has none.
    total_tokens
        Most tokens of input and output that may run; 0 means no limit.
    clients
        Whether the client of least service goes next; the prices are those of a prompt and a decoded token.
    decides_ahead
        Whether the next batch is decided while one runs, before its tokens are known (VLLM).
    retracts_for, threshold
        SGLang: whether the queue goes by priority first, and its head retracts running requests whose
        priority is larger by more than the threshold.
    asks
        Questions that a policy in Python answers, a bit each.
    stages
        Chunks by the stage of a prompt.
    program
        The policy's own loop over decisions, marked `outer`; None: that of `loop` and `mode`.
    host_blocks
        KV blocks in host memory, if victims may move there.
    swaps
        Whether victims move to host memory, or the policy refuses to go on if that is full (FAMILY).
    most_partial, most_long, long_prefill
        Prefills among which the budget of a batch is split, how many of them may be long, and tokens above
        which one is long (CHUNKED). Elsewhere `long_prefill` is the longest chunk.
    restarts_output, drops_above
        Emulated bugs (FAMILY): a preempted request generates its whole output again; a longer request, or
        one that the watermark keeps out for ever, is dropped (0: none is).
    """

    kv_blocks: int
    block_tokens: int
    max_tokens: int
    max_running: int
    order: Order = Order.ARRIVAL
    loop: Loop
    batch_tokens: int
    most_holders: int
    mode: Mode = Mode.MIXED
    reserve: Reserve = Reserve.KNOWN
    chunk: Chunk = Chunk.ANY
    evict: Evict = Evict.NEWEST
    admit: Admit = Admit.RESERVED
    queue_after_eviction: bool = True
    decode_steps: int = 0
    spare_blocks: int = 0
    assumed_tokens: int = 0
    total_tokens: int = 0
    groups: bool = False
    learns_lengths: bool = False
    length_threshold: int = 0
    decodes_follow: bool = False
    most_prefill: int = 0
    mixes_decodes: bool = False
    clients: bool = False
    watermark_blocks: int = 0
    longest_prompt: int = 0
    by_arrival: bool = False
    most_in_batch: int = 0
    padded_tokens: int = 0
    stage_tokens: int = 1
    num_stages: int = 0
    fixed_blocks: int = 0
    by_importance: bool = False
    test_known: bool = True
    long_prefill: int = 0
    adaptive: bool = False
    lookahead: int = 0
    max_model_len: int = 0
    interval: int = 1
    decides_ahead: bool = False
    retracts_for: bool = False
    threshold: int = 0
    host_blocks: int = 0
    swaps: bool = False
    most_partial: int = 1
    most_long: int = 1
    restarts_output: bool = False
    drops_above: int = 0
    starvation_period: int = 0
    asks: int = 0
    ratio: float = 0.0
    price: float = 0.0
    output_price: float = 0.0
    stages: tuple[int, ...] = ()
    program: Program | None = None

    @property
    def notes_decisions(self) -> bool:
        """Whether a batch may start later than it was decided."""
        return self.decides_ahead or self.host_blocks > 0


AnyRules = KernelRules | EachRules
"""Rules of one of the kernel's loops."""
