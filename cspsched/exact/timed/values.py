"""What labels of the timed state search are worth: prices of tokens, heuristics for the rest, and dominance.

With u_i and v_i as in `cspsched.problem.linear_form`, the first token of request i at time t pays
(u_i - v_i) (t - a_i) and y_i if it is late, its last one v_i (t - a_i). In a regular form all weights are at
least 0 and no request with y_i > 0 has a TPOT limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cspsched.exact.timed.heuristic import Rests, earliest_ends
from cspsched.exact.timed.moves import LocalStates
from cspsched.problem.linear_form import LinearForm
from cspsched.problem.request import Request

State = tuple[int, ...]
"""Position of the local state of each request."""


class Stand(NamedTuple):
    """Where a way to a state has come to."""

    clock_ns: int
    paid: int
    """For the tokens that are out; without the makespan."""


class Values:
    """Prices and heuristics of one instance under a regular form."""

    def __init__(
        self,
        requests: Sequence[Request],
        form: LinearForm,
        locals_: Sequence[LocalStates],
        first: Rests,
        last: Rests,
    ) -> None:
        self._requests, self._form, self._locals = requests, form, locals_
        self._first, self._last = first, last
        self._early = tuple(u - v for u, v in zip(form.first, form.span, strict=True))
        self._arrivals = [request.arrival_ns for request in requests]
        self._last_arrival = max(self._arrivals)
        self._is_linear = not any(form.late)
        self._known: dict[State, tuple[int, int]] = {}

    def of_token(self, i: int, number: int, time_ns: int) -> int:
        """What output token number `number` of a request pays."""
        request, waited, price = self._requests[i], time_ns - self._arrivals[i], 0
        if number == 1:
            price += self._early[i] * waited + self._late(i, waited)
        if number == request.output_tokens:
            price += self._form.span[i] * waited
        return price

    def at_end(self, stand: Stand) -> int:
        """Value of a finished schedule."""
        return self._form.makespan * stand.clock_ns + stand.paid

    def heuristic(self, stand: Stand, state: State) -> int:
        """Least value of all schedules that go on from here."""
        if not self._is_linear or stand.clock_ns < self._last_arrival:
            return stand.paid + self._rest(stand.clock_ns, state)
        rate, rest = self._paced(state)
        return stand.paid + rate * stand.clock_ns + rest

    def dominates(self, one: Stand, other: Stand, state: State) -> bool:
        """Whether one way to a state makes another needless."""
        if one.clock_ns <= other.clock_ns and one.paid <= other.paid:
            return True
        if min(one.clock_ns, other.clock_ns) < self._last_arrival:
            return False
        if not self._is_linear and one.clock_ns > other.clock_ns:
            return False
        rate = self._rate(state)
        return one.paid + rate * one.clock_ns <= other.paid + rate * other.clock_ns

    def _paced(self, state: State) -> tuple[int, int]:
        """Heuristic for the rest from the last arrival on: a rate times the clock, and a constant."""
        known = self._known.get(state)
        if known is None:
            rate, clock = self._rate(state), self._last_arrival
            known = self._known[state] = rate, self._rest(clock, state) - rate * clock
        return known

    def _rate(self, state: State) -> int:
        """What a nanosecond costs in which all unfinished requests wait, once all have arrived."""
        rate = self._form.makespan
        for i, position in enumerate(state):
            generated = self._locals[i].generated(position)
            rate += self._form.span[i] * (generated < self._requests[i].output_tokens)
            rate += self._early[i] * (generated == 0)
        return rate

    def _rest(self, clock_ns: int, state: State) -> int:
        """Lower bound on what is still to pay."""
        generated = [states.generated(k) for states, k in zip(self._locals, state, strict=True)]
        waiting = [i for i, g in enumerate(generated) if g < self._requests[i].output_tokens]
        total, ends = self._tokens(clock_ns, state, waiting, self._last, self._form.span)
        total += self._form.makespan * ends[-1]
        fresh = [i for i in waiting if generated[i] == 0]
        if any(self._early[i] for i in fresh):
            total += self._tokens(clock_ns, state, fresh, self._first, self._early)[0]
        for i in fresh if not self._is_linear else ():
            alone = max(clock_ns, self._arrivals[i]) + self._first.alone[i][state[i]]
            total += self._late(i, alone - self._arrivals[i])
        return total

    def _tokens(
        self, clock_ns: int, state: State, those: Sequence[int], rests: Rests, weights: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Lower bounds on weighted waits for one token each, and on their times, ascending."""
        released = sorted((max(clock_ns, self._arrivals[i]), i) for i in those)
        alone = [(release + rests.alone[i][state[i]], i) for release, i in released]
        ends, releases = sorted(end for end, _ in alone), [release for release, _ in released]
        lone = sum(ends)
        for table in rests.shares:
            packed = earliest_ends(releases, [table[i][state[i]] for _, i in released])
            ends = list(map(max, ends, packed))
        total = sum(weights[i] * (end - self._arrivals[i]) for end, i in alone)
        return total + min(weights[i] for i in those) * (sum(ends) - lone), ends

    def _late(self, i: int, waited_ns: int) -> int:
        limit = self._requests[i].ttft_limit_ns
        return self._form.late[i] if limit is not None and waited_ns > limit else 0
