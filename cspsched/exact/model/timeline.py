"""Starts and ends of the batches, and the objectives on top of them; shared by all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from cspsched.exact.model.batch_duration import Amount, BatchExpressions, add_duration
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective

WORST_SUM = 2**60
"""A model whose sums could pass this is not built: 64-bit arithmetic would be at risk."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Who waits for which batch, for one objective (its requests wait for their first or last token).

    Attributes
    ----------
    literals
        (request, batch, literal): if the literal is true, the request waits at least until the batch ends.
    counts
        For each batch, how many requests wait when it starts.
    """

    literals: Sequence[tuple[int, int, cp_model.LiteralT]]
    counts: Sequence[Amount]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Batches of a model in time."""

    model: cp_model.CpModel
    instance: Instance
    batches: Sequence[BatchExpressions]
    steps: Sequence[cp_model.IntVar]
    """Time that batch j takes, moves of KV caches before it included."""
    ends: Sequence[cp_model.IntVar]
    longest_ns: Sequence[int]
    """Most that each step can take."""
    latest_ns: int

    @property
    def has_arrivals(self) -> bool:
        """Whether a request arrives after the clock has started."""
        return any(request.arrival_ns for request in self.instance.requests)


def add_timeline(
    model: cp_model.CpModel,
    instance: Instance,
    batches: Sequence[BatchExpressions],
    first_use: Mapping[tuple[int, int], cp_model.IntVar],
    moves: Sequence[Amount] = (),
) -> Timeline:
    r"""Rules 7 and 8: $S_j \ge S_{j-1} + T_{j-1} + V_j$, and $S_j \ge a_i$ for every i processed in batch j.

    `first_use[i, j]` must be true for the first batch j of request i, if j is possible for it. `moves` are
    the times $V_j$ that KV caches take to move at the boundary before each batch; none if left out.
    """
    amounts = [add_duration(model, instance.cost, batch) for batch in batches]
    arrivals = [request.arrival_ns for request in instance.requests]
    moves = moves or [Amount(0, 0)] * len(amounts)
    latest = max(arrivals) + sum(amount.most for amount in (*amounts, *moves))
    steps: list[cp_model.IntVar] = []
    ends: list[cp_model.IntVar] = []
    for j, (amount, move) in enumerate(zip(amounts, moves, strict=True)):
        duration = model.new_int_var(0, amount.most, f"duration[{j}]")
        model.add(duration == amount.expression)
        end = model.new_int_var(0, latest, f"end[{j}]")
        previous = cp_model.LinearExpr.sum([ends[-1], move.expression]) if ends else 0
        if max(arrivals) == 0:
            model.add(end == previous + duration)
        else:
            start = model.new_int_var(0, latest, f"start[{j}]")
            model.add(start >= previous)
            model.add(end == start + duration)
            for i, arrival in enumerate(arrivals):
                if arrival and (i, j) in first_use:
                    model.add(start >= arrival).only_enforce_if(first_use[i, j])
        steps.append(_step(model, j, duration, amount, move))
        ends.append(end)
    return Timeline(
        model=model,
        instance=instance,
        batches=batches,
        steps=steps,
        ends=ends,
        longest_ns=[amount.most + move.most for amount, move in zip(amounts, moves, strict=True)],
        latest_ns=latest,
    )


def _step(
    model: cp_model.CpModel, j: int, duration: cp_model.IntVar, amount: Amount, move: Amount
) -> cp_model.IntVar:
    """Duration of a batch with the moves before it; the duration itself where nothing moves."""
    if move.most == 0:
        return duration
    step = model.new_int_var(0, amount.most + move.most, f"step[{j}]")
    model.add(step == cp_model.LinearExpr.sum([duration, move.expression]))
    return step


def worst_sum(timeline: Timeline, objective: Objective) -> int:
    """Largest value that a sum in the model can take, to be kept below `WORST_SUM`."""
    count = 1 if objective is Objective.MAKESPAN else len(timeline.instance.requests)
    return count * timeline.latest_ns


def objective_expression(timeline: Timeline, objective: Objective, waiting: Waiting) -> cp_model.LinearExprT:
    """Value to minimise, in nanoseconds."""
    if objective is Objective.MAKESPAN:
        return timeline.ends[-1]
    if timeline.has_arrivals:
        return _sum_of_token_times(timeline, waiting)
    return sum_of_waiting(timeline, waiting.counts)


def constant_duration_ns(cost: CostModel) -> int | None:
    """Duration of every batch if the cost model does not look at its composition, else None."""
    flat = CostModel(
        name=cost.name, step=cost.step, prefill_batch=cost.prefill_batch, decode_batch=cost.prefill_batch
    )
    return cost.step_ceil + cost.prefill_batch_ceil if cost == flat else None


def sum_of_waiting(timeline: Timeline, counts: Sequence[Amount]) -> cp_model.LinearExprT:
    r"""All requests at 0: $\sum_i t_i = \sum_j T_j U_j$, with U_j requests waiting when batch j starts.

    Each of `counts` is U_j, or the weight of the requests that wait.

    Of the encodings tried it is the one whose bound rises above the closed-form one.
    """
    model = timeline.model
    constant = constant_duration_ns(timeline.instance.cost)
    if constant is not None:
        # A request waits only for batches that run, so T_j U_j is linear.
        return constant * cp_model.LinearExpr.sum([count.expression for count in counts])
    products = []
    for j, (step, count) in enumerate(zip(timeline.steps, counts, strict=True)):
        waiters = model.new_int_var(0, count.most, f"waiters[{j}]")
        model.add(waiters == count.expression)
        product = model.new_int_var(0, count.most * timeline.longest_ns[j], f"waited[{j}]")
        model.add_multiplication_equality(product, [step, waiters])
        products.append(product)
    return cp_model.LinearExpr.sum(products)


def _sum_of_token_times(timeline: Timeline, waiting: Waiting) -> cp_model.LinearExprT:
    """With arrivals: the token of a request is no earlier than the end of each batch that it waits for."""
    model, requests = timeline.model, timeline.instance.requests
    times = [
        model.new_int_var(request.arrival_ns, timeline.latest_ns, f"token_time[{i}]")
        for i, request in enumerate(requests)
    ]
    for i, j, literal in waiting.literals:
        model.add(times[i] >= timeline.ends[j]).only_enforce_if(literal)
    return cp_model.LinearExpr.sum(times) - sum(request.arrival_ns for request in requests)
