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
Counts = Annotated[list[int], "32i8"]
"""A number for each bit length of a prompt."""
KINDS = {int: "i8", float: "f8", bool: "i4"}
NOBODY = -1
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
    mid_prefill
        Whether it was last preempted in the midst of a prefill or a refill.
    """

    phase: Int32 = 0
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
    rank: Int32 = 0
    importance: Int32 = 0
    last_step: Int32 = NO_RUN
    tokens: Int32 = 0
    evicted_at: Int32 = 0
    joined: Int32 = 0
    locked_place: Int32 = 0
    mid_prefill: Int32 = 0
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
    queue_of_client: Int32 = NOBODY
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
    next: Int32 = NOBODY
    previous: Int32 = NOBODY
    next_same: Int32 = NOBODY
    previous_same: Int32 = NOBODY
    content: int = NOBODY


@dataclass(slots=True)
class ContentState:
    """Blocks that hold a content: the first and the last that were entered."""

    first: Int32 = NOBODY
    last: Int32 = NOBODY


@dataclass(slots=True)
class PlaceState:
    """A place in the KV cache of a request: what a block holds there once it is full, and the block."""

    content: int = NOBODY
    block: Int32 = NOBODY


@dataclass(slots=True)
class Nothing:
    """What a policy keeps that keeps nothing of its own."""

    nothing: int = 0


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
