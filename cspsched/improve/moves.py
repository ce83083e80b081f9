"""Where the search starts, and its moves: on shapes (few numbers) and on plans (a key and a delay each)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cspsched.improve.list_scheduler import ListScheduler
from cspsched.improve.plan import MOST_DOUBLINGS, SHORTEST_FILL, Int8Array, Knobs, Pause, Plan, Shape
from cspsched.problem.instance import Limits
from cspsched.problem.objectives import Objective

FLOW_POWERS = ((1.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0), (0.3, 1.0), (1.0, 0.5))
MAKESPAN_POWERS = ((-1.0, 0.0), (0.0, 0.0), (-1.0, -1.0), (0.0, -1.0), (1.0, 1.0), (1.0, 0.0))
DEPTHS = (1, 8, 64)
MOST_DEPTH = 512
PACES = (0.85, 0.95, 1.0, 1.025, 1.06)
MORE_REQUESTS = 0.5
"""Chance that a move of a plan changes one request more."""
KNOB_MOVE, PAUSE_MOVE, CHUNK_MOVE, DELAY_MOVE, SWAP_MOVE = 0.03, 0.1, 0.4, 0.35, 0.3
LONGEST_HOLD = 1000
SHORTEST_CHUNK = 16
KNOT_MOVE = 0.5
"""Chance that batches are filled to a knot of the cost of tokens when that knob is turned."""


def start_shapes(scheduler: ListScheduler, limits: Limits, objective: Objective) -> Iterator[Shape]:
    """Shapes to begin with, the most promising first."""
    open_knobs = Knobs(
        seats=limits.max_batch_requests,
        fill_tokens=limits.max_batch_tokens,
        longest_chunk=limits.max_batch_tokens,
    )
    powers = MAKESPAN_POWERS if objective is Objective.MAKESPAN else FLOW_POWERS
    for depth in DEPTHS:
        for output_power, context_power in powers:
            knobs = replace(open_knobs, depth=depth)
            yield Shape(output_power=output_power, context_power=context_power, knobs=knobs)
    if objective is Objective.MAKESPAN:
        pace = steady_pace(scheduler, limits)
        for share in PACES:
            yield Shape(output_power=-1.0, knobs=replace(open_knobs, depth=8, pace=int(share * pace)))


def steady_pace(scheduler: ListScheduler, limits: Limits) -> int:
    """Thousandths of a batch from one admission to the next at which the device would just be full."""
    output = scheduler.output_tokens
    volume = output * scheduler.prompt_tokens + output * (output - 1) // 2
    return int(1000 * float(volume.mean()) / limits.kv_tokens)


def plan_of(shape: Shape, scheduler: ListScheduler) -> Plan:
    """The plan that a shape stands for."""
    keys = shape.keys(scheduler.arrival_ns, scheduler.prompt_tokens, scheduler.output_tokens)
    return Plan(
        knobs=shape.knobs,
        keys=keys,
        delay_ns=np.zeros(scheduler.num_requests, dtype=np.int64),
        chunk_doublings=np.zeros(scheduler.num_requests, dtype=np.int8),
    )


def ranked(plan: Plan) -> Plan:
    """The same plan with ranks as keys, so that a step of 1 is one place in the order."""
    keys = np.empty(len(plan.keys))
    keys[np.argsort(plan.keys, kind="stable")] = np.arange(len(keys))
    return replace(plan, keys=keys)


class Moves:
    """Random moves for an instance; the generator is passed in, so that nothing random is hidden here."""

    def __init__(
        self,
        scheduler: ListScheduler,
        limits: Limits,
        objective: Objective,
        *,
        pauses: bool = False,
        chunks: bool = False,
    ) -> None:
        self._output_tokens = scheduler.output_tokens
        self._pauses = pauses
        self._limits = limits
        self._num_requests = scheduler.num_requests
        self._pace = steady_pace(scheduler, limits)
        self._span_s = float(scheduler.arrival_ns[-1]) / 1e9
        self._delays = objective is not Objective.MAKESPAN
        self._paces = objective is Objective.MAKESPAN
        self._chunks = chunks and objective is not Objective.MAKESPAN
        self._knots = [
            knot for knot in scheduler.token_knots if SHORTEST_FILL <= knot < limits.max_batch_tokens
        ]

    def reshape(self, shape: Shape, rng: np.random.Generator) -> Shape:
        """Change one or two of a shape's numbers."""
        for _ in range(int(rng.integers(1, 3))):
            choice = int(rng.integers(4))
            if choice == 0:
                shape = replace(shape, output_power=shape.output_power + float(rng.normal(0, 0.3)))
            elif choice == 1:
                shape = replace(shape, context_power=shape.context_power + float(rng.normal(0, 0.3)))
            elif choice == 2 and self._span_s:
                ageing = 0.0 if rng.random() < 0.3 else float(rng.lognormal(2, 2)) / self._span_s
                shape = replace(shape, ageing_per_s=ageing)
            else:
                shape = replace(shape, knobs=self._turn(shape.knobs, rng))
        return shape

    def _turn(self, knobs: Knobs, rng: np.random.Generator) -> Knobs:
        """Change one knob."""
        choice = int(rng.integers(5 if self._paces else 4))
        limits = self._limits
        if choice == 0:
            return replace(knobs, seats=_scaled(knobs.seats, rng, 1, limits.max_batch_requests))
        if choice == 1:
            return replace(knobs, fill_tokens=self._fill(knobs.fill_tokens, rng))
        if choice == 2:
            chunk = _scaled(knobs.longest_chunk, rng, SHORTEST_CHUNK, limits.max_batch_tokens)
            return replace(knobs, longest_chunk=chunk)
        if choice == 3:
            return replace(knobs, depth=_scaled(knobs.depth, rng, 1, MOST_DEPTH))
        pace = 0 if rng.random() < 0.2 else int(self._pace * rng.uniform(0.5, 1.1))
        return replace(knobs, pace=pace)

    def _fill(self, fill_tokens: int, rng: np.random.Generator) -> int:
        """Up to a knot, where the next token may cost much, or any other number."""
        if self._knots and rng.random() < KNOT_MOVE:
            return self._knots[int(rng.integers(len(self._knots)))]
        return _scaled(fill_tokens, rng, SHORTEST_FILL, self._limits.max_batch_tokens)

    def change(
        self, plan: Plan, rng: np.random.Generator, within: tuple[int, int], delay_scale_ns: float
    ) -> Plan:
        """Change keys and delays of a few requests, or now and then a knob if all requests may be touched.

        Parameters
        ----------
        plan
            A ranked plan.
        within
            First request that may be touched, and the one after the last.
        delay_scale_ns
            About how long requests take; delays are drawn below it.
        """
        if within == (0, self._num_requests) and rng.random() < KNOB_MOVE:
            return replace(plan, knobs=self._turn(plan.knobs, rng))
        if self._pauses and rng.random() < PAUSE_MOVE:
            return replace(plan, pauses=self._repause(plan.pauses, rng, within))
        if self._chunks and rng.random() < CHUNK_MOVE:
            return replace(plan, chunk_doublings=self._rechunk(plan.chunk_doublings, rng, within))
        keys, delay_ns = plan.keys.copy(), plan.delay_ns.copy()
        while True:
            request, other = (int(one) for one in rng.integers(*within, size=2))
            kind = rng.random()
            if self._delays and kind < DELAY_MOVE:
                delay_ns[request] = self._delay(int(delay_ns[request]), rng, delay_scale_ns)
            elif kind < DELAY_MOVE + SWAP_MOVE:
                keys[request], keys[other] = keys[other], keys[request]
            else:
                # All distances are equally likely on a logarithmic scale.
                distance = float(len(keys)) ** rng.random()
                keys[request] += distance if rng.random() < 0.5 else -distance
            if rng.random() > MORE_REQUESTS:
                return replace(plan, keys=keys, delay_ns=delay_ns)

    @staticmethod
    def _rechunk(doublings: Int8Array, rng: np.random.Generator, within: tuple[int, int]) -> Int8Array:
        """Fill batches to twice or half as many tokens for a few requests."""
        doublings = doublings.copy()
        while True:
            request = int(rng.integers(*within))
            step = 1 if rng.random() < 0.5 else -1
            doublings[request] = min(max(doublings[request] + step, -MOST_DOUBLINGS), MOST_DOUBLINGS)
            if rng.random() > MORE_REQUESTS:
                return doublings

    def _repause(
        self, pauses: tuple[Pause, ...], rng: np.random.Generator, within: tuple[int, int]
    ) -> tuple[Pause, ...]:
        """Preempt a request, or another time, or no longer."""
        if pauses and rng.random() < 0.5:
            request = pauses[int(rng.integers(len(pauses)))].request
        else:
            request = int(rng.integers(*within))
        others = tuple(pause for pause in pauses if pause.request != request)
        output = int(self._output_tokens[request])
        if output < 2 or (len(others) < len(pauses) and rng.random() < 0.3):
            return others
        hold_batches = int(LONGEST_HOLD ** rng.random()) - 1
        pause = Pause(request=request, tokens=int(rng.integers(1, output)), hold_batches=hold_batches)
        return tuple(sorted((*others, pause)))

    @staticmethod
    def _delay(delay_ns: int, rng: np.random.Generator, scale_ns: float) -> int:
        """None, or one that is longer or shorter by up to a few times the scale."""
        if rng.random() < 0.3:
            return 0
        change = scale_ns * 10 ** rng.uniform(-3, 0.3)
        return max(0, delay_ns + int(change if rng.random() < 0.6 else -change))


def _scaled(value: int, rng: np.random.Generator, least: int, most: int) -> int:
    """A value times a random factor around 1, within limits."""
    return min(max(round(value * float(rng.lognormal(0, 0.5))), min(least, most)), most)


def mean_wait_ns(value_ns: int, num_requests: int, objective: Objective) -> float:
    """About how long a request takes by the value of a schedule."""
    return float(value_ns) if objective is Objective.MAKESPAN else value_ns / num_requests
