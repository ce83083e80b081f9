"""Compiled: vLLM V0's queue of swapped requests. The first comes back once what it knows fits."""

from __future__ import annotations

from cspsched.simulate.kernel.batch import blocks_of
from cspsched.simulate.kernel.each.batch import known_tokens
from cspsched.simulate.kernel.each.swap import swap_in, swap_out
from cspsched.simulate.kernel.jit import inner
from cspsched.simulate.kernel.layout import BY_RANK, HOST_FULL, Kernel
from cspsched.simulate.kernel.records import NOBODY

SWAPPED = BY_RANK
"""Column of `orders` with the swapped requests in a ring."""


@inner
def swap_to_end(k: Kernel, request: int) -> None:
    """Move a request to host memory; without room for it there the policy refuses to go on."""
    now = k.now
    if now.refused != NOBODY:
        return
    if blocks_of(k, known_tokens(k, request)) > now.free_host_blocks:
        now.refused, now.refusal = request, HOST_FULL
        return
    swap_out(k, request)
    k.orders[(now.swapped_start + now.num_swapped) % len(k.orders), SWAPPED] = request
    now.num_swapped += 1


@inner
def first_swapped(k: Kernel) -> int:
    """The request that comes back next (there is one)."""
    return int(k.orders[k.now.swapped_start, SWAPPED])


@inner
def may_return(k: Kernel, spare: int) -> bool:
    """Whether the first of the swapped requests fits into so many blocks beside those that run."""
    now = k.now
    if not now.num_swapped or now.num_running >= now.max_running:
        return False
    kept_free = int(now.watermark_blocks) if now.num_running else 0
    return bool(blocks_of(k, known_tokens(k, first_swapped(k))) + kept_free <= spare)


@inner
def bring_back(k: Kernel) -> int:
    """Let the first of the swapped requests run again; which it is."""
    request = first_swapped(k)
    k.now.swapped_start = (k.now.swapped_start + 1) % len(k.orders)
    k.now.num_swapped -= 1
    swap_in(k, request)
    return request
