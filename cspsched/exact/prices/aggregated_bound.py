"""An instance as tables for paths of aggregated states, where they bound its makespan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cspsched.bounds.parts.minorant import minorants
from cspsched.exact.parts.chunk_dominance import chunks_are_dominated
from cspsched.exact.parts.token_work import Work, work_of
from cspsched.exact.prices.aggregated_path_prices import aggregated_path_prices, proven_by
from cspsched.exact.prices.aggregated_paths import AggregatedMoves
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.lifting import is_swap_idle

LEVEL_WALKS = "level walks"
"""Name of the certificate."""
MOST_STEPS = 10**9
"""Inner steps beyond which settling prices once takes too long."""
USUAL_SWEEPS = 10
STEP_S = 8e-10
"""What an inner step takes on a typical machine; a deterministic clock runs by it."""


def can_bound_levels(instance: Instance) -> bool:
    """Whether every schedule is a path of aggregated states, and prices for them can be afforded.

    Sizes are those of whole prefills, so chunks must be off or dominated; a refill is the only way back onto
    the device; and a request grows by one token a batch, which it does not where its peak is reserved.
    """
    switches = instance.switches
    if (
        switches.reservation
        or (switches.preemption.swaps and not is_swap_idle(instance))
        or not chunks_are_dominated(instance)
    ):
        return False
    levels = len(_held(instance)[0]) * instance.limits.kv_tokens
    tokens = sum(request.output_tokens for request in instance.requests)
    sizes = max(request.peak_kv_tokens for request in instance.requests)
    return levels * (tokens + USUAL_SWEEPS * sizes) <= MOST_STEPS


def bound_levels(instance: Instance, go_on: Callable[[int, int], bool]) -> int:
    """Lower bound on the makespan in nanoseconds.

    Parameters
    ----------
    go_on
        Told the bound so far, and how many steps were taken since it was last asked; whether there is reason
        and time for another try.
    """
    outputs = np.array([request.output_tokens for request in instance.requests], dtype=np.int64)
    work = _strongest([work_of(instance, minorant, outputs, 1) for minorant in minorants(instance)], instance)
    own = int(work.cheaper[:, 0].sum())
    least, most = _held(instance)
    moves = AggregatedMoves(
        prompts=np.array([request.prompt_tokens for request in instance.requests], dtype=np.int64),
        outputs=outputs,
        capacity=instance.limits.kv_tokens,
        least=least,
        most=most,
        batch=np.array([work.decode, work.prefill, work.hybrid], dtype=np.int64),
        refill=work.refill,
        preemptive=instance.switches.preemption is not Preemption.NONE,
        holding=instance.switches.holding,
    )
    prices = aggregated_path_prices(moves, lambda proven, steps: go_on(own + proven, steps))
    return own + proven_by(moves, prices)


def _strongest(works: list[Work], instance: Instance) -> Work:
    """The work of the minorant that says most about the KV volume."""
    requests = instance.requests
    volume = sum(k for one in requests for k in range(one.prompt_tokens, one.peak_kv_tokens + 1))
    batches = volume // instance.limits.kv_tokens
    return max(works, key=lambda work: work.decode_or_prefill * batches + int(work.cheaper[:, 0].sum()))


def _held(instance: Instance) -> tuple[IntArray, IntArray]:
    """Fewest and most KV tokens that k requests hold, for every k that fits."""
    capacity = instance.limits.kv_tokens
    prompts = sorted(request.prompt_tokens for request in instance.requests)
    peaks = sorted((request.peak_kv_tokens for request in instance.requests), reverse=True)
    least, most = np.cumsum([0, *prompts]), np.cumsum([0, *peaks])
    fits = least <= capacity
    return least[fits], np.minimum(most[fits], capacity)
