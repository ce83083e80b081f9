"""Errors behind the answers of the kernel's loops."""

from __future__ import annotations

from collections.abc import Callable

from cspsched.errors import LimitError, LivelockError, PolicyError, StuckError
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.rules import Rules
from cspsched.units import ceil_div


def failure(
    answer: int, kernel: Kernel, rules: Rules, label: str, name_of: Callable[[int], str]
) -> Exception:
    """The error behind an answer of the loop.

    Parameters
    ----------
    name_of
        Name of a request by its position.
    """
    now = kernel.now
    used = rules.kv_blocks - int(now.free_blocks)
    situation = (
        f"{now.num_waiting} requests wait, {now.num_running} are running "
        f"with {used} of {rules.kv_blocks} KV blocks"
    )
    if answer == layout.LIVELOCK:
        return LivelockError(
            f"policy {label} evicts in a circle: {now.num_fruitless} evictions since the "
            f"last generated token or arrival; {situation}"
        )
    if answer == layout.STUCK:
        return StuckError(f"policy {label} schedules nothing although nothing more can arrive: {situation}")
    if answer in (layout.PROMPT_REFUSED, layout.HOST_FULL):
        row, name = kernel.requests[now.refused], name_of(int(now.refused))
        known = int(row.prompt_tokens) + int(row.generated)
        if answer == layout.HOST_FULL:
            return StuckError(
                f"policy {label}: request {name!r} needs {ceil_div(known, rules.block_tokens)} KV blocks in "
                f"host memory to be swapped out, {now.free_host_blocks} are free (vLLM stops there, too); "
                "give more host memory, or preemption_mode=recompute"
            )
        return StuckError(
            f"policy {label}: request {name!r} has {known} tokens to prefill in one batch, which "
            f"holds {rules.longest_prompt}; raise the policy's token budget, or the instance's"
        )
    if answer == layout.NO_HOST_ROOM:
        request = int(now.refused)
        blocks = int(kernel.notes[request].host_blocks)
        free = f"{now.room_left} of {now.host_blocks} are free"
        return PolicyError(
            f"policy {label}: request {name_of(request)!r} is swapped out with {blocks} KV blocks to host "
            f"memory, {free} (at {now.clock_ns} ns)"
        )
    return LimitError(f"policy {label}: the run is too long, at {now.clock_ns} ns; split the trace")
