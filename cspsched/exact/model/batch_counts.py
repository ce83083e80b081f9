"""Run to completion, by counts: how many batches are enough, and how many of them with a prefill.

Where all requests run to completion, every schedule processes the same tokens at the same ages, so an affine
batch time leaves only counts to decide: how many batches there are, how many have a prefill, how many have
a decode. Let a schedule of B batches have p with a prefill, and k of its batches after the first without a
decode. Then its makespan is at least

    own + B (step + b_d) - b_d + net,    net = p b_p - k b_d,

by a minorant of the batch time. For each B CP-SAT is asked whether B batches are enough with a net of at most
so much: a question without times, with few literals. A no for B is a no for fewer batches, and a yes for B a
yes for more. The least sum over all B of what no answer has excluded is a lower bound, and each yes is a
schedule. Questions are asked where the bound is lowest, by bisection, each for a short time first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from cspsched.bounds.parts.minorant import minorants
from cspsched.exact.model.exact_model import Decisions
from cspsched.exact.model.start_model import (
    Starts,
    add_budget,
    add_capacity,
    add_one_start,
    add_start_order,
    new_starts,
    started_decisions,
)
from cspsched.exact.parts.token_work import Work, work_of
from cspsched.exact.search import solve_briefly
from cspsched.exact.watch import Watch
from cspsched.problem.instance import Instance
from cspsched.units import ceil_div

BATCH_COUNTS = "batch counts"
"""Name of the certificate."""
SCALE = 1000
"""Parts of a nanosecond."""
FIRST_LIMIT = 0.5
"""CP-SAT's measure of work, about a second, for a question; twice as much each time that one is left open."""
NEVER = 2**61
"""Net of a number of batches that is not enough for anybody."""
MOST_CELLS = 8_000
"""Requests times batches beyond which questions are too large to be answered."""


def can_count(instance: Instance) -> bool:
    """Whether every schedule runs its requests to completion from time 0, and questions are small enough."""
    requests = instance.requests
    at_start = not any(request.arrival_ns for request in requests)
    longest = sum(request.output_tokens for request in requests)
    fewest = _fewest_batches(instance)
    return (
        instance.switches.run_to_completion
        and at_start
        and len(requests) * min(longest, 2 * fewest) <= MOST_CELLS
    )


def _fewest_batches(instance: Instance) -> int:
    """The longest output, or what the KV volume fills."""
    volume = sum(
        instance.limits.blocks_of(known)
        for request in instance.requests
        for known in range(request.prompt_tokens, request.peak_kv_tokens + 1)
    )
    longest = max(request.output_tokens for request in instance.requests)
    return max(longest, ceil_div(volume, instance.limits.kv_blocks))


@dataclass(frozen=True, kw_only=True)
class CountTalk:
    """What the search hears, and where it tells what it finds."""

    watch: Watch
    time_left: Callable[[], float]
    tell_bound: Callable[[int], None]
    """Nanoseconds."""
    tell_schedule: Callable[[Decisions], None]


class CountSearch:
    """What is known for each number of batches; amounts of time in parts of a nanosecond."""

    def __init__(self, instance: Instance, talk: CountTalk) -> None:
        self._instance, self._talk = instance, talk
        self._fewest = _fewest_batches(instance)
        outputs = np.array([request.output_tokens for request in instance.requests], dtype=np.int64)
        works = [work_of(instance, minorant, outputs, SCALE) for minorant in minorants(instance)]
        work = max(works, key=lambda work: _own(work) + self._fewest * work.decode)
        self._own, self._batch = _own(work), work.decode
        bare = work.decode + work.prefill - work.hybrid
        self._prefill, self._decode = work.prefill - bare, work.decode - bare
        count = len(instance.requests)
        nets = {p * self._prefill - k * self._decode for p in range(1, count + 1) for k in range(p)}
        self._nets = sorted(nets)
        # Every batch has at least one of the output tokens.
        most = self._fewest
        while most < outputs.sum() and self._value(most + 1, self._nets[0]) < talk.watch.best_ns * SCALE:
            most += 1
        numbers = range(self._fewest, most + 1)
        self._least = dict.fromkeys(numbers, self._nets[0])
        """No schedule of so many batches, or fewer, has a smaller net."""
        self._known = dict.fromkeys(numbers, self._nets[-1] + 1)
        """A schedule of so many batches, or fewer, has it, or a smaller one."""
        self._left_open = dict.fromkeys(numbers, 0)
        """How many questions in a row CP-SAT gave no answer to."""
        self.num_questions = 0

    def run(self) -> bool:
        """Ask until counts tell no more, or time is up; whether they tell no more."""
        while True:
            self._tell_bound()
            unsettled = [number for number in self._least if self._most_net(number) >= self._least[number]]
            if not unsettled:
                return True
            if self._talk.time_left() <= 0:
                return False
            self._ask(min(unsettled, key=lambda k: (self._left_open[k], self._value(k, self._least[k]))))

    def _value(self, number: int, net: int) -> int:
        """Least makespan of so many batches with a net."""
        return self._own + number * self._batch - self._decode + net

    def _most_net(self, number: int) -> int:
        """Largest net that would be news."""
        better = (self._talk.watch.best_ns - 1) * SCALE - self._value(number, 0)
        return min(better, self._known[number] - 1)

    def _tell_bound(self) -> None:
        lowest = min(self._value(number, least) for number, least in self._least.items())
        best_ns = self._talk.watch.best_ns
        self._talk.tell_bound(min(best_ns, ceil_div(lowest, SCALE)))

    def _ask(self, number: int) -> None:
        """Ask whether a number of batches is enough, with a net that is not excluded and would be news."""
        net = self._net_to_ask(number)
        grid = self._question(number, net)
        limits = FIRST_LIMIT * 2 ** self._left_open[number], self._talk.time_left()
        status, value = solve_briefly(grid.model, *limits, self._talk.watch)
        self.num_questions += 1
        self._left_open[number] += 1
        if status == cp_model.INFEASIBLE:
            self._left_open[number] = 0
            position = bisect_right(self._nets, net)
            larger = self._nets[position] if position < len(self._nets) else NEVER
            for fewer in range(self._fewest, number + 1):
                self._least[fewer] = max(self._least[fewer], larger)
        elif value is not None:
            self._left_open[number] = 0
            self._take(grid, value)

    def _net_to_ask(self, number: int) -> int:
        """A whole number of batches with a prefill halfway, or the largest net if there is none between."""
        least, most, unit = self._least[number], self._most_net(number), max(1, self._prefill)
        net = (least // unit + most // unit) // 2 * unit
        return net if least < net < most else most

    def _question(self, number: int, net: int) -> Starts:
        """Whether so many batches are enough with a net of at most so much."""
        grid = new_starts(cp_model.CpModel(), self._instance, number)
        model = grid.model
        add_one_start(grid)
        add_capacity(grid)
        add_budget(grid)
        add_start_order(grid)
        prefills = [model.new_bool_var(f"has_prefill[{j}]") for j in range(number)]
        drained = [model.new_bool_var(f"drained[{j}]") for j in range(1, number)]
        for j in range(number):
            for _, age, literal in grid.running(j):
                if age == 0:
                    model.add_implication(literal, prefills[j])
                else:
                    model.add_implication(literal, drained[j - 1].negated())
        for prefill, drain in zip(prefills[1:], drained, strict=True):
            model.add_implication(drain, prefill)
        # Batches before the first start would pass for drained.
        model.add(prefills[0] == 1)
        with_prefill, without_decode = cp_model.LinearExpr.sum(prefills), cp_model.LinearExpr.sum(drained)
        model.add(self._prefill * with_prefill - self._decode * without_decode <= net)
        return grid

    def _take(self, grid: Starts, value: Callable[[cp_model.IntVar], int]) -> None:
        """Take over a schedule, and what its counts are."""
        batches, evictions = started_decisions(grid, value)
        self._talk.tell_schedule((batches, evictions))
        started: set[int] = set()
        prefills = drains = 0
        for j, batch in enumerate(batches):
            members = {i for i, _ in batch}
            prefills += not members <= started
            drains += j > 0 and not members & started
            started |= members
        net = prefills * self._prefill - drains * self._decode
        for number in range(max(len(batches), self._fewest), max(self._known) + 1):
            self._known[number] = min(self._known[number], net)


def _own(work: Work) -> int:
    """Work of all tokens: prompts, and decodes behind them."""
    return int(work.cheaper[:, 0].sum() + work.decode_extra.sum())
