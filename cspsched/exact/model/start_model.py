"""The run-to-completion model: one start variable a request and batch, everything else is linear in them.

Exact for instances without chunked prefill, holding and preemption: a request that starts in batch s
processes its whole prompt there and one token in each of the O - 1 batches that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from ortools.sat.python import cp_model

from cspsched.exact.heuristics.list_schedule import share
from cspsched.exact.model.batch_duration import Amount, BatchExpressions
from cspsched.exact.model.exact_model import Decisions, ExactModel, identical_requests
from cspsched.exact.model.timeline import Waiting, add_timeline, objective_expression, worst_sum
from cspsched.problem.cost import BatchFeatures
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Starts:
    """x_is: request i starts in batch s."""

    model: cp_model.CpModel
    instance: Instance
    num_batches: int
    starts: dict[tuple[int, int], cp_model.IntVar]

    def running(self, j: int) -> Iterator[tuple[int, int, cp_model.IntVar]]:
        """(request, batches since its start, literal) of each request that may be processed in batch j."""
        for i, request in enumerate(self.instance.requests):
            for age in range(min(request.output_tokens, j + 1)):
                if (i, j - age) in self.starts:
                    yield i, age, self.starts[i, j - age]

    def position(self, i: int) -> cp_model.LinearExpr:
        """Batch in which request i starts."""
        last = self.num_batches - self.instance.requests[i].output_tokens
        return cp_model.LinearExpr.sum([s * self.starts[i, s] for s in range(last + 1)])


class StartModel(ExactModel):
    """Run-to-completion schedules only; see `Switches.run_to_completion`."""

    name = "run-to-completion CP-SAT"
    subsolvers = ("lb_tree_search", "no_lp")

    def __init__(self, instance: Instance, objective: Objective, num_batches: int) -> None:
        model = cp_model.CpModel()
        self.grid = new_starts(model, instance, num_batches)
        add_one_start(self.grid)
        add_capacity(self.grid)
        add_budget(self.grid)
        add_start_order(self.grid)
        batches = _batches(self.grid)
        timeline = add_timeline(model, instance, batches, self.grid.starts)
        value = objective_expression(timeline, objective, _waiting(self.grid, objective))
        super().__init__(timeline, value, worst_sum(timeline, objective))

    def assignment(self, schedule: Schedule) -> Iterator[tuple[cp_model.IntVar, int]]:
        """Start of every request, identical requests renamed in their order of starting."""
        first: dict[int, int] = {}
        for i, j in zip(schedule.request.tolist(), schedule.batch_of_entry.tolist(), strict=True):
            first.setdefault(i, j)
        for group in identical_requests(self.grid.instance):
            first |= dict(zip(group, sorted(first[i] for i in group), strict=True))
        for (i, s), literal in self.grid.starts.items():
            yield literal, int(first[i] == s)

    def decisions(self, value: Callable[[cp_model.IntVar], int]) -> Decisions:
        """Batches of a solution; there are no evictions."""
        return started_decisions(self.grid, value)


def new_starts(model: cp_model.CpModel, instance: Instance, num_batches: int) -> Starts:
    """Literals for every start from which a request can finish in time."""
    starts = {
        (i, s): model.new_bool_var(f"start[{i},{s}]")
        for i, request in enumerate(instance.requests)
        for s in range(num_batches - request.output_tokens + 1)
    }
    return Starts(model=model, instance=instance, num_batches=num_batches, starts=starts)


def started_decisions(grid: Starts, value: Callable[[cp_model.IntVar], int]) -> Decisions:
    """Batches that start requests as the literals say; there are no evictions."""
    batches: list[list[tuple[int, int]]] = [[] for _ in range(grid.num_batches)]
    for (i, s), literal in grid.starts.items():
        if value(literal):
            request = grid.instance.requests[i]
            for age in range(request.output_tokens):
                batches[s + age].append((i, request.prompt_tokens if age == 0 else 1))
    used = [batch for batch in batches if batch]
    return used, [[] for _ in used]


def add_one_start(grid: Starts) -> None:
    """Every request starts exactly once, early enough to finish."""
    for i in range(len(grid.instance.requests)):
        grid.model.add_exactly_one(literal for (k, _), literal in grid.starts.items() if k == i)


def add_capacity(grid: Starts) -> None:
    r"""Rule 4: a request of age t holds I + t tokens, or I + O - 1 under reservation."""
    limits, reserved = grid.instance.limits, grid.instance.switches.reservation
    for j in range(grid.num_batches):
        blocks = []
        for i, age, literal in grid.running(j):
            request = grid.instance.requests[i]
            held = request.peak_kv_tokens if reserved else request.prompt_tokens + age
            blocks.append(limits.blocks_of(held) * literal)
        grid.model.add(cp_model.LinearExpr.sum(blocks) <= limits.kv_blocks)


def add_budget(grid: Starts) -> None:
    r"""Rule 5: a request processes its prompt at age 0 and one token at every age after it."""
    limits = grid.instance.limits
    for j in range(grid.num_batches):
        running = list(grid.running(j))
        tokens = [share(grid.instance.requests[i], age).tokens * literal for i, age, literal in running]
        grid.model.add(cp_model.LinearExpr.sum(tokens) <= limits.max_batch_tokens)
        seats = cp_model.LinearExpr.sum([literal for _, _, literal in running])
        grid.model.add(seats <= limits.max_batch_requests)


def add_start_order(grid: Starts) -> None:
    """Symmetry: identical requests start in file order."""
    for group in identical_requests(grid.instance):
        for first, second in pairwise(group):
            grid.model.add(grid.position(first) <= grid.position(second))


def _batches(grid: Starts) -> list[BatchExpressions]:
    model = grid.model
    batches: list[BatchExpressions] = []
    for j in range(grid.num_batches):
        used = model.new_bool_var(f"used[{j}]")
        has_prefill = model.new_bool_var(f"has_prefill[{j}]")
        has_decode = model.new_bool_var(f"has_decode[{j}]")
        running = list(grid.running(j))
        for _, age, literal in running:
            model.add_implication(literal, used)
            model.add_implication(literal, has_decode if age else has_prefill)
        model.add(cp_model.LinearExpr.sum([literal for _, _, literal in running]) >= used)
        if batches:
            model.add_implication(used, batches[-1].used)
        batches.append(BatchExpressions(_features(grid, running), used, has_prefill, has_decode))
    return batches


def _features(grid: Starts, running: list[tuple[int, int, cp_model.IntVar]]) -> dict[str, Amount]:
    requests = grid.instance.requests
    shares = [(i, literal, share(requests[i], age)) for i, age, literal in running]
    features = {}
    for k, name in enumerate(BatchFeatures._fields):
        most = dict.fromkeys(range(len(requests)), 0)
        for i, _, part in shares:
            most[i] = max(most[i], part[k])
        terms = [part[k] * literal for _, literal, part in shares if part[k]]
        features[name] = Amount(cp_model.LinearExpr.sum(terms) if terms else 0, sum(most.values()))
    return features


def _waiting(grid: Starts, objective: Objective) -> Waiting:
    """Requests wait for their last token (latency) or their first (TTFT)."""

    def token_batch(i: int, s: int) -> int:
        return s if objective is Objective.TTFT else s + grid.instance.requests[i].output_tokens - 1

    ends = [(i, token_batch(i, s), literal) for (i, s), literal in grid.starts.items()]
    counts = []
    for j in range(grid.num_batches):
        pending = [literal for _, last, literal in ends if last >= j]
        counts.append(Amount(cp_model.LinearExpr.sum(pending), len(grid.instance.requests)))
    return Waiting(literals=ends, counts=counts)
