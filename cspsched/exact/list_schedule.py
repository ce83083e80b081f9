"""Run-to-completion schedules by list scheduling: a first incumbent for every combination of switches.

In a given order, a request is admitted as soon as its KV cache fits until it finishes, all lengths known
(the admission test of MC-SF, arXiv 2502.07115, with block rounding), its prompt in one piece if the budget
allows. Nothing is held or evicted, so the schedule is in every class with hybrid batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cspsched.problem.cost import BatchFeatures, IntArray, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule
from cspsched.problem.timing import schedule_asap
from cspsched.units import ceil_div

ORDERS: dict[str, Callable[[Request], tuple[int, ...]]] = {
    "first come, first served": lambda request: (request.arrival_ns,),
    "shortest output first": lambda request: (request.output_tokens, request.prompt_tokens),
    "smallest volume first": lambda request: (
        request.output_tokens * (2 * request.prompt_tokens + request.output_tokens - 1),
    ),
}


def list_schedules(instance: Instance) -> Iterable[tuple[str, Schedule]]:
    """One schedule for each order, with its name."""
    for name, key in ORDERS.items():
        order = sorted(range(len(instance.requests)), key=lambda i: key(instance.requests[i]))
        if instance.switches.hybrid_batches and _prompts_fit(instance):
            yield f"list schedule, {name}", list_schedule(instance, order)
        else:
            yield f"one at a time, {name}", one_at_a_time(instance, order)


def _prompts_fit(instance: Instance) -> bool:
    longest = max(request.prompt_tokens for request in instance.requests)
    return longest <= instance.limits.max_batch_tokens


def one_at_a_time(instance: Instance, order: Sequence[int]) -> Schedule:
    """Run the requests one after another, prompts in as few chunks as possible; feasible in every class."""
    batches: list[list[tuple[int, int]]] = []
    for i in sorted(order, key=lambda i: instance.requests[i].arrival_ns):
        request, budget = instance.requests[i], instance.limits.max_batch_tokens
        chunks = ceil_div(request.prompt_tokens, budget)
        batches += [[(i, budget)]] * (chunks - 1)
        batches.append([(i, request.prompt_tokens - budget * (chunks - 1))])
        batches += [[(i, 1)]] * (request.output_tokens - 1)
    return schedule_asap(instance, batches, [[] for _ in batches])


def list_schedule(instance: Instance, order: Sequence[int]) -> Schedule:
    """Admit requests in an order, each as soon as it can run to completion beside those admitted before.

    Every prompt must fit the token budget. Requests that have not arrived when a batch starts are passed
    over.
    """
    limits, requests = instance.limits, instance.requests
    horizon = sum(request.output_tokens for request in requests)
    blocks, tokens, seats = (np.zeros(horizon, dtype=np.int64) for _ in range(3))
    batches: list[list[tuple[int, int]]] = []
    waiting, running, clock = list(order), dict[int, int](), 0
    while waiting or running:
        j = len(batches)
        if not running:
            clock = max(clock, min(requests[i].arrival_ns for i in waiting))
        for i in [i for i in waiting if requests[i].arrival_ns <= clock]:
            span = slice(j, j + requests[i].output_tokens)
            shape = _footprint(instance, requests[i])
            if not (
                np.all(blocks[span] + shape[0] <= limits.kv_blocks)
                and np.all(tokens[span] + shape[1] <= limits.max_batch_tokens)
                and np.all(seats[span] < limits.max_batch_requests)
            ):
                break
            blocks[span] += shape[0]
            tokens[span] += shape[1]
            seats[span] += 1
            running[i] = 0
            waiting.remove(i)
        batches.append([(i, requests[i].prompt_tokens if age == 0 else 1) for i, age in running.items()])
        clock += _duration(instance, running)
        running = {i: age + 1 for i, age in running.items() if age + 1 < requests[i].output_tokens}
    return schedule_asap(instance, batches, [[] for _ in batches])


def _footprint(instance: Instance, request: Request) -> tuple[IntArray, IntArray]:
    """Blocks and tokens of a request in each batch of its run, shape (output_tokens,) each."""
    held = request.prompt_tokens + np.arange(request.output_tokens, dtype=np.int64)
    if instance.switches.reservation:
        held[:] = request.peak_kv_tokens
    processed = np.ones(request.output_tokens, dtype=np.int64)
    processed[0] = request.prompt_tokens
    return -(-held // instance.limits.block_tokens), processed


def _duration(instance: Instance, running: dict[int, int]) -> int:
    shares = [share(instance.requests[i], age) for i, age in running.items()]
    return instance.cost.batch_time_ns(BatchFeatures(*map(sum, zip(*shares, strict=True))))


def share(request: Request, age: int) -> BatchFeatures[int]:
    """What a request adds to the features of a batch, `age` batches after the one that it started in."""
    prompt, prefill = request.prompt_tokens, age == 0
    return BatchFeatures(
        tokens=prompt if prefill else 1,
        prefill_attention=triangle(prompt) * prefill,
        prefill_tokens=prompt * prefill,
        prefill_context=0,
        decode_context=0 if prefill else prompt + age - 1,
        num_generating=1,
        num_prefills=int(prefill),
        num_decodes=int(not prefill),
    )
