"""Exhaustive search: the optimum of a tiny instance by trying every batch from every state.

Shares the cost model and the values with the package, and nothing else: no referee, no history, no solver,
no linear form. A state is (KV entries, tokens generated, decoding?, on the host?) per request; a label is a
clock and what every term of the objective has come to so far. With a mixture every idle time up to the last
arrival is tried too; times should then be small.
"""

from __future__ import annotations

import heapq
from enum import IntEnum
from fractions import Fraction
from itertools import count, product

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


State = tuple[tuple[int, int, bool, bool], ...]
Move = tuple[Event, int]
"""What happens at the boundary, tokens processed."""


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
    while queue:
        values, clock, _, accrued, pending, state, trail = heapq.heappop(queue)
        if all(g == r.output_tokens for (_, g, *_), r in zip(state, instance.requests, strict=True)):
            return tuple(map(_whole, values, objectives)), _unwind(trail)
        # Who is late is settled; times since a token only have to be no longer.
        labels = settled.setdefault((state, tuple(late for _, _, late in pending)), [])
        label = (accrued, clock, pending)
        if any(ledger.dominates(state, known, label) for known in labels):
            continue
        labels.append(label)
        for moves in _batches(instance, state):
            ready = clock + instance.cost.swap_time_ns(_moved_blocks(instance, state, moves))
            earliest = max(
                [ready] + [r.arrival_ns for r, (_, c) in zip(instance.requests, moves, strict=True) if c]
            )
            following = _apply(instance, state, moves)
            duration = instance.cost.batch_time_ns(_features(instance, state, moves))
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


def _options(instance: Instance, state: State, i: int) -> list[Move]:
    kv, generated, decoding, on_host = state[i]
    request, switches = instance.requests[i], instance.switches
    if generated == request.output_tokens:
        return [(Event.STAY, 0)]
    known = request.prompt_tokens + generated

    def amounts(held: int, *, in_decode: bool) -> list[int]:
        if in_decode:
            return [0, 1]
        return list(range(known - held + 1)) if switches.chunked_prefill else [0, known - held]

    goes_on = [c for c in amounts(kv, in_decode=decoding) if c or kv == 0 or switches.holding]
    if on_host:
        return [(Event.STAY, 0), *((Event.RESTORE, c) for c in goes_on)]
    options = [(Event.STAY, c) for c in goes_on]
    preemption = Preemption(switches.preemption)
    if kv and preemption.recomputes:
        options += [(Event.DROP, c) for c in amounts(0, in_decode=False)]
    if kv and preemption.swaps:
        options.append((Event.SWAP, 0))
    return options


def _batches(instance: Instance, state: State):
    for moves in product(*(_options(instance, state, i) for i in range(len(state)))):
        if any(c for _, c in moves) and _fits(instance, state, moves):
            yield moves


def _on_host(state: State, moves: tuple[Move, ...], i: int) -> bool:
    """Whether the KV cache of a request is in host memory during the batch."""
    event = moves[i][0]
    return event is Event.SWAP or (state[i][3] and event is not Event.RESTORE)


def _carried(state: State, moves: tuple[Move, ...], i: int) -> int:
    """KV entries on the device when the batch starts."""
    return 0 if moves[i][0] is Event.DROP or _on_host(state, moves, i) else state[i][0]


def _moved_blocks(instance: Instance, state: State, moves: tuple[Move, ...]) -> int:
    moved = [kv for (kv, *_), (event, _) in zip(state, moves, strict=True) if event >= Event.SWAP]
    return sum(-(-kv // instance.limits.block_tokens) for kv in moved)


def _fits(instance: Instance, state: State, moves: tuple[Move, ...]) -> bool:
    limits, switches = instance.limits, instance.switches
    if sum(c for _, c in moves) > limits.max_batch_tokens:
        return False
    if sum(c > 0 for _, c in moves) > limits.max_batch_requests:
        return False
    blocks = host_blocks = 0
    for i, request in enumerate(instance.requests):
        if _on_host(state, moves, i):
            host_blocks += -(-state[i][0] // limits.block_tokens)
        held = _carried(state, moves, i) + moves[i][1]
        if held and switches.reservation:
            held = request.prompt_tokens + request.output_tokens - 1
        blocks += -(-held // limits.block_tokens)
    if blocks > limits.kv_blocks or host_blocks > limits.host_kv_blocks:
        return False
    kinds = {_is_decode(state, moves, i) for i in range(len(state)) if moves[i][1]}
    return switches.hybrid_batches or len(kinds) < 2


def _is_decode(state: State, moves: tuple[Move, ...], i: int) -> bool:
    return state[i][2] and moves[i][0] is not Event.DROP


def _features(instance: Instance, state: State, moves: tuple[Move, ...]) -> BatchFeatures[int]:
    prefills, decodes, generating = [], [], 0
    for i, (_, c) in enumerate(moves):
        if c:
            held = _carried(state, moves, i)
            (decodes if _is_decode(state, moves, i) else prefills).append((held, c))
            generating += held + c == instance.requests[i].prompt_tokens + state[i][1]
    return BatchFeatures(
        tokens=sum(c for _, c in prefills + decodes),
        prefill_attention=sum(triangle(n + c) - triangle(n) for n, c in prefills),
        prefill_tokens=sum(c for _, c in prefills),
        prefill_context=sum(n for n, _ in prefills),
        decode_context=sum(n for n, _ in decodes),
        num_generating=generating,
        num_prefills=len(prefills),
        num_decodes=len(decodes),
    )


def _apply(instance: Instance, state: State, moves: tuple[Move, ...]) -> State:
    following = []
    for i, request in enumerate(instance.requests):
        kv, generated, decoding, _ = state[i]
        event, c = moves[i]
        held = (0 if event is Event.DROP else kv) + c
        if c and held == request.prompt_tokens + generated:
            done = generated + 1 == request.output_tokens
            following.append((0 if done else held, generated + 1, not done, False))
        else:
            kept = decoding and event is not Event.DROP
            following.append((held, generated, kept, _on_host(state, moves, i)))
    return tuple(following)
