"""Rules of a feasible schedule, one short function each; numbers as in the problem's section 2."""

from __future__ import annotations

from cspsched.exact.model.grid import Grid
from cspsched.exact.model.swap_rules import add_swap


def add_rules(grid: Grid) -> None:
    """Add every rule that the switches of the instance ask for."""
    add_processing(grid)
    add_generation(grid)
    add_memory(grid)
    add_phases(grid)
    add_completion(grid)
    add_capacity(grid)
    add_budget(grid)
    add_used_prefix(grid)
    add_swap(grid)
    switches = grid.instance.switches
    if switches.reservation:
        add_reservation(grid)
    if not switches.chunked_prefill:
        add_whole_prefills(grid)
    if not switches.hybrid_batches:
        add_separate_batches(grid)
    if not switches.holding:
        add_no_holding(grid)


def add_processing(grid: Grid) -> None:
    r"""Tie tokens to processing: $c_{ij} \ge 1$ exactly if i is processed; a decode is $c_{ij} = 1$."""
    model = grid.model
    for cell, tokens in grid.tokens.items():
        active = grid.active(*cell)
        model.add(active <= 1)
        model.add(tokens >= active)
        model.add(tokens <= grid.instance.limits.max_batch_tokens * active)
        model.add(tokens == 1).only_enforce_if(grid.decodes[cell])


def add_generation(grid: Grid) -> None:
    r"""Rules 1 and 2: $n + c \le I + G$ always, and $g = 1$ exactly if $c \ge 1$ and $n + c = I + G$."""
    model = grid.model
    for i, request in enumerate(grid.instance.requests):
        for j in grid.batches:
            generates = grid.generates[i, j]
            known = request.prompt_tokens + grid.generated[i, j]
            model.add(grid.generated[i, j + 1] == grid.generated[i, j] + generates)
            model.add(grid.active(i, j) >= generates)
            model.add(grid.kv(i, j) == known).only_enforce_if(generates)
            model.add(grid.kv(i, j) <= known)
            # A prefill that does not generate stays below; a request that only holds never reaches I + G,
            # for its last generated token has not been processed.
            model.add(grid.kv(i, j) <= known - 1).only_enforce_if(~generates)
    # A decode always generates: it holds all known tokens but the last.
    for cell, decodes in grid.decodes.items():
        model.add_implication(decodes, grid.generates[cell])


def add_memory(grid: Grid) -> None:
    r"""Rules 3 and 8: $n_{i,j+1} = m_{ij}$, or 0 if i is evicted or has finished."""
    model = grid.model
    for i in grid.requests:
        peak = grid.instance.requests[i].peak_kv_tokens
        for j in range(1, grid.num_batches):
            before, carried = grid.kv(i, j - 1), grid.carried[i, j]
            evicted, finished = grid.evicted[i, j], grid.finished[i, j]
            model.add(carried <= before)
            model.add(carried >= before - peak * (evicted + finished))
            model.add(carried <= peak * (1 - evicted - finished))
            model.add(before >= 1).only_enforce_if(evicted)


def add_phases(grid: Grid) -> None:
    """Decode phase: generated when last processed, and neither evicted nor finished since; swap keeps it."""
    model = grid.model
    for (i, j), decoding in grid.decoding.items():
        model.add_implication(grid.decodes[i, j], decoding)
        model.add(grid.prefills[i, j] + decoding <= 1)
        if j == 0:
            continue
        # A request in its decode phase that is processed generates, so one of the two means "caught up".
        caught_up = (grid.generates[i, j - 1], grid.decoding[i, j - 1])
        gone = grid.evicted[i, j] + grid.finished[i, j]
        model.add(decoding <= sum(caught_up))
        model.add(decoding <= 1 - gone)
        for reason in caught_up:
            model.add(decoding >= reason - gone)


def add_completion(grid: Grid) -> None:
    r"""Rule 6: $\sum_j g_{ij} = O_i$; finished exactly if $G = O$, and never processed after that."""
    model = grid.model
    for i, request in enumerate(grid.instance.requests):
        outputs = request.output_tokens
        model.add(grid.generated[i, grid.num_batches] == outputs)
        for j in range(grid.num_batches + 1):
            finished, generated = grid.finished[i, j], grid.generated[i, j]
            model.add(generated == outputs).only_enforce_if(finished)
            model.add(generated <= outputs - 1).only_enforce_if(~finished)
            if j < grid.num_batches:
                model.add(grid.active(i, j) <= 1 - finished)
                model.add_implication(finished, grid.finished[i, j + 1])


def add_capacity(grid: Grid) -> None:
    r"""Rule 4: $\sum_i \lceil m_{ij} / b \rceil \le \lfloor M / b \rfloor$ in every batch."""
    model, limits = grid.model, grid.instance.limits
    for j in grid.batches:
        if limits.block_tokens == 1:
            occupied = [grid.device_kv(i, j) for i in grid.requests]
        else:
            occupied = []
            for i, request in enumerate(grid.instance.requests):
                most = limits.blocks_of(request.peak_kv_tokens)
                blocks = model.new_int_var(0, most, f"blocks[{i},{j}]")
                # Half of the rounding is enough: capacity pushes the count down.
                model.add(limits.block_tokens * blocks >= grid.device_kv(i, j))
                occupied.append(blocks)
        model.add(sum(occupied) <= limits.kv_blocks)


def add_reservation(grid: Grid) -> None:
    r"""A resident occupies $\lceil (I + O - 1) / b \rceil$ blocks from its first batch on."""
    model, limits = grid.model, grid.instance.limits
    for j in grid.batches:
        reserved = []
        for i, request in enumerate(grid.instance.requests):
            resident = model.new_bool_var(f"resident[{i},{j}]")
            model.add(grid.device_kv(i, j) <= request.peak_kv_tokens * resident)
            reserved.append(limits.blocks_of(request.peak_kv_tokens) * resident)
        model.add(sum(reserved) <= limits.kv_blocks)


def add_budget(grid: Grid) -> None:
    r"""Rule 5: $\sum_i c_{ij} \le C$, and at most R requests in a batch."""
    limits = grid.instance.limits
    for j in grid.batches:
        grid.model.add(sum(grid.tokens[i, j] for i in grid.requests) <= limits.max_batch_tokens)
        grid.model.add(sum(grid.active(i, j) for i in grid.requests) <= limits.max_batch_requests)


def add_used_prefix(grid: Grid) -> None:
    """Batches that process something come first; idle time lives between their ends and starts."""
    model = grid.model
    for j, used in enumerate(grid.used):
        for i in grid.requests:
            model.add(grid.active(i, j) <= used)
            model.add(grid.evicted[i, j] <= used)
        model.add(sum(grid.active(i, j) for i in grid.requests) >= used)
        if j:
            model.add_implication(used, grid.used[j - 1])


def add_whole_prefills(grid: Grid) -> None:
    """Without chunking a prompt or refill is processed in one batch, which generates."""
    for cell, prefills in grid.prefills.items():
        grid.model.add_implication(prefills, grid.generates[cell])


def add_separate_batches(grid: Grid) -> None:
    """Without hybrid batches a batch holds prefills or decodes, not both."""
    for j in grid.batches:
        mode = grid.model.new_bool_var(f"prefill_only[{j}]")
        for i in grid.requests:
            grid.model.add_implication(grid.prefills[i, j], mode)
            grid.model.add_implication(grid.decodes[i, j], ~mode)


def add_no_holding(grid: Grid) -> None:
    """Without holding a request that carries KV entries on the device into a batch is processed in it."""
    for (i, j), carried in grid.carried.items():
        peak = grid.instance.requests[i].peak_kv_tokens
        elsewhere = grid.hosted[i, j] if grid.hosted else 0
        grid.model.add(carried <= peak * (grid.active(i, j) + elsewhere))
