"""Exhaustive search: the optimum of a tiny instance by trying every batch from every state.

Shares the cost model and the values with the package, and nothing else: no referee, no history, no solver,
no linear form. A state is (KV entries, tokens generated, decoding?, on the host?) per request; a label is a
clock and what every term of the objective has come to so far. With a mixture every idle time up to the last
arrival is tried too; times should then be small.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from enum import IntEnum
from fractions import Fraction
from itertools import count, product
from typing import NamedTuple

from cspsched.problem.cost import BatchFeatures, triangle
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.objectives import AnyObjective, Measure, Mixture, Objective, Term
from tests.oracles.accruals import Label, Ledger


class Event(IntEnum):
    """What happens to the KV cache of a request at a boundary."""

    STAY = 0
    DROP = 1
    SWAP = 2
    RESTORE = 3


OwnState = tuple[int, int, bool, bool]
State = tuple[OwnState, ...]
Move = tuple[Event, int]
"""What happens at the boundary, tokens processed."""
NOTHING = BatchFeatures(*(0 for _ in BatchFeatures._fields))
Way = tuple[tuple[Move, ...], int, int, State, int]
"""Moves, the time of swap before them, the last arrival among them, the state after them, the batch time."""


class Choice(NamedTuple):
    """What a request does in a batch, what that takes, and its state after it."""

    move: Move
    blocks: int
    """On the device during the batch."""
    host_blocks: int
    moved_blocks: int
    features: BatchFeatures[int]
    following: OwnState


def exhaustive_optimum(instance: Instance, objective: AnyObjective = Objective.MAKESPAN) -> int | None:
    """Optimal value in nanoseconds (in the scale of a mixture), or None if no schedule exists."""
    found = exhaustive_schedule(instance, objective)
    return None if found is None else found[0]


def exhaustive_schedule(
    instance: Instance, objective: AnyObjective
) -> tuple[int, list[tuple[Move, ...]]] | None:
    """Optimal value and the moves of each batch, or None if no schedule exists."""
    found = exhaustive_run(instance, (objective,))
    return None if found is None else (found[0][0], [moves for _, moves in found[1]])


def exhaustive_run(
    instance: Instance, objectives: tuple[AnyObjective, ...]
) -> tuple[tuple[int, ...], list[tuple[int, tuple[Move, ...]]]] | None:
    """Lexicographically smallest values, and start and moves of each batch."""
    start: State = tuple((0, 0, False, False) for _ in instance.requests)
    stages = tuple(map(_terms, objectives))
    ledger = Ledger(instance, stages)
    idles = any(isinstance(objective, Mixture) for objective in objectives)
    last_arrival = max(request.arrival_ns for request in instance.requests)
    ticket = count()
    queue = [(ledger.values(ledger.nothing), 0, next(ticket), ledger.nothing, ledger.fresh, start, None)]
    settled: dict[object, list[Label]] = {}
    choices: dict[tuple[int, OwnState], list[Choice]] = {}
    ways: dict[State, list[Way]] = {}
    while queue:
        values, clock, _, accrued, pending, state, trail = heapq.heappop(queue)
        if all(g == r.output_tokens for (_, g, *_), r in zip(state, instance.requests, strict=True)):
            return tuple(map(_whole, ledger.whole(values), objectives)), _unwind(trail)
        # Who is late is settled; times since a token only have to be no longer.
        labels = settled.setdefault((state, tuple(late for _, _, late in pending)), [])
        label = (accrued, clock, pending)
        if any(ledger.dominates(state, known, label) for known in labels):
            continue
        labels.append(label)
        if state not in ways:
            ways[state] = [_way(instance, batch) for batch in batches_from(instance, state, choices)]
        for moves, moving, arrival, following, duration in ways[state]:
            earliest = max(clock + moving, arrival)
            for begin in range(earliest, 1 + (max(earliest, last_arrival) if idles else earliest)):
                end = begin + duration
                grown, left = ledger.grow(accrued, pending, state, following, clock, end)
                entry = (ledger.values(grown), end, next(ticket), grown, left, following)
                heapq.heappush(queue, (*entry, (trail, (begin, moves))))
    return None


def _terms(objective: AnyObjective) -> tuple[Term, ...]:
    if isinstance(objective, Mixture):
        return objective.terms
    return (Term(Measure(objective.value)),)


def _whole(value: Fraction, objective: AnyObjective) -> int:
    scaled = value * (objective.scale if isinstance(objective, Mixture) else 1)
    assert scaled.denominator == 1
    return int(scaled)


def _unwind(trail):
    moves = []
    while trail is not None:
        trail, move = trail
        moves.append(move)
    return moves[::-1]


def _choices(instance: Instance, i: int, own: OwnState) -> list[Choice]:
    """All that a request may do in a batch, by itself."""
    kv, generated, decoding, on_host = own
    request, switches = instance.requests[i], instance.switches
    if generated == request.output_tokens:
        return [_choice(instance, i, own, Event.STAY, 0)]
    known = request.prompt_tokens + generated

    def amounts(held: int, *, in_decode: bool) -> list[int]:
        if in_decode:
            return [0, 1]
        return list(range(known - held + 1)) if switches.chunked_prefill else [0, known - held]

    goes_on = [c for c in amounts(kv, in_decode=decoding) if c or kv == 0 or switches.holding]
    if on_host:
        moves = [(Event.STAY, 0), *((Event.RESTORE, c) for c in goes_on)]
    else:
        moves = [(Event.STAY, c) for c in goes_on]
        preemption = Preemption(switches.preemption)
        if kv and preemption.recomputes:
            moves += [(Event.DROP, c) for c in amounts(0, in_decode=False)]
        if kv and preemption.swaps:
            moves.append((Event.SWAP, 0))
    return [_choice(instance, i, own, event, c) for event, c in moves]


def _choice(instance: Instance, i: int, own: OwnState, event: Event, c: int) -> Choice:
    kv, generated, decoding, on_host = own
    request, limits = instance.requests[i], instance.limits
    stays_out = event is Event.SWAP or (on_host and event is not Event.RESTORE)
    before = 0 if event is Event.DROP or stays_out else kv
    after = before + c
    is_decode = decoding and event is not Event.DROP
    generates = c > 0 and after == request.prompt_tokens + generated
    reserved = request.prompt_tokens + request.output_tokens - 1
    if generates:
        done = generated + 1 == request.output_tokens
        following = (0 if done else after, generated + 1, not done, False)
    else:
        following = (kv if stays_out else after, generated, is_decode, stays_out)
    return Choice(
        move=(event, c),
        blocks=-(-(reserved if after and instance.switches.reservation else after) // limits.block_tokens),
        host_blocks=-(-kv // limits.block_tokens) if stays_out else 0,
        moved_blocks=-(-kv // limits.block_tokens) if event >= Event.SWAP else 0,
        features=features_of(before, c, is_decode=is_decode, generates=generates) if c else NOTHING,
        following=following,
    )


def features_of(before: int, c: int, *, is_decode: bool, generates: bool) -> BatchFeatures[int]:
    """What a request adds to a batch that processes `c` tokens of it after `before` others."""
    if is_decode:
        return NOTHING._replace(tokens=c, decode_context=before, num_generating=generates, num_decodes=1)
    return NOTHING._replace(
        tokens=c,
        prefill_attention=triangle(before + c) - triangle(before),
        prefill_tokens=c,
        prefill_context=before,
        num_generating=generates,
        num_prefills=1,
    )


def batches_from(
    instance: Instance, state: State, known: dict[tuple[int, OwnState], list[Choice]]
) -> Iterator[tuple[Choice, ...]]:
    """All that the requests may do together; what each may do by itself is kept in `known`."""
    limits, switches = instance.limits, instance.switches
    for key in enumerate(state):
        if key not in known:
            known[key] = _choices(instance, *key)
    for batch in product(*(known[key] for key in enumerate(state))):
        tokens = [choice.features.tokens for choice in batch]
        if (
            0 < sum(tokens) <= limits.max_batch_tokens
            and len(tokens) - tokens.count(0) <= limits.max_batch_requests
            and sum(choice.blocks for choice in batch) <= limits.kv_blocks
            and sum(choice.host_blocks for choice in batch) <= limits.host_kv_blocks
            and (switches.hybrid_batches or not _is_hybrid(batch))
        ):
            yield batch


def _is_hybrid(batch: tuple[Choice, ...]) -> bool:
    prefills, decodes = (
        any(getattr(choice.features, name) for choice in batch) for name in ("num_prefills", "num_decodes")
    )
    return prefills and decodes


def _way(instance: Instance, batch: tuple[Choice, ...]) -> Way:
    """What a batch takes and leads to, whenever it starts."""
    moved = sum(choice.moved_blocks for choice in batch)
    features = BatchFeatures(*map(sum, zip(*(choice.features for choice in batch), strict=True)))
    processed = (
        request.arrival_ns
        for request, choice in zip(instance.requests, batch, strict=True)
        if choice.features.tokens
    )
    return (
        tuple(choice.move for choice in batch),
        instance.cost.swap_time_ns(moved) if moved else 0,
        max(processed),
        tuple(choice.following for choice in batch),
        instance.cost.batch_time_ns(features),
    )
