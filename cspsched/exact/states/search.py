"""Drives the state search: quick descents for a good schedule, then best first until proven or stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cspsched.compiled.jit import compiled
from cspsched.exact.model.exact_model import Decisions
from cspsched.exact.parts.label_store import Nodes, label_of, new_nodes, start_from
from cspsched.exact.states.best_first import (
    EXHAUSTED,
    FINISHED,
    FULL,
    OPEN,
    WEIGHT_ONE,
    Expansion,
    advance,
    new_scratch,
    number_of,
)
from cspsched.exact.states.heuristic import heuristic_on_rest
from cspsched.exact.states.space import StateSpace
from cspsched.problem.result import StopReason
from cspsched.units import ceil_div

STATE_SEARCH = "state search"
MOST_LABELS = 16_000_000
"""About 1.2 GB with the hash table and the heap, touched as they fill."""
FIRST_SLICE = 16
SLICE_S = 0.05
"""Between two looks at the clock; how many labels that is, is found out."""
DESCENTS = ((40, 5_000), (32, 5_000), (26, 10_000), (22, 20_000), (20, 50_000))
"""Weights on the heuristic, and labels to expand with each at most: greedy first, then ever more patient."""
PATIENT_DESCENTS = ((18, 400_000), (17, 1_000_000))
"""What a second thread does meanwhile."""
DESCENT_SHARE = 5
"""A descent takes at most one of so many parts of the time that is left."""
LABEL_S, EXPANSION_S = 1e-5, 1e-5
"""What a deterministic clock counts for a new label and for an expansion, whatever came of it."""
FIRST_DESCENTS, FIRST_PROOF = DESCENTS[:2], 5_000
"""Descents, and labels to expand, before the heuristic is sharpened: many an instance is proven by then."""
SHARPEN_SHARE = 0.25
"""Part of the time that is left which sharpening takes at most."""
VISIT_S = 5e-7
"""What a deterministic clock counts for a resident state that is visited for prices."""
LABELS_OF_EXPANSION = 16
"""Room of a descent for each label that it may expand."""


@dataclass(frozen=True, kw_only=True)
class StateOutcome:
    """What is proven, and the cheapest way to the goal found, if it beats the upper bound."""

    bound_ns: int
    decisions: Decisions | None
    stop_reason: StopReason
    num_states: int
    """Expanded."""


@dataclass(frozen=True, kw_only=True)
class Talk:
    """How the search hears of the rest of the world, and the world of it."""

    time_left: Callable[[], float]
    """Seconds that are left; 0 also if another member has closed the gap."""
    upper_ns: Callable[[], int]
    """Value of the best schedule known; only better ones are looked for."""
    tell_bound: Callable[[int], None]
    """Told a lower bound in nanoseconds whenever it has risen."""
    tell_schedule: Callable[[Decisions], None]
    """Told every better schedule."""
    spend: Callable[[float], None] = lambda _: None
    """Told the work done, in seconds of a typical machine; a deterministic clock runs by it."""


NO_TALK = Talk(
    time_left=lambda: 0.0, upper_ns=lambda: 0, tell_bound=lambda _: None, tell_schedule=lambda _: None
)
"""For a search that only compiles: no time is left, and no value or schedule is kept."""


def search_states(space: StateSpace, talk: Talk, *, most_labels: int = MOST_LABELS) -> StateOutcome:
    """Search until the optimum of the tables is proven, time or room runs out, or Ctrl-C."""
    return outcome_of(StateSearch(space, talk, most_labels), proves=True)


def descend_patiently(space: StateSpace, talk: Talk, *, most_labels: int = MOST_LABELS) -> StateOutcome:
    """Look for better schedules only, beside a search that proves."""
    return outcome_of(StateSearch(space, talk, most_labels), proves=False)


def compile_states(space: StateSpace) -> None:
    """Compile what the search calls; that takes seconds, once after an installation."""
    StateSearch(space, NO_TALK, 1).compile()


def outcome_of(search: StateSearch, *, proves: bool) -> StateOutcome:
    """Let a search prove, or only descend, until it ends or Ctrl-C."""
    try:
        reason = search.prove() if proves else search.descend(PATIENT_DESCENTS)
    except KeyboardInterrupt:
        reason = StopReason.INTERRUPTED
    return StateOutcome(
        bound_ns=search.bound_ns,
        decisions=search.decisions,
        stop_reason=reason,
        num_states=search.num_states,
    )


class StateSearch:
    """One search: its upper bound in parts of a nanosecond, the schedule behind it, and the lower bound."""

    def __init__(self, space: StateSpace, talk: Talk, most_labels: int) -> None:
        self._space, self._talk, self._most_labels = space, talk, most_labels
        self._goal = number_of(space.shape, space.shape.outputs)
        self._scratch = new_scratch(len(space.shape.outputs))
        self._upper = talk.upper_ns() * space.prices.scale
        self.bound_ns = 0
        self.decisions: Decisions | None = None
        self.num_states = 0

    def compile(self) -> None:
        """Call all that is compiled once, with nothing to do."""
        nodes = new_nodes(1)
        compiled(start_from)(nodes, self._rest_of_all())
        self._advance(nodes, 0, WEIGHT_ONE)
        compiled(label_of)(nodes, self._goal, 0)

    def prove(self) -> StopReason:
        """Descents, then the search that proves; first short ones without the strongest heuristic."""
        state = OPEN
        if self._space.can_sharpen:
            if self.descend(FIRST_DESCENTS, DESCENT_SHARE) is StopReason.ROUNDING:
                return StopReason.ROUNDING
            state = self._search(WEIGHT_ONE, self._most_labels, FIRST_PROOF, 0.0)
            if state == OPEN:
                self._sharpen()
        return self._finish(state)

    def _finish(self, state: int) -> StopReason:
        """Descents, then search to the end, unless it has been reached."""
        if state == OPEN and self.descend(DESCENTS, DESCENT_SHARE) is StopReason.ROUNDING:
            return StopReason.ROUNDING
        if state == OPEN:
            state = self._search(WEIGHT_ONE, self._most_labels, 2 * self._most_labels, 0.0)
        if state in (FINISHED, EXHAUSTED):
            self._raise_bound(self._upper)
            return StopReason.ROUNDING
        return StopReason.TOO_LARGE if state == FULL else StopReason.TIME_LIMIT

    def descend(self, descents: Sequence[tuple[int, int]], share: int = 1) -> StopReason:
        """One descent after another, each in a share of the time that is left at most."""
        for weight, most in descents:
            labels = min(self._most_labels, LABELS_OF_EXPANSION * most)
            time_left = self._talk.time_left()
            if self._search(weight, labels, most, time_left - time_left / share) == EXHAUSTED:
                # Nothing below the upper bound is left, in whatever order it was looked for.
                self._raise_bound(self._upper)
                return StopReason.ROUNDING
        return StopReason.TIME_LIMIT

    def _sharpen(self) -> None:
        """Spend a share of the time that is left on a stronger heuristic."""
        talk, space = self._talk, self._space
        until = talk.time_left() * (1 - SHARPEN_SHARE)

        def go_on(total: int, visited: int) -> bool:
            talk.spend(visited * VISIT_S)
            enough = space.shape.counted < 0 and total >= self._upper
            return not enough and talk.time_left() > until

        space.sharpen(go_on)

    def _search(self, weight: int, most_labels: int, most_expanded: int, until: float) -> int:
        """Search with one weight, slice by slice, until so much time is left. Returns how it ended."""
        space, talk, state = self._space, self._talk, OPEN
        nodes, slice_ = new_nodes(most_labels), FIRST_SLICE
        compiled(start_from)(nodes, self._rest_of_all())
        while state == OPEN and nodes.sizes[2] < most_expanded and talk.time_left() > until:
            self._upper = min(self._upper, talk.upper_ns() * space.prices.scale)
            time_left = talk.time_left()
            before = nodes.sizes.tolist()
            state = self._advance(nodes, slice_, weight)
            labels, _, expanded, *_ = (nodes.sizes - before).tolist()
            talk.spend(labels * LABEL_S + expanded * EXPANSION_S)
            if time_left - talk.time_left() < SLICE_S:
                slice_ *= 2
            self._take(nodes)
            if weight == WEIGHT_ONE and nodes.sizes[1]:
                self._raise_bound(int(nodes.heap_f[0]))
        self.num_states += int(nodes.sizes[2])
        return state

    def _advance(self, nodes: Nodes, num_labels: int, weight: int) -> int:
        """Expand some labels; returns how it ended."""
        space = self._space
        tables = (space.shape, space.prices, space.heuristic_tables, nodes, self._scratch)
        return compiled(advance)(Expansion(*tables, self._upper, weight), self._goal, num_labels)

    def _rest_of_all(self) -> int:
        """Heuristic of that state."""
        shape, tables = self._space.shape, self._space.heuristic_tables
        nothing = np.zeros_like(shape.outputs)
        return compiled(heuristic_on_rest)(shape, tables, nothing, 0, self._scratch.heuristic)

    def _take(self, nodes: Nodes) -> None:
        """Take over a cheaper way to the goal."""
        label = compiled(label_of)(nodes, self._goal, 0)
        if label >= 0 and nodes.cost[label] < self._upper:
            self._upper = int(nodes.cost[label])
            self.decisions = _decisions(self._space, nodes, label)
            self._talk.tell_schedule(self.decisions)

    def _raise_bound(self, lowest: int) -> None:
        bound_ns = ceil_div(min(lowest, self._upper), self._space.prices.scale)
        if bound_ns > self.bound_ns:
            self.bound_ns = bound_ns
            self._talk.tell_bound(bound_ns)


def _decisions(space: StateSpace, nodes: Nodes, label: int) -> Decisions:
    """Batches and evictions on the way to a label."""
    steps = []
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
