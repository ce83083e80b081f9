"""Batches of a real policy: a trace is simulated under Sarathi, and batches of the schedule are taken."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cspsched.errors import InputError
from cspsched.policies.sarathi import Sarathi, SarathiSettings
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule
from cspsched.profiler.compositions import BatchLimits, Composition, Regime
from cspsched.profiler.points import Chunk
from cspsched.simulate import simulate

BLOCK_TOKENS = 16
MOST_REQUESTS = 300


def replay_batches(requests: Iterable[Request], cost: CostModel, limits: BatchLimits) -> list[Composition]:
    """Batches of Sarathi's schedule of the first requests that fit, in the order of the schedule.

    Raises
    ------
    InputError
        If no request fits the limits.
    """
    fitting = [
        request for request in requests if request.prompt_tokens + request.output_tokens <= limits.max_context
    ]
    if not fitting:
        raise InputError(
            f"no request of the trace has at most {limits.max_context} tokens; "
            "give another trace, or allow more"
        )
    instance = Instance(
        requests=tuple(fitting[:MOST_REQUESTS]),
        limits=Limits(
            kv_blocks=limits.max_kv_tokens // BLOCK_TOKENS,
            block_tokens=BLOCK_TOKENS,
            max_batch_tokens=limits.max_tokens,
            max_batch_requests=limits.max_requests,
        ),
        cost=cost,
    )
    policy = Sarathi(SarathiSettings(chunk=limits.max_tokens, max_num_seqs=limits.max_requests))
    return compositions_of(simulate(instance, policy).schedule, instance)


def pick_spread(batches: list[Composition], count: int, rng: np.random.Generator) -> list[Composition]:
    """So many different batches at random places of a schedule, in its order."""
    different = list(dict.fromkeys(batches))
    chosen = rng.choice(len(different), min(count, len(different)), replace=False)
    return [different[k] for k in sorted(chosen)]


def compositions_of(schedule: Schedule, instance: Instance) -> list[Composition]:
    """Batches of a schedule, each with its prefills, refills among them, and its decodes."""
    generated = [0] * len(instance.requests)
    batches = []
    for j in range(len(schedule.start_ns)):
        prefills: list[Chunk] = []
        decodes: list[Chunk] = []
        num_generating = 0
        for entry in range(schedule.first_entry[j], schedule.first_entry[j + 1]):
            i, tokens, after = (
                int(x[entry]) for x in (schedule.request, schedule.tokens, schedule.kv_tokens)
            )
            known = instance.requests[i].prompt_tokens + generated[i]
            chunk = Chunk(tokens, after - tokens)
            # A decode processes the last known token, and nothing else of it was lost.
            is_decode = generated[i] > 0 and tokens == 1 and after == known
            (decodes if is_decode else prefills).append(chunk)
            if after == known:
                generated[i] += 1
                num_generating += 1
        batches.append(Composition(Regime.REPLAY, tuple(prefills), tuple(decodes), num_generating))
    return batches
