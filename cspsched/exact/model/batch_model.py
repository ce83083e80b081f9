"""The batch-indexed model: c_ij and m_ij with all switches (InferMax, arXiv 2411.07447, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ortools.sat.python import cp_model

from cspsched.exact.model.batch_duration import Amount, BatchExpressions
from cspsched.exact.model.exact_model import Ceiling, Decisions, ExactModel, identical_requests
from cspsched.exact.model.grid import Cell, Grid, build_grid
from cspsched.exact.model.linear_objective import FormWriter
from cspsched.exact.model.rules import add_rules
from cspsched.exact.model.swap_rules import move_times
from cspsched.exact.model.timeline import add_timeline
from cspsched.problem.cost import triangle
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import LinearForm, linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.schedule import Schedule
from cspsched.referee.retiming import ending_at
from cspsched.referee.timing import schedule_asap


class BatchModel(ExactModel):
    """Variables for every request and batch; exact for every combination of switches."""

    name = "batch-indexed CP-SAT"
    subsolvers = ("lb_tree_search", "default_lp", "no_lp")

    def __init__(
        self,
        instance: Instance,
        objective: AnyObjective,
        num_batches: int,
        ceilings: Sequence[Ceiling] = (),
    ) -> None:
        self.grid = build_grid(instance, num_batches)
        form = linear_form(objective, instance)
        limited = [(linear_form(ceiling.objective, instance), ceiling.most_ns) for ceiling in ceilings]
        forms = [form, *(other for other, _ in limited)]
        self.is_regular = all(one.is_regular(instance.requests) for one in forms)
        self._identical = identical_requests(instance, _roles(instance, forms))
        add_rules(self.grid)
        add_volume_cut(self.grid)
        add_completion_order(self.grid, self._identical)
        batches, moves = list(_batches(self.grid)), move_times(self.grid)
        # Gaps are shortest without idle time between batches: where only gaps count, wait for all arrivals.
        if all(one.is_about_gaps(instance.requests) for one in forms):
            instance = _all_at_zero(instance)
        # A request is first processed in a prefill, and its later batches come later.
        timeline = add_timeline(self.grid.model, instance, batches, self.grid.prefills, moves)
        writer = FormWriter(self.grid, timeline)
        for other, most_ns in limited:
            self.grid.model.add(writer.expression(other) <= most_ns)
        super().__init__(timeline, writer.expression(form), max(map(writer.most, forms)))

    def assignment(self, schedule: Schedule) -> Iterator[tuple[cp_model.IntVar, int]]:
        """Decisions of a schedule, identical requests renamed in their order of completion."""
        grid = self.grid
        renamed = _completion_names(self._identical, grid.instance, schedule)
        tokens = dict.fromkeys(grid.tokens, 0)
        events = [dict.fromkeys(cells, 0) for cells in (grid.evicted, grid.swapped, grid.restored)]
        entries = (schedule.request.tolist(), schedule.batch_of_entry.tolist(), schedule.tokens.tolist())
        for i, j, count in zip(*entries, strict=True):
            tokens[renamed[i], j] = count
        leaving = (schedule.evicted_request.tolist(), schedule.evicted_batch.tolist())
        for i, j, to_host in zip(*leaving, schedule.evicted_to_host.tolist(), strict=True):
            events[to_host][renamed[i], j] = 1
        for i, j in zip(schedule.restored_request.tolist(), schedule.restored_batch.tolist(), strict=True):
            events[2][renamed[i], j] = 1
        yield from ((grid.tokens[cell], value) for cell, value in tokens.items())
        for cells, given in zip((grid.evicted, grid.swapped, grid.restored), events, strict=True):
            yield from ((cells[cell], value) for cell, value in given.items())

    def decisions(self, value: Callable[[cp_model.IntVar], int]) -> Decisions:
        """Batches and evictions of a solution; batches that are not used are left out."""
        grid = self.grid
        batches = []
        for j in grid.batches:
            entries = [(i, value(grid.tokens[i, j])) for i in grid.requests]
            batches.append([(i, count) for i, count in entries if count])
        num_used = sum(map(bool, batches))
        return batches[:num_used], self._named(grid.evicted, value)[:num_used]

    def schedule(self, value: Callable[[cp_model.IntVar], int]) -> Schedule:
        """Schedule of a solution; batches end when the model says only where later may be better.

        Where the model knows no arrivals and the instance has some, batches are still as early as possible;
        see `cspsched.referee.retiming.timings` for the times that are worth more.
        """
        batches, evicted = self.decisions(value)
        swapped, restored = (
            self._named(cells, value)[: len(batches)] for cells in (self.grid.swapped, self.grid.restored)
        )
        leaving = [[*lost, *moved] for lost, moved in zip(evicted, swapped, strict=True)]
        schedule = schedule_asap(self.grid.instance, batches, leaving, swapped=swapped, restored=restored)
        if self.is_regular or not self.timeline.has_arrivals:
            return schedule
        return ending_at(schedule, [value(end) for end in self.timeline.ends[: len(batches)]])

    def _named(
        self, cells: Mapping[Cell, cp_model.IntVar], value: Callable[[cp_model.IntVar], int]
    ) -> list[list[int]]:
        """For each batch the requests whose cells are 1."""
        return [[i for i in self.grid.requests if cells and value(cells[i, j])] for j in self.grid.batches]


def _all_at_zero(instance: Instance) -> Instance:
    return replace(instance, requests=tuple(replace(request, arrival_ns=0) for request in instance.requests))


def _roles(instance: Instance, forms: Sequence[LinearForm]) -> list[object]:
    """What an objective tells requests apart by: weights, and limits where missing them counts."""
    return [
        tuple(
            (form.first[i], form.span[i], form.max_span[i], form.late[i])
            + ((request.ttft_limit_ns, request.tpot_limit_ns) if form.late[i] else ())
            for form in forms
        )
        for i, request in enumerate(instance.requests)
    ]


def _batches(grid: Grid) -> Iterator[BatchExpressions]:
    for j in grid.batches:
        has_prefill = grid.model.new_bool_var(f"has_prefill[{j}]")
        has_decode = grid.model.new_bool_var(f"has_decode[{j}]")
        for i in grid.requests:
            grid.model.add_implication(grid.prefills[i, j], has_prefill)
            grid.model.add_implication(grid.decodes[i, j], has_decode)
        # Either suffices for `used`; this keeps the cheaper of the two in the relaxation of every batch.
        grid.model.add(has_prefill + has_decode >= grid.used[j])
        yield BatchExpressions(_features(grid, j), grid.used[j], has_prefill, has_decode)


def _features(grid: Grid, j: int) -> dict[str, Amount]:
    """Features of batch j; those that the cost model does not price are left at zero."""
    limits, cost, count = grid.instance.limits, grid.instance.cost, len(grid.requests)
    peaks = [request.peak_kv_tokens for request in grid.instance.requests]
    most = min(limits.max_batch_tokens, sum(peaks))
    most_kv = min(limits.kv_tokens, sum(peaks))
    seats = min(limits.max_batch_requests, count)
    total = cp_model.LinearExpr.sum
    tokens = total([grid.tokens[i, j] for i in grid.requests])
    num_decodes = total([grid.decodes[i, j] for i in grid.requests])
    nothing = Amount(0, 0)
    return {
        "tokens": Amount(tokens, most),
        # A decode processes one token, so the rest of the batch is prefill.
        "prefill_tokens": Amount(tokens - num_decodes, most),
        "num_prefills": Amount(total([grid.prefills[i, j] for i in grid.requests]), seats),
        "num_decodes": Amount(num_decodes, seats),
        "num_generating": Amount(total([grid.generates[i, j] for i in grid.requests]), seats),
        "prefill_attention": nothing
        if cost.prefill_attention.is_zero
        else Amount(total([_attention(grid, i, j) for i in grid.requests]), sum(map(triangle, peaks))),
        "prefill_context": nothing
        if cost.prefill_context.is_zero
        else Amount(total([_prefill_context(grid, i, j) for i in grid.requests]), most_kv),
        "decode_context": nothing
        if cost.decode_context.is_zero and cost.mixed_context.is_zero
        else Amount(total([_decode_context(grid, i, j) for i in grid.requests]), most_kv),
    }


def _attention(grid: Grid, i: int, j: int) -> cp_model.IntVar:
    r"""$W(n + c) - W(n)$ if i prefills in batch j, with $2 W(x) = x^2 + x$."""
    model, peak = grid.model, grid.instance.requests[i].peak_kv_tokens
    work = model.new_int_var(0, triangle(peak), f"attention[{i},{j}]")
    before, after = grid.carried[i, j], grid.kv(i, j)
    squares = []
    for name, amount in (("before", before), ("after", after)):
        tokens = model.new_int_var(0, peak, f"kv_{name}[{i},{j}]")
        model.add(tokens == amount)
        square = model.new_int_var(0, peak * peak, f"square_{name}[{i},{j}]")
        model.add_multiplication_equality(square, [tokens, tokens])
        squares.append(square)
    doubled = squares[1] - squares[0] + after - before
    model.add(2 * work >= doubled).only_enforce_if(grid.prefills[i, j])
    return work


def _prefill_context(grid: Grid, i: int, j: int) -> cp_model.IntVar:
    """n_ij if i prefills in batch j."""
    context = grid.model.new_int_var(0, grid.instance.requests[i].peak_kv_tokens, f"prefill_context[{i},{j}]")
    grid.model.add(context >= grid.carried[i, j]).only_enforce_if(grid.prefills[i, j])
    return context


def _decode_context(grid: Grid, i: int, j: int) -> cp_model.IntVar:
    """n_ij if i decodes in batch j; at least the prompt, for a decode follows the first token."""
    request = grid.instance.requests[i]
    context = grid.model.new_int_var(0, request.peak_kv_tokens, f"decode_context[{i},{j}]")
    grid.model.add(context >= grid.carried[i, j]).only_enforce_if(grid.decodes[i, j])
    grid.model.add(context >= request.prompt_tokens * grid.decodes[i, j])
    return context


def add_volume_cut(grid: Grid) -> None:
    r"""Cut: token k + 1 needs I + k resident tokens, so $\sum_j m_{ij} \ge \sum_k (I_i + k)$.

    With the capacity of used batches it gives the relaxation the KV volume bound.
    """
    for i, request in enumerate(grid.instance.requests):
        volume = sum(request.prompt_tokens + k for k in range(request.output_tokens))
        grid.model.add(sum(grid.device_kv(i, j) for j in grid.batches) >= volume)
    capacity = grid.instance.limits.kv_tokens
    for j, used in enumerate(grid.used):
        grid.model.add(sum(grid.device_kv(i, j) for i in grid.requests) <= capacity * used)


def add_completion_order(grid: Grid, identical: Sequence[Sequence[int]]) -> None:
    """Symmetry: identical requests finish in file order (relabel whole trajectories)."""
    for group in identical:
        for first, second in pairwise(group):
            for j in grid.batches:
                grid.model.add_implication(grid.finished[second, j], grid.finished[first, j])


def _completion_names(
    identical: Sequence[Sequence[int]], instance: Instance, schedule: Schedule
) -> list[int]:
    """For each request the identical one whose place in the order of completion it takes."""
    last_batch = dict(zip(schedule.request.tolist(), schedule.batch_of_entry.tolist(), strict=True))
    names = list(range(len(instance.requests)))
    for group in identical:
        for name, i in zip(group, sorted(group, key=lambda i: last_batch[i]), strict=True):
            names[i] = name
    return names
