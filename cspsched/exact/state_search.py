"""Drives the state search: slices of work, a bound that only rises, and the schedule of the best label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cspsched.exact.best_first import (
    EXHAUSTED,
    FINISHED,
    FULL,
    Nodes,
    advance,
    find_slot,
    floor_on_rest,
    new_nodes,
    number_of,
    reach,
)
from cspsched.exact.model import Decisions
from cspsched.exact.state_space import StateSpace
from cspsched.problem.result import StopReason
from cspsched.units import ceil_div

STATE_SEARCH = "state search"
MOST_LABELS = 6_000_000
"""About 0.6 GB with the hash table and the heap."""
SLICE = 20_000


@dataclass(frozen=True, kw_only=True)
class StateOutcome:
    """What is proven, and the cheapest way to the goal found, if it beats the upper bound."""

    bound_ns: int
    decisions: Decisions | None
    stop_reason: StopReason
    num_states: int
    """Expanded."""


def search_states(
    space: StateSpace,
    upper_ns: int,
    time_left: Callable[[], float],
    tell: Callable[[int], None],
    *,
    most_labels: int = MOST_LABELS,
) -> StateOutcome:
    """Search until the optimum of the tables is proven, time or room runs out, or Ctrl-C.

    Parameters
    ----------
    upper_ns
        Value of a known schedule; only better ones are looked for.
    time_left
        Seconds that are left.
    tell
        Told the lower bound in nanoseconds whenever it has risen.
    """
    scale, shape = space.prices.scale, space.shape
    upper, goal = upper_ns * scale, number_of(shape, shape.outputs, 0)
    nodes = new_nodes(most_labels)
    _start(space, nodes)
    bound_ns, reason = 0, StopReason.TIME_LIMIT
    try:
        while time_left() > 0:
            state = advance(shape, space.prices, space.floors, nodes, upper, goal, SLICE)
            label = nodes.slots[find_slot(nodes, goal)]
            upper = upper if label < 0 else min(upper, int(nodes.cost[label]))
            lowest = upper if state in (FINISHED, EXHAUSTED) else min(upper, int(nodes.heap_f[0]))
            if ceil_div(lowest, scale) > bound_ns:
                bound_ns = ceil_div(lowest, scale)
                tell(bound_ns)
            if state in (FINISHED, EXHAUSTED, FULL):
                reason = StopReason.TOO_LARGE if state == FULL else StopReason.ROUNDING
                break
    except KeyboardInterrupt:
        reason = StopReason.INTERRUPTED
    return StateOutcome(
        bound_ns=bound_ns,
        decisions=_decisions(space, nodes, goal) if upper < upper_ns * scale else None,
        stop_reason=reason,
        num_states=int(nodes.sizes[2]),
    )


def _start(space: StateSpace, nodes: Nodes) -> None:
    nothing = np.zeros_like(space.shape.outputs)
    f = floor_on_rest(space.shape, space.floors, nothing, 0)
    reach(nodes, number_of(space.shape, nothing, 0), 0, f, -1, 0, 0)


def _decisions(space: StateSpace, nodes: Nodes, goal: int) -> Decisions:
    """Batches and evictions on the way to the goal."""
    steps, label = [], int(nodes.slots[find_slot(nodes, goal)])
    while nodes.parent[label] >= 0:
        steps.append((int(nodes.processed[label]), int(nodes.evicted[label])))
        label = int(nodes.parent[label])
    requests = space.instance.requests
    generated, resident = [0] * len(requests), 0
    batches, evictions = [], []
    for processed, evicted in reversed(steps):
        batch = []
        for i, request in enumerate(requests):
            if processed >> i & 1:
                decodes = (resident & ~evicted) >> i & 1
                batch.append((i, 1 if decodes else request.prompt_tokens + generated[i]))
                generated[i] += 1
        batches.append(batch)
        evictions.append([i for i in range(len(requests)) if evicted >> i & 1])
        resident = (resident & ~evicted) | processed
    return batches, evictions
