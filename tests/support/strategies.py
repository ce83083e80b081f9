"""Tiny instances, cost models of any shape, and feasible schedules made by following the rules at random."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cspsched.problem.cost import CONSTANT_TERMS, FUNCTION_TERMS, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule
from cspsched.referee.timing import schedule_asap

EXAMPLES = int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "100"))
"""Examples of each property; a long run sets thousands."""

check = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

check_briefly = settings(check, max_examples=max(30, EXAMPLES // 4))
"""For properties that one part of the input decides, or that are tried for each of many cases."""

UNIT = CostModel(name="unit", step=Fraction(1))
"""Every batch takes one nanosecond."""

Batches = list[list[tuple[int, int]]]
Evictions = list[list[int]]


def make_instance(
    *sizes: tuple[int, int],
    arrivals_ns: Sequence[int] = (),
    cost: CostModel = UNIT,
    kv_blocks: int = 100,
    block_tokens: int = 1,
    max_batch_tokens: int = 100,
    max_batch_requests: int = 100,
    max_model_len: int | None = None,
    **switches: Any,
) -> Instance:
    """Requests r0, r1, ... of (prompt, output) tokens, all at 0 and with room for everything unless said."""
    arrivals = arrivals_ns or [0] * len(sizes)
    return Instance(
        requests=tuple(
            Request(request_id=f"r{i}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
            for i, ((prompt, output), arrival) in enumerate(zip(sizes, arrivals, strict=True))
        ),
        limits=Limits(
            kv_blocks=kv_blocks,
            block_tokens=block_tokens,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
            max_model_len=max_model_len,
        ),
        cost=cost,
        switches=Switches(**switches),
    )


rationals = st.builds(Fraction, st.integers(0, 50), st.sampled_from([1, 2, 3, 7, 12]))
EVERY_TERM = CostModel(
    name="every-term",
    step=Fraction(7, 2),
    prefill_batch=Fraction(2),
    decode_batch=Fraction(3),
    prefill_request=Fraction(1, 3),
    decode_request=Fraction(1, 7),
    swap_block=Fraction(5, 3),
    tokens=PiecewiseLinear((0, 4, 9), (Fraction(1), Fraction(0), Fraction(5, 3))),
    prefill_attention=PiecewiseLinear.linear("1/8"),
    prefill_tokens=PiecewiseLinear.linear("1/2"),
    prefill_context=PiecewiseLinear.linear("1/5"),
    decode_context=PiecewiseLinear((0, 10), (Fraction(1, 6), Fraction(1, 9))),
    mixed_request=Fraction(2, 5),
    mixed_context=PiecewiseLinear((0, 6), (Fraction(1, 8), Fraction(1, 7))),
    head=PiecewiseLinear.linear("1/4"),
)
"""Nothing is zero, nothing is whole, and f_tok is neither convex nor concave."""


@st.composite
def piecewise(draw: st.DrawFn) -> PiecewiseLinear:
    """A term with up to four slopes in any order, so convex, concave, flat in between, or neither."""
    knots = sorted(draw(st.sets(st.integers(1, 40), max_size=3)))
    slopes = draw(st.lists(rationals, min_size=len(knots) + 1, max_size=len(knots) + 1))
    return PiecewiseLinear((0, *knots), tuple(slopes))


@st.composite
def cost_models(draw: st.DrawFn) -> CostModel:
    """A cost model with each of its terms there or not; a batch takes time."""
    constants = {name: draw(rationals) for name in CONSTANT_TERMS if draw(st.booleans())}
    functions = {name: draw(piecewise()) for name in FUNCTION_TERMS if draw(st.booleans())}
    step = draw(rationals) + Fraction(1, draw(st.integers(1, 7)))
    return CostModel(name=draw(st.text(max_size=4)), **{**constants, **functions, "step": step})


mostly_on = st.sampled_from([True, True, True, False])


@st.composite
def instances(draw: st.DrawFn, fewest_requests: int = 1) -> Instance:
    """Up to four small requests that each fit alone; memory and budgets are tight more often than not."""
    sizes = draw(
        st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=fewest_requests, max_size=4)
    )
    block = draw(st.integers(1, 4))
    largest = max(-(-(prompt + output - 1) // block) for prompt, output in sizes)
    kinds = [*Preemption, Preemption.RECOMPUTE, Preemption.EITHER]
    switches = Switches(
        chunked_prefill=draw(mostly_on),
        hybrid_batches=draw(mostly_on),
        holding=draw(mostly_on),
        preemption=draw(st.sampled_from(kinds)),
        reservation=not draw(mostly_on),
    )
    fewest = 1 if switches.chunked_prefill else max(prompt for prompt, _ in sizes)
    if switches.preemption.recomputes and not switches.chunked_prefill:
        fewest = draw(st.sampled_from([fewest, max(prompt + output - 1 for prompt, output in sizes)]))
    requests = tuple(
        Request(
            request_id=f"r{i}",
            arrival_ns=draw(st.sampled_from([0, 0, 5, 40])),
            prompt_tokens=prompt,
            output_tokens=output,
            priority=draw(st.integers(-2, 2)),
        )
        for i, (prompt, output) in enumerate(sizes)
    )
    limits = Limits(
        kv_blocks=largest + draw(st.integers(0, 2 * largest)),
        block_tokens=block,
        max_batch_tokens=fewest + draw(st.integers(0, 10)),
        max_batch_requests=draw(st.sampled_from([5, 4, 4, 3, 2, 1])),
        max_model_len=draw(st.none() | st.integers(12, 20)),
        host_kv_blocks=draw(st.integers(0, 2 * largest)) if switches.preemption.swaps else 0,
    )
    return Instance(
        requests=requests,
        limits=limits,
        cost=draw(st.sampled_from([EVERY_TERM, EVERY_TERM, None])) or draw(cost_models()),
        switches=switches,
    )


@dataclass(frozen=True)
class Decision:
    """A batch and the boundary before it."""

    entries: list[tuple[int, int]]
    evicted: list[int]
    swapped: list[int]
    """Those of the evicted whose KV cache moves to host memory."""
    restored: list[int]


@dataclass
class Walker:
    """Follows the rules forwards, one random batch at a time; knows nothing of referee and history."""

    instance: Instance
    rng: random.Random
    kv: list[int]
    generated: list[int]
    decoding: list[bool]
    host: dict[int, tuple[int, bool]]
    """KV entries in host memory, and whether their request is in its decode phase."""

    def unfinished(self) -> list[int]:
        """Requests that lack tokens."""
        pairs = zip(self.generated, self.instance.requests, strict=True)
        return [i for i, (generated, request) in enumerate(pairs) if generated < request.output_tokens]

    def step(self) -> Decision | None:
        """One legal batch with its boundary, or None if several attempts gave none."""
        for attempt in range(16):
            before = list(self.kv), list(self.decoding), dict(self.host)
            evicted, swapped, restored = self._cross_boundary(0.1 + 0.03 * attempt)
            entries = [(i, c) for i in self._order() if (c := self._tokens(i))]
            if self._is_legal(entries):
                self._apply(entries)
                return Decision(entries, evicted, swapped, restored)
            self.kv, self.decoding, self.host = before
        return None

    def _order(self) -> list[int]:
        return self.rng.sample(self.unfinished(), len(self.unfinished()))

    def _cross_boundary(self, share: float) -> tuple[list[int], list[int], list[int]]:
        """Evict and restore at random; who is evicted, which of them to host memory, and who comes back."""
        preemption = self.instance.switches.preemption
        evicted = [i for i in self.unfinished() if self.kv[i] and self.rng.random() < share]
        if preemption is Preemption.NONE:
            evicted = []
        swapped = [
            i for i in evicted if preemption.swaps and (not preemption.recomputes or self.rng.random() < 0.7)
        ]
        restored = [i for i in self.host if self.rng.random() < 0.5]
        self.host |= {i: (self.kv[i], self.decoding[i]) for i in swapped}
        for i in evicted:
            self.kv[i], self.decoding[i] = 0, False
        for i in restored:
            self.kv[i], self.decoding[i] = self.host.pop(i)
        return evicted, swapped, restored

    def _tokens(self, i: int) -> int:
        held = self.kv[i]
        lacking = self.instance.requests[i].prompt_tokens + self.generated[i] - held
        fewest = 0 if self.instance.switches.holding or not held else 1
        if i in self.host:
            return 0
        if self.decoding[i] or not self.instance.switches.chunked_prefill:
            return lacking * max(fewest, self.rng.randint(0, 1))
        return self.rng.choice([lacking, self.rng.randint(fewest, lacking)])

    def _is_legal(self, entries: list[tuple[int, int]]) -> bool:
        limits, switches = self.instance.limits, self.instance.switches
        if not entries or len(entries) > limits.max_batch_requests:
            return False
        if len({self.decoding[i] for i, _ in entries}) > 1 and not switches.hybrid_batches:
            return False
        after = [held + dict(entries).get(i, 0) for i, held in enumerate(self.kv)]
        if switches.reservation:
            peaks = [request.peak_kv_tokens for request in self.instance.requests]
            after = [peak if held else 0 for held, peak in zip(after, peaks, strict=True)]
        on_host = [held for held, _ in self.host.values()]
        return (
            sum(c for _, c in entries) <= limits.max_batch_tokens
            and sum(-(-held // limits.block_tokens) for held in after) <= limits.kv_blocks
            and sum(-(-held // limits.block_tokens) for held in on_host) <= limits.host_kv_blocks
        )

    def _apply(self, entries: list[tuple[int, int]]) -> None:
        for i, c in entries:
            self.kv[i] += c
            if self.kv[i] == self.instance.requests[i].prompt_tokens + self.generated[i]:
                self.generated[i] += 1
                self.decoding[i] = True
                if self.generated[i] == self.instance.requests[i].output_tokens:
                    self.kv[i] = 0


def random_decisions(instance: Instance, rng: random.Random) -> list[Decision]:
    """Batches of a random feasible schedule; one request after another if luck runs out."""
    count = len(instance.requests)
    for _ in range(6):
        walker = Walker(instance, rng, [0] * count, [0] * count, [False] * count, {})
        steps = []
        while walker.unfinished() and len(steps) < 80 and (step := walker.step()):
            steps.append(step)
        if not walker.unfinished():
            return steps
    return [Decision(entries, [], [], []) for entries in one_after_another(instance)]


def run_asap(instance: Instance, decisions: Sequence[Decision]) -> Schedule:
    """Schedule of the decisions, each batch as early as possible."""
    return schedule_asap(
        instance,
        [decision.entries for decision in decisions],
        [decision.evicted for decision in decisions],
        swapped=[decision.swapped for decision in decisions],
        restored=[decision.restored for decision in decisions],
    )


def one_after_another(instance: Instance) -> Batches:
    """Every request alone, its prompt in chunks as large as possible: feasible whatever is switched off."""
    batches: Batches = []
    for i, request in enumerate(instance.requests):
        full, rest = divmod(request.prompt_tokens, instance.limits.max_batch_tokens)
        chunks = [instance.limits.max_batch_tokens] * full + [rest] * (rest > 0)
        batches += [[(i, tokens)] for tokens in chunks]
        batches += [[(i, 1)]] * (request.output_tokens - 1)
    return batches


@st.composite
def feasible_runs(draw: st.DrawFn) -> tuple[Instance, Schedule]:
    """An instance with a feasible schedule of it, sometimes with idle time between its batches."""
    instance = draw(instances(fewest_requests=draw(st.sampled_from([3, 3, 2, 1]))))
    rng = random.Random(draw(st.integers(0, 2**32)))
    schedule = run_asap(instance, random_decisions(instance, rng))
    if draw(st.booleans()):
        idle = np.cumsum([rng.choice([0, 0, 7]) for _ in range(schedule.num_batches)])
        schedule = replace(schedule, start_ns=schedule.start_ns + idle, end_ns=schedule.end_ns + idle)
    return instance, schedule
