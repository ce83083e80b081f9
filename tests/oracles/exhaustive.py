"""Exhaustive search: the optimum of a tiny instance by trying every batch from every state.

Shares the cost model and the values with the package, and nothing else: no referee, no history, no solver.
A state is (KV entries, tokens generated, decoding?) per request; a label is (accrued objective, clock).
"""

from __future__ import annotations

import heapq
from itertools import count, product

from cspsched.problem.cost import BatchFeatures, triangle
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.metrics import Objective

State = tuple[tuple[int, int, bool], ...]
Move = tuple[bool, int]
"""Evicted at the boundary?, tokens processed."""


def exhaustive_optimum(instance: Instance, objective: Objective = Objective.MAKESPAN) -> int | None:
    """Optimal value in nanoseconds, or None if no schedule exists."""
    found = exhaustive_schedule(instance, objective)
    return None if found is None else found[0]


def exhaustive_schedule(
    instance: Instance, objective: Objective
) -> tuple[int, list[tuple[Move, ...]]] | None:
    """Optimal value and the moves of each batch, or None if no schedule exists."""
    start: State = tuple((0, 0, False) for _ in instance.requests)
    ticket = count()
    queue = [(0, 0, next(ticket), start, None)]
    settled: dict[State, list[tuple[int, int]]] = {}
    while queue:
        accrued, clock, _, state, trail = heapq.heappop(queue)
        if all(g == r.output_tokens for (_, g, _), r in zip(state, instance.requests, strict=True)):
            return accrued, _unwind(trail)
        labels = settled.setdefault(state, [])
        if any(a <= accrued and c <= clock for a, c in labels):
            continue
        labels.append((accrued, clock))
        for moves in _batches(instance, state):
            begin = max(
                [clock] + [r.arrival_ns for r, (_, c) in zip(instance.requests, moves, strict=True) if c]
            )
            end = begin + instance.cost.batch_time_ns(_features(instance, state, moves))
            gained = _accrual(instance, objective, state, clock, end)
            following = _apply(instance, state, moves)
            heapq.heappush(queue, (accrued + gained, end, next(ticket), following, (trail, moves)))
    return None


def _unwind(trail):
    moves = []
    while trail is not None:
        trail, move = trail
        moves.append(move)
    return moves[::-1]


def _accrual(instance: Instance, objective: Objective, state: State, clock: int, end: int) -> int:
    """Growth of the objective while time passes from `clock` to `end`."""
    if objective is Objective.MAKESPAN:
        return end - clock
    total = 0
    for (_, generated, _), request in zip(state, instance.requests, strict=True):
        target = request.output_tokens if objective is Objective.LATENCY else 1
        if generated < target:
            total += max(0, end - max(clock, request.arrival_ns))
    return total


def _options(instance: Instance, state: State, i: int) -> list[Move]:
    kv, generated, decoding = state[i]
    request, switches = instance.requests[i], instance.switches
    if generated == request.output_tokens:
        return [(False, 0)]
    known = request.prompt_tokens + generated

    def amounts(held: int, *, in_decode: bool) -> list[int]:
        if in_decode:
            return [0, 1]
        return list(range(known - held + 1)) if switches.chunked_prefill else [0, known - held]

    options = [(False, c) for c in amounts(kv, in_decode=decoding) if c or kv == 0 or switches.holding]
    if kv and switches.preemption is not Preemption.NONE:
        options += [(True, c) for c in amounts(0, in_decode=False)]
    return options


def _batches(instance: Instance, state: State):
    for moves in product(*(_options(instance, state, i) for i in range(len(state)))):
        if any(c for _, c in moves) and _fits(instance, state, moves):
            yield moves


def _carried(state: State, moves: tuple[Move, ...], i: int) -> int:
    return 0 if moves[i][0] else state[i][0]


def _fits(instance: Instance, state: State, moves: tuple[Move, ...]) -> bool:
    limits, switches = instance.limits, instance.switches
    if sum(c for _, c in moves) > limits.max_batch_tokens:
        return False
    if sum(c > 0 for _, c in moves) > limits.max_batch_requests:
        return False
    blocks = 0
    for i, request in enumerate(instance.requests):
        held = _carried(state, moves, i) + moves[i][1]
        if held and switches.reservation:
            held = request.prompt_tokens + request.output_tokens - 1
        blocks += -(-held // limits.block_tokens)
    if blocks > limits.kv_blocks:
        return False
    kinds = {_is_decode(state, moves, i) for i in range(len(state)) if moves[i][1]}
    return switches.hybrid_batches or len(kinds) < 2


def _is_decode(state: State, moves: tuple[Move, ...], i: int) -> bool:
    return state[i][2] and not moves[i][0]


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
        _, generated, decoding = state[i]
        evicted, c = moves[i]
        held = _carried(state, moves, i) + c
        if c and held == request.prompt_tokens + generated:
            done = generated + 1 == request.output_tokens
            following.append((0 if done else held, generated + 1, not done))
        else:
            following.append((held, generated, decoding and not evicted))
    return tuple(following)
