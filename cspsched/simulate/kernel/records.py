"""Records of a run: named fields, of which compiled code gets rows of structured arrays.

One class says which fields there are, of what kind, and what they hold at first; the layout of the array and
the slotted object, on which the same functions run as plain Python, are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np

Int32 = Annotated[int, "i4"]
Int16 = Annotated[int, "i2"]
Counts = Annotated[list[int], "32i8"]
"""A number for each bit length of a prompt."""
KINDS = {int: "i8", float: "f8", bool: "i4"}
NO_REQUEST = -1
NO_RUN = -2
"""`last_step` of a request whose run of decodes is not open."""
NEVER_NS = 2**62


def _counts() -> list[int]:
    return [0] * 32


@dataclass(slots=True)
class Now:
    """A replica as a whole: what changes, then the rules of its policy.

    Attributes
    ----------
    until_ns
        Every decision before it is made, none later.
    num_arrivals, num_submitted
        Requests of which it is known that they arrive, the first so many of `Kernel.orders`; those of them
        that have arrived.
    is_open, is_idle
        Whether more requests may come; whether it waits for the next.
    stops_at_ends, num_ended
        Whether no decision is made at or after the end of a request; how many ends are known and were not
        told (column ENDED of `Kernel.orders`).
    shift
        What a context has to be increased by so that its residue by the block is that of `Kernel.residues`.
    num_decode_steps
        Batches with decodes so far.
    num_restored, moved_blocks
        Requests that came back from host memory in this step; blocks to be moved before the next batch.
    num_flying, num_landed, landing_ns
        Batches in flight, those of LISTED whose batch has ended, and when the oldest batch in flight ends.
    num_seen
        Requests that had arrived when the last batch was launched.
    refused, refusal, room_left
        A request that the policy refuses, the answer that says why, and free blocks in host memory then.
    on_machine
        Whether a machine says when batches start and end.
    kv_blocks
        From here on: fields of `Rules` by their names.
    """

    clock_ns: int = 0
    until_ns: int = NEVER_NS
    num_arrivals: int = 0
    is_open: int = 0
    is_idle: int = 0
    stops_at_ends: int = 0
    num_ended: int = 0
    num_submitted: int = 0
    num_waiting: int = 0
    num_unfinished: int = 0
    free_blocks: int = 0
    num_running: int = 0
    num_decodes: int = 0
    decode_context: int = 0
    shift: int = 0
    num_decode_steps: int = 0
    num_admissions: int = 0
    decode_now: int = 0
    attention: int = 0
    prefill_tokens: int = 0
    prefill_context: int = 0
    num_prefills: int = 0
    num_generating: int = 0
    num_evictions: int = 0
    num_restored: int = 0
    moved_blocks: int = 0
    free_host_blocks: int = 0
    num_flying: int = 0
    num_landed: int = 0
    num_seen: int = 0
    landing_ns: int = 0
    on_machine: int = 0
    num_fruitless: int = 0
    num_batches: int = 0
    batch_row: int = 0
    span_row: int = 0
    refused: int = 0
    refusal: int = 0
    room_left: int = 0
    used_tokens: int = 0
    num_in_batch: int = 0
    num_listed: int = 0
    num_batched: int = 0
    decision: int = 0
    heap_size: int = 0
    front: int = 0
    num_idle: int = 0
    queue_start: int = 0
    renumbers: int = 0
    is_in_flight: int = 0
    busy_until_ns: int = 0
    num_ending: int = 0
    somebody_finished: int = 0
    is_locked: int = 0
    must_unlock: int = 0
    may_lock: int = 0
    num_locked: int = 0
    locked_end: int = 0
    locked_context: int = 0
    locked_total: int = 0
    decodes_at: int = 0
    last_number: int = 0
    last_rank: int = 0
    calendar_mask: int = 0
    length_count: Counts = field(default_factory=_counts)
    length_sum: Counts = field(default_factory=_counts)
    kv_blocks: int = 0
    block_tokens: int = 0
    max_tokens: int = 0
    max_running: int = 0
    order: int = 0
    reserve: int = 0
    chunk: int = 0
    watermark_blocks: int = 0
    longest_prompt: int = 0
    fixed_blocks: int = 0
    batch_tokens: int = 0
    most_holders: int = 0
    learns_lengths: int = 0
    clients: int = 0
    lookahead: int = 0
    max_model_len: int = 0
    decides_ahead: int = 0
    most_new_tokens: int = 0
    host_blocks: int = 0
    flights: int = 0
    swaps: int = 0
    caches_prefixes: int = 0
    first_free: int = 0
    last_free: int = 0
    num_unseen: int = 0
    restarts_output: int = 0
    lockstep: int = 0
    keeps_order: int = 0
    sorts_by_key: int = 0
    joins_from_batch: int = 0
    stands_by_admission: int = 0
    drops_above: int = 0


@dataclass(slots=True)
class RequestState:
    """What a replica knows of a request.

    Attributes
    ----------
    phase
        QUEUED (or finished), PREFILLS, DECODES (in the aggregated loops: in lockstep), HELD (a decode that
        sits out), IN_LOCKSTEP (a decode whose record is as it was when it joined).
    expected_tokens
        What its policy takes for the output: the true one, a declared limit, or a prediction.
    mid_prefill
        Whether it was last preempted in the midst of a prefill or a refill.
    """

    phase: Int16 = 0
    mid_prefill: Int16 = 0
    generated: Int32 = 0
    kv_tokens: Int32 = 0
    since: Int32 = 0
    blocks: Int32 = 0
    number: Int32 = 0
    place: Int32 = 0
    next: Int32 = 0
    previous: Int32 = 0
    num_preemptions: Int32 = 0
    prompt_tokens: Int32 = 0
    output_tokens: Int32 = 0
    expected_tokens: Int32 = 0
    rank: Int32 = 0
    importance: Int32 = 0
    last_step: Int32 = NO_RUN
    tokens: Int32 = 0
    evicted_at: Int32 = 0
    joined: Int32 = 0
    locked_place: Int32 = 0
    arrival_ns: int = 0
    scheduled_ns: int = -1
    first_token_ns: int = -1
    finish_ns: int = -1
    recomputed_tokens: int = 0
    key: int = 0


@dataclass(slots=True)
class RequestNotes:
    """What a policy keeps of a request, where it keeps anything; of a client in the place of its number.

    Attributes
    ----------
    client, next_of_client, charged
        Who sent it; the next in that client's queue; whether its prompt has been charged.
    queue_of_client, locked_of_client, service
        Of a client: the first that it has queued, how many of its requests decode in lockstep, and the
        service that it got.
    priority, is_victim
        Whom it may retract, and whether it is to go.
    flight, lands_ns
        Batch in which it is in flight, and the end of that.
    remembered
        Tokens that Vidur's Sarathi takes for its prompt, if they are others (emulated bug).
    host_tokens, host_blocks, decodes_on_host
        What it has in host memory, and whether it decodes when it comes back.
    first_place, num_entered, hit_tokens, num_unseen
        Prefix cache: its first `PlaceState`; its full blocks that others may find; tokens that it was found
        to have when it was admitted, until it is processed; tokens generated in batches that have not ended.
    level, spent, idle_since_ns
        FastServe: queue, time in it, and since when it has not run.
    is_queued, is_relegated, submitted_as
        Deadlines: whether it is among those with prefill left, or behind all others; its number.
    tier, due_ns, token_ns, left_ns, urgency
        Deadlines: priority, when the first token is due, time for each further one, time that its prefill
        takes, and rank.
    """

    client: Int32 = 0
    next_of_client: Int32 = 0
    charged: Int32 = 0
    queue_of_client: Int32 = NO_REQUEST
    locked_of_client: Int32 = 0
    is_victim: Int32 = 0
    is_queued: Int32 = 0
    is_relegated: Int32 = 0
    flight: Int32 = 0
    remembered: Int32 = 0
    host_tokens: Int32 = 0
    host_blocks: Int32 = 0
    decodes_on_host: Int32 = 0
    num_entered: Int32 = 0
    hit_tokens: Int32 = 0
    num_unseen: Int32 = 0
    first_place: int = 0
    level: int = 0
    spent: int = 0
    idle_since_ns: int = 0
    priority: int = 0
    submitted_as: int = 0
    lands_ns: int = 0
    tier: int = 0
    left_ns: int = 0
    service: float = 0.0
    due_ns: float = 0.0
    token_ns: float = 0.0
    urgency: float = 0.0


@dataclass(slots=True)
class BlockState:
    """A KV block where prefixes are cached.

    Attributes
    ----------
    num_holders
        Requests that hold it; without any it is in the queue of free blocks.
    next, previous
        In that queue.
    content, next_same, previous_same
        What it holds that others may find, and blocks of the same content, in the order of their entry.
    """

    num_holders: Int32 = 0
    next: Int32 = NO_REQUEST
    previous: Int32 = NO_REQUEST
    next_same: Int32 = NO_REQUEST
    previous_same: Int32 = NO_REQUEST
    content: int = NO_REQUEST


@dataclass(slots=True)
class ContentState:
    """Blocks that hold a content: the first and the last that were entered."""

    first: Int32 = NO_REQUEST
    last: Int32 = NO_REQUEST


@dataclass(slots=True)
class PlaceState:
    """A place in the KV cache of a request: what a block holds there once it is full, and the block."""

    content: int = NO_REQUEST
    block: Int32 = NO_REQUEST


@dataclass(slots=True, kw_only=True)
class PolicyState:
    """What a policy keeps of a run: its settings, and what the last steps have left.

    One record for all: what policies share is compiled for each kind of record anew, so with one of its own
    for each a process that compiles many policies takes twice as long.

    Attributes
    ----------
    swaps, by_priority, is_full, decode_steps, num_steps, num_swapped
        Of several: whether victims move to host memory; whether the order is by priority; whether this step
        admits none; most decode steps between prefills, and those since the last; requests in host memory.
    delay, was_idle, step_ns, prompt_ns, last_was_prompt, swapped_start
        vLLM V0: its delay factor; whether nothing ran when this step began; when the last step was decided,
        how long the last batch of prompts took, and whether it is the last batch; where those in host memory
        begin in their list.
    most_partial, most_long, long_tokens, long_left, share_tokens, num_decodes, num_chunks, num_victims
        vLLM V0 in chunks: prefills that share a budget, how many of them may be long, and above how many
        tokens one is; long ones that may start in this step, most tokens of a prefill in it; requests in
        FIRST_LIST and SECOND_LIST, of which TO_COME holds the tokens; those in HELD_TOKENS, which are queued
        after the admissions.
    test_known, long_prefill, adaptive, interval, last_prefill_step, capacity_bound
        vLLM V1: whether an admission needs room for all known tokens; limits of prefills; whether a request
        had to wait in the last step that admitted.
    group_left
        TensorRT-LLM, static batch: requests of the group that have not been admitted, the first of the queue.
    ratio, assumed_tokens, input_price, output_price, num_clients
        LightLLM; VTC. Client c keeps its queue, a linked list by key, and its counter in the notes at c.
    prefills_first, hybrid, length_threshold
        InferMax.
    waiting_ratio, total_tokens
        TGI.
    stage_tokens, num_stages
        Sarathi's dynamic chunks: processed tokens of a prompt in a stage, and stages.
    most_in_batch, emulates_bugs, padded_tokens, runs_to_end, num_idle, leaked_blocks
        Vidur: most requests with which decodes and admissions may fill a batch; most tokens of a batch of
        prompts that run alone (0: they do not); whether a batch runs to its end before others are admitted;
        requests that are not in flight, the first so many of IDLE in the order in which they came back;
        blocks that a bug of FasterTransformer's has lost.
    share, first_share
        SRPT: the part of its output after which a request may not be preempted. SGLang: the part of the
        outputs that is set aside, now and at first.
    quantum_ns, starvation_ns, starvation_period, recomputes, least_host_blocks, front, batch_start_ns, starts
        FastServe: quantum of the highest queue; blocks free in host memory for a prompt to start, and whether
        so many are in this step; when the last batch started.
    num_batches
        FastServe: batches so far.
    most_prefill, mixes_decodes, retracts_for, threshold, ignores_eos, retracts_by_priority
        SGLang: whether the head of the queue retracts running requests of a priority larger by the threshold.
    alpha, relegates, num_queued, longest_ns
        Niyama: BY_RANK holds those with prefill left, waiting or running, in order, the first so many; time
        that the batch may take for the sake of its decodes.
    asks, asked, most, has_answer, answer
        Policies that are asked: their questions, a bit each; the request that is asked about, and the largest
        answer; whether the question is answered, and how.
    stage, position, budget, batch_mode, chunk_given
        Of their decision: the part and the place in the list of running requests that it has come to, tokens
        that are left, what the batch may hold, and the chunk of the request at that place.
    """

    swaps: bool = False
    by_priority: bool = False
    is_full: bool = False
    decode_steps: int = 0
    num_steps: int = 0
    num_swapped: int = 0
    delay: float = 0.0
    was_idle: bool = False
    step_ns: int = 0
    prompt_ns: int = 0
    last_was_prompt: bool = False
    swapped_start: int = 0
    most_partial: int = 0
    most_long: int = 0
    long_tokens: int = 0
    long_left: int = 0
    share_tokens: int = 0
    num_decodes: int = 0
    num_chunks: int = 0
    num_victims: int = 0
    test_known: bool = False
    long_prefill: int = 0
    adaptive: bool = False
    interval: int = 0
    last_prefill_step: int = 0
    capacity_bound: bool = False
    group_left: int = 0
    ratio: float = 0.0
    assumed_tokens: int = 0
    input_price: float = 0.0
    output_price: float = 0.0
    num_clients: int = 0
    prefills_first: bool = False
    hybrid: bool = False
    length_threshold: int = 0
    waiting_ratio: float = 0.0
    total_tokens: int = 0
    stage_tokens: int = 0
    num_stages: int = 0
    most_in_batch: int = 0
    emulates_bugs: bool = False
    padded_tokens: int = 0
    runs_to_end: bool = False
    num_idle: int = 0
    leaked_blocks: int = 0
    share: float = 0.0
    first_share: float = 0.0
    quantum_ns: float = 0.0
    starvation_ns: float = 0.0
    starvation_period: int = 0
    recomputes: bool = False
    least_host_blocks: float = 0.0
    front: int = 0
    batch_start_ns: int = 0
    starts: bool = False
    num_batches: int = 0
    most_prefill: int = 0
    mixes_decodes: bool = False
    retracts_for: bool = False
    threshold: int = 0
    ignores_eos: bool = False
    retracts_by_priority: bool = False
    alpha: float = 0.0
    relegates: bool = False
    num_queued: int = 0
    longest_ns: float = 0.0
    asks: int = 0
    asked: int = 0
    most: int = 0
    has_answer: bool = False
    answer: int = 0
    stage: int = 0
    position: int = 0
    budget: int = 0
    batch_mode: int = 0
    chunk_given: int = 0


Record = TypeVar("Record")
Column = Sequence[float] | np.ndarray[Any, Any]


def new_records(kind: type[Record], count: int, *, plain: bool = False) -> Any:
    """Records of a kind, as they are at first: rows of an array, or objects for plain Python."""
    if plain:
        return [kind() for _ in range(count)]
    records = np.zeros(count, dtype=_layout(kind))
    for name, value in _first_values(kind).items():
        if value:
            records[name] = value
    return records


def new_own(own: Any, *, plain: bool = False) -> Any:
    """A policy's own record, as its object is: a row of an array, or a copy for plain Python."""
    if plain:
        return copy(own)
    record = new_records(type(own), 1)[0]
    for one in fields(own):
        setattr(record, one.name, getattr(own, one.name))
    return record


def rules_into(now: Now, rules: object) -> None:
    """Copy the fields of a policy's rules that have a number of their name."""
    names = {one.name for one in fields(Now)}
    for one in fields(rules):  # type: ignore[arg-type]
        if one.name in names:
            setattr(now, one.name, getattr(rules, one.name))


def field_of(record: Any, name: str) -> Any:
    """A field of one record; a row of an array is read without numpy's detour for attributes."""
    return np.void.__getitem__(record, name) if isinstance(record, np.void) else getattr(record, name)


def set_field(record: Any, name: str, value: float) -> None:
    """Give a field of one record a value, as `field_of` reads it."""
    if isinstance(record, np.void):
        np.void.__setitem__(record, name, value)
    else:
        setattr(record, name, value)


def set_column(records: Any, name: str, values: Column | float) -> None:
    """Give a field of all records its values, or one value."""
    if not isinstance(records, list):
        records[name] = values
        return
    for record, value in zip(
        records, np.broadcast_to(np.asarray(values), len(records)).tolist(), strict=True
    ):
        setattr(record, name, value)


def get_column(records: Any, name: str) -> np.ndarray[Any, Any]:
    """A field of all records; a copy."""
    if isinstance(records, list):
        return np.array([getattr(record, name) for record in records])
    return np.asarray(records[name]).copy()


def _layout(kind: type[Any]) -> np.dtype[Any]:
    hints = get_type_hints(kind, include_extras=True)
    columns = [(name, _kind(hint)) for name, hint in hints.items()]
    return np.dtype((np.record, np.dtype(columns, align=True)))


def _kind(hint: Any) -> str:
    """Layout of a field: whole numbers of 64 bits, members of an enumeration among them, unless it says."""
    if not isinstance(hint, type):
        return str(hint.__metadata__[0])
    return KINDS.get(hint, KINDS[int])


def _first_values(kind: type[Any]) -> Mapping[str, Any]:
    return {one.name: one.default for one in fields(kind) if isinstance(one.default, int | float)}
