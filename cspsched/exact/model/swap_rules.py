"""Rule 8 with host memory: who is moved out and back, what that occupies, and how long it takes.

n_ij and the phase of a request are kept wherever its KV cache is; in host memory it is not processed and
occupies nothing on the device.
"""

from __future__ import annotations

from ortools.sat.python import cp_model

from cspsched.exact.model.batch_duration import Amount, add_term
from cspsched.exact.model.grid import Grid
from cspsched.problem.cost import PiecewiseLinear


def add_swap(grid: Grid) -> None:
    """Add what holds where KV caches may move; without swap there is nothing to add."""
    if grid.hosted:
        add_moves(grid)
        add_places(grid)
        add_host_capacity(grid)


def add_moves(grid: Grid) -> None:
    """Only a resident, unfinished request is moved out or evicted; only one in host memory is moved back."""
    model = grid.model
    for i in grid.requests:
        for j in range(1, grid.num_batches):
            swapped, restored, hosted = grid.swapped[i, j], grid.restored[i, j], grid.hosted[i, j]
            before = grid.hosted[i, j - 1]
            model.add(hosted == before + swapped - restored)
            # A request that moves is not evicted, has not finished, and moves one way only.
            model.add(swapped + restored + grid.evicted[i, j] + grid.finished[i, j] <= 1)
            model.add(swapped + grid.evicted[i, j] <= 1 - before)
            model.add(grid.kv(i, j - 1) >= 1).only_enforce_if(swapped)
            model.add(swapped + restored <= grid.used[j])
            model.add(grid.active(i, j) <= 1 - hosted)


def add_places(grid: Grid) -> None:
    r"""All of $m_{ij}$ is on the device, or all of it is in host memory."""
    for (i, j), on_device in grid.on_device.items():
        peak = grid.instance.requests[i].peak_kv_tokens
        grid.model.add(on_device <= grid.kv(i, j))
        grid.model.add(on_device <= peak * (1 - grid.hosted[i, j]))
        grid.model.add(on_device >= grid.kv(i, j) - peak * grid.hosted[i, j])


def add_host_capacity(grid: Grid) -> None:
    r"""$\sum_i \lceil h_{ij} / b \rceil$ is at most the host's KV blocks, in every batch."""
    limits = grid.instance.limits
    for j in grid.batches:
        blocks = []
        for i, request in enumerate(grid.instance.requests):
            most = limits.blocks_of(request.peak_kv_tokens)
            count = grid.model.new_int_var(0, most, f"host_blocks[{i},{j}]")
            grid.model.add(limits.block_tokens * count >= grid.kv(i, j) - grid.on_device[i, j])
            blocks.append(count)
        grid.model.add(sum(blocks) <= limits.host_kv_blocks)


def move_times(grid: Grid) -> list[Amount]:
    r"""$\lceil$ `swap_block` x blocks moved $\rceil$ before each batch; empty if moves are free."""
    price = PiecewiseLinear.linear(grid.instance.cost.swap_block)
    if not grid.hosted or price.is_zero:
        return []
    limits = grid.instance.limits
    times = [Amount(0, 0)]
    for j in range(1, grid.num_batches):
        moved, most = [], 0
        for i, request in enumerate(grid.instance.requests):
            peak = request.peak_kv_tokens
            blocks = grid.model.new_int_var(0, limits.blocks_of(peak), f"moved_blocks[{i},{j}]")
            moves = grid.swapped[i, j] + grid.restored[i, j]
            grid.model.add(limits.block_tokens * blocks >= grid.carried[i, j] - peak * (1 - moves))
            moved.append(blocks)
            most += limits.blocks_of(peak)
        total = Amount(cp_model.LinearExpr.sum(moved), most)
        times.append(Amount(add_term(grid.model, price, total), price.ceil(most)))
    return times
