"""The batch-indexed model: c_ij and m_ij with all switches (InferMax, arXiv 2411.07447, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from ortools.sat.python import cp_model

from cspsched.exact.grid import Cell, Grid, build_grid
from cspsched.exact.model import Decisions, ExactModel, identical_requests
from cspsched.exact.pricing import Amount, BatchExpressions
from cspsched.exact.rules import add_rules
from cspsched.exact.timeline import Waiting, add_timeline
from cspsched.problem.cost import triangle
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Objective
from cspsched.problem.schedule import Schedule


class BatchModel(ExactModel):
    """Variables for every request and batch; exact for every combination of switches."""

    name = "batch-indexed CP-SAT"
    subsolvers = ("lb_tree_search", "default_lp", "no_lp")

    def __init__(self, instance: Instance, objective: Objective, num_batches: int) -> None:
        self.grid = build_grid(instance, num_batches)
        add_rules(self.grid)
        add_volume_cut(self.grid)
        add_completion_order(self.grid)
        # A request is first processed in a prefill, and its later batches come later.
        timeline = add_timeline(self.grid.model, instance, list(_batches(self.grid)), self.grid.prefills)
        super().__init__(timeline, objective, _waiting(self.grid, objective))

    def assignment(self, schedule: Schedule) -> Iterator[tuple[cp_model.IntVar, int]]:
        """Tokens and evictions of a schedule, identical requests renamed in their order of completion."""
        grid = self.grid
        tokens = dict.fromkeys(grid.tokens, 0)
        evicted = dict.fromkeys(grid.evicted, 0)
        columns = zip(
            schedule.request.tolist(), schedule.batch_of_entry.tolist(), schedule.tokens.tolist(), strict=True
        )
        renamed = _completion_names(grid.instance, schedule)
        for i, j, count in columns:
            tokens[renamed[i], j] = count
        for i, j in zip(schedule.evicted_request.tolist(), schedule.evicted_batch.tolist(), strict=True):
            evicted[renamed[i], j] = 1
        yield from ((grid.tokens[cell], value) for cell, value in tokens.items())
        yield from ((grid.evicted[cell], value) for cell, value in evicted.items())

    def decisions(self, value: Callable[[cp_model.IntVar], int]) -> Decisions:
        """Batches and evictions of a solution; batches that are not used are left out."""
        grid = self.grid
        batches, evictions = [], []
        for j in grid.batches:
            entries = [(i, value(grid.tokens[i, j])) for i in grid.requests]
            batches.append([(i, count) for i, count in entries if count])
            evictions.append([i for i in grid.requests if value(grid.evicted[i, j])])
        num_used = sum(map(bool, batches))
        return batches[:num_used], evictions[:num_used]


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
        if cost.decode_context.is_zero
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


def _waiting(grid: Grid, objective: Objective) -> Waiting:
    """Requests wait for their last token (latency) or their first (TTFT)."""
    pending: dict[Cell, cp_model.LiteralT] = {}
    if objective is Objective.TTFT:
        for i in grid.requests:
            for j in grid.batches:
                pending[i, j] = grid.model.new_bool_var(f"tokenless[{i},{j}]")
                grid.model.add(grid.generated[i, j] >= 1).only_enforce_if(~pending[i, j])
    else:
        pending = {(i, j): ~grid.finished[i, j] for i in grid.requests for j in grid.batches}
    count = len(grid.requests)
    return Waiting(
        literals=[(i, j, literal) for (i, j), literal in pending.items()],
        counts=[
            Amount(cp_model.LinearExpr.sum([pending[i, j] for i in grid.requests]), count)
            for j in grid.batches
        ],
    )


def add_volume_cut(grid: Grid) -> None:
    r"""Cut: token k + 1 needs I + k resident tokens, so $\sum_j m_{ij} \ge \sum_k (I_i + k)$.

    With the capacity of used batches it gives the relaxation the KV volume bound.
    """
    for i, request in enumerate(grid.instance.requests):
        volume = sum(request.prompt_tokens + k for k in range(request.output_tokens))
        grid.model.add(sum(grid.kv(i, j) for j in grid.batches) >= volume)
    capacity = grid.instance.limits.kv_tokens
    for j, used in enumerate(grid.used):
        grid.model.add(sum(grid.kv(i, j) for i in grid.requests) <= capacity * used)


def add_completion_order(grid: Grid) -> None:
    """Symmetry: identical requests finish in file order (relabel whole trajectories)."""
    for group in identical_requests(grid.instance):
        for first, second in pairwise(group):
            for j in grid.batches:
                grid.model.add_implication(grid.finished[second, j], grid.finished[first, j])


def _completion_names(instance: Instance, schedule: Schedule) -> list[int]:
    """For each request the identical one whose place in the order of completion it takes."""
    last_batch = dict(zip(schedule.request.tolist(), schedule.batch_of_entry.tolist(), strict=True))
    names = list(range(len(instance.requests)))
    for group in identical_requests(instance):
        for name, i in zip(group, sorted(group, key=lambda i: last_batch[i]), strict=True):
            names[i] = name
    return names
