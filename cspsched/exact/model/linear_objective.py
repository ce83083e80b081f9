"""The linear form of an objective in the batch-indexed model.

With all requests at 0 a weighted sum of times is a sum over batches: the step of the batch times the weight
of the requests that wait for it. Else, and for maxima and missed limits, first and last tokens get times of
their own.
"""

from __future__ import annotations

from functools import cached_property

from ortools.sat.python import cp_model

from cspsched.exact.model.batch_duration import Amount
from cspsched.exact.model.grid import Cell, Grid
from cspsched.exact.model.timeline import Timeline, sum_of_waiting
from cspsched.problem.linear_form import LinearForm


class FormWriter:
    """Writes forms into a model; what several of them need is there once."""

    def __init__(self, grid: Grid, timeline: Timeline) -> None:
        self._grid, self._timeline, self._model = grid, timeline, grid.model
        self._requests = timeline.instance.requests

    def expression(self, form: LinearForm) -> cp_model.LinearExprT:
        """Value of a form, exact where it is minimised or has an upper limit."""
        parts: list[cp_model.LinearExprT] = [form.makespan * self._timeline.ends[-1]]
        if self._timeline.has_arrivals:
            parts.append(self._sum_of_times(form))
        elif any(form.first) or any(form.span):
            parts.append(sum_of_waiting(self._timeline, [self._waiting(form, j) for j in self._grid.batches]))
        if form.max_gap:
            parts.append(form.max_gap * self.largest_gap)
        if any(form.max_span):
            parts.append(self._largest_span(form))
        if any(form.late):
            parts += [weight * self.late[i] for i, weight in enumerate(form.late) if weight]
        return cp_model.LinearExpr.sum(parts)

    def most(self, form: LinearForm) -> int:
        """Largest value that a form, or a product in it, can take in the model."""
        times = sum(map(max, form.first, form.span)) + form.makespan + form.max_gap + max(form.max_span)
        return times * self._timeline.latest_ns + sum(form.late)

    def _waiting(self, form: LinearForm, j: int) -> Amount:
        """Weight of the requests that wait for batch j: u before the first token, then v until the last."""
        terms: list[cp_model.LinearExprT] = []
        for i, (first, span) in enumerate(zip(form.first, form.span, strict=True)):
            if first == span:
                terms.append(first * (1 - self._grid.finished[i, j]))
            else:
                tokenless = self.tokenless[i, j]
                terms.append(first * tokenless + span * (1 - tokenless - self._grid.finished[i, j]))
        return Amount(cp_model.LinearExpr.sum(terms), sum(map(max, form.first, form.span)))

    def _sum_of_times(self, form: LinearForm) -> cp_model.LinearExprT:
        r"""$\sum_i u_i (f_i - a_i) + v_i (l_i - f_i)$ with the times of first and last tokens."""
        terms: list[cp_model.LinearExprT] = []
        for i, request in enumerate(self._requests):
            first, span = form.first[i], form.span[i]
            if first != span:
                terms.append((first - span) * self.first_times[i])
            if span:
                terms.append(span * self.last_times[i])
            terms.append(-first * request.arrival_ns)
        return cp_model.LinearExpr.sum(terms)

    def _largest_span(self, form: LinearForm) -> cp_model.IntVar:
        """The largest product of a weight with the time from first to last token."""
        most = max(form.max_span) * self._timeline.latest_ns
        largest = self._model.new_int_var(0, most, "largest_span")
        for i, weight in enumerate(form.max_span):
            if weight:
                self._model.add(largest >= weight * (self.last_times[i] - self.first_times[i]))
        return largest

    @cached_property
    def tokenless(self) -> dict[Cell, cp_model.IntVar]:
        """Exactly if request i has no token before batch j; one column more than batches."""
        found: dict[Cell, cp_model.IntVar] = {}
        for cell, generated in self._grid.generated.items():
            literal = self._model.new_bool_var(f"tokenless[{cell[0]},{cell[1]}]")
            self._model.add(generated >= 1).only_enforce_if(~literal)
            self._model.add(generated == 0).only_enforce_if(literal)
            found[cell] = literal
        return found

    @cached_property
    def first_times(self) -> list[cp_model.IntVar]:
        """Time of every first token: not before its batch ends, nor later."""
        times = self._times("first_time")
        for i, j in self._grid.tokens:
            end = self._timeline.ends[j]
            self._model.add(times[i] >= end).only_enforce_if(self.tokenless[i, j])
            # Where a later first token is worth something this keeps it from being claimed.
            self._model.add(times[i] <= end).only_enforce_if(~self.tokenless[i, j + 1])
        return times

    @cached_property
    def last_times(self) -> list[cp_model.IntVar]:
        """Time of every last token, or later: that is never worth anything."""
        times = self._times("last_time")
        for i, j in self._grid.tokens:
            finished = self._grid.finished[i, j]
            self._model.add(times[i] >= self._timeline.ends[j]).only_enforce_if(~finished)
        return times

    def _times(self, name: str) -> list[cp_model.IntVar]:
        latest = self._timeline.latest_ns
        return [
            self._model.new_int_var(request.arrival_ns, latest, f"{name}[{i}]")
            for i, request in enumerate(self._requests)
        ]

    @cached_property
    def largest_gap(self) -> cp_model.IntVar:
        """At least every gap between a token and the one before it."""
        model, grid, timeline = self._model, self._grid, self._timeline
        largest = model.new_int_var(0, timeline.latest_ns, "largest_gap")
        for i, request in enumerate(self._requests):
            if request.output_tokens == 1:
                continue
            previous = model.new_int_var(0, timeline.latest_ns, f"token_before[{i},0]")
            for j in grid.batches:
                generates, end = grid.generates[i, j], timeline.ends[j]
                model.add(largest >= end - previous).only_enforce_if(generates, ~self.tokenless[i, j])
                following = model.new_int_var(0, timeline.latest_ns, f"token_before[{i},{j + 1}]")
                # An upper limit suffices: a later token before only makes the gap smaller.
                model.add(following <= end)
                model.add(following <= previous).only_enforce_if(~generates)
                previous = following
        return largest

    @cached_property
    def late(self) -> dict[int, cp_model.IntVar]:
        """Requests with a limit: true if they may miss it."""
        found: dict[int, cp_model.IntVar] = {}
        for i, request in enumerate(self._requests):
            ttft, tpot = request.ttft_limit_ns, request.tpot_limit_ns
            if ttft is None and tpot is None:
                continue
            late = found[i] = self._model.new_bool_var(f"late[{i}]")
            if ttft is not None:
                due = request.arrival_ns + min(ttft, self._timeline.latest_ns)
                self._model.add(self.first_times[i] <= due).only_enforce_if(~late)
            if tpot is not None and request.output_tokens > 1:
                most = min(tpot * (request.output_tokens - 1), self._timeline.latest_ns)
                span = self.last_times[i] - self.first_times[i]
                self._model.add(span <= most).only_enforce_if(~late)
        return found
