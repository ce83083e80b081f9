"""Run-to-completion schedules by list scheduling: a first incumbent for every combination of switches.

In a given order, a request is admitted as soon as its KV cache fits until it finishes, all lengths known
(the admission test of MC-SF, arXiv 2502.07115, with block rounding), its prompt in one piece if the budget
allows. Nothing is held or evicted, so the schedule is in every class with hybrid batches.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cspsched.problem.cost import BatchFeatures, IntArray, triangle
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule
from cspsched.referee.timing import schedule_asap
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
        yield in_order(instance, name, order)


def in_order(instance: Instance, name: str, order: Sequence[int]) -> tuple[str, Schedule]:
    """List schedule of an order where the class of schedules has one, else one request after another."""
    if instance.switches.hybrid_batches and _prompts_fit(instance):
        return f"list schedule, {name}", list_schedule(instance, order)
    return f"one at a time, {name}", one_at_a_time(instance, order)


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
    requests = instance.requests
    last_arrival = max(request.arrival_ns for request in requests)
    profile = _Profile(instance)
    batches: list[list[tuple[int, int]]] = []
    # Latest arrival first, so that the next one is popped from the end; the queue holds ranks in the order.
    to_come = sorted(range(len(order)), key=lambda rank: requests[order[rank]].arrival_ns, reverse=True)
    queue, running, clock = list[int](), dict[int, int](), 0
    while to_come or queue or running:
        if not queue and not running:
            clock = max(clock, requests[order[to_come[-1]]].arrival_ns)
        while to_come and requests[order[to_come[-1]]].arrival_ns <= clock:
            insort(queue, to_come.pop())
        while queue and profile.admit(order[queue[0]], len(batches)):
            running[order[queue.pop(0)]] = 0
        batches.append([(i, share(requests[i], age).tokens) for i, age in running.items()])
        if clock < last_arrival:
            clock += _duration(instance, running)
        running = {i: age + 1 for i, age in running.items() if age + 1 < requests[i].output_tokens}
    return schedule_asap(instance, batches, [[] for _ in batches])


class _Profile:
    """What the admitted requests use in every batch to come: rows of blocks, tokens and seats."""

    def __init__(self, instance: Instance) -> None:
        horizon = sum(request.output_tokens for request in instance.requests)
        limits = instance.limits
        self._used = np.zeros((3, horizon), dtype=np.int64)
        self._limits = np.array(
            [[limits.kv_blocks], [limits.max_batch_tokens], [limits.max_batch_requests]], dtype=np.int64
        )
        self._footprints = [_footprint(instance, request) for request in instance.requests]

    def admit(self, i: int, batch: int) -> bool:
        """Let request i start in a batch if it fits until it finishes."""
        footprint = self._footprints[i]
        span = self._used[:, batch : batch + footprint.shape[1]]
        if np.any(span + footprint > self._limits):
            return False
        span += footprint
        return True


def _footprint(instance: Instance, request: Request) -> IntArray:
    """Blocks, tokens and seats of a request in each batch of its run, shape (3, output_tokens)."""
    held = request.prompt_tokens + np.arange(request.output_tokens, dtype=np.int64)
    if instance.switches.reservation:
        held[:] = request.peak_kv_tokens
    seats = np.ones_like(held)
    tokens = seats.copy()
    tokens[0] = request.prompt_tokens
    return np.stack([-(-held // instance.limits.block_tokens), tokens, seats])


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
