"""MC-SF by the book (arXiv 2502.07115): whole prompts, all decodes in every batch, token by token."""

from __future__ import annotations

from cspsched.problem.instance import Instance
from tests.oracles.best_set import naive_peak_blocks

Batch = list[tuple[int, int]]


def naive_mc_sf(instance: Instance) -> list[tuple[int, Batch]]:
    """Start of each batch, and (request, tokens) of its prefills and then its decodes.

    Batches take a nanosecond, and every batch has room for all decodes and prompts. Outputs are what is
    predicted where requests have a prediction: who has outlived it is about to finish, and where memory falls
    short by that the last admitted is evicted, and none is admitted at that time.
    """
    requests, limits = instance.requests, instance.limits
    generated = [0] * len(requests)
    running: list[int] = []
    batches: list[tuple[int, Batch]] = []
    clock_ns = 0

    expected = [request.predicted_tokens or request.output_tokens for request in requests]

    def profile(i: int) -> tuple[int, int]:
        return requests[i].prompt_tokens + generated[i], max(expected[i] - generated[i] - 1, 0)

    def needed_blocks() -> int:
        return sum(limits.blocks_of(requests[i].prompt_tokens + generated[i]) for i in running)

    while any(done < request.output_tokens for done, request in zip(generated, requests, strict=True)):
        left = [i for i, request in enumerate(requests) if generated[i] < request.output_tokens]
        waiting = [i for i in left if i not in running and requests[i].arrival_ns <= clock_ns]
        waiting.sort(key=lambda i: (expected[i], requests[i].arrival_ns, i))
        num_running = len(running)
        while len(running) > 1 and needed_blocks() > limits.kv_blocks:
            running.pop()
        is_open = len(running) == num_running
        decodes, prefills = list(running), list[int]()
        while is_open and waiting and len(running) < limits.max_batch_requests:
            profiles = [profile(i) for i in [*running, waiting[0]]]
            if running and naive_peak_blocks(profiles, limits.block_tokens) > limits.kv_blocks:
                break
            prefills.append(waiting.pop(0))
            running.append(prefills[-1])
        if not running:
            clock_ns = min(requests[i].arrival_ns for i in left)
            continue
        batch = [(i, requests[i].prompt_tokens + generated[i]) for i in prefills] + [(i, 1) for i in decodes]
        batches.append((clock_ns, batch))
        clock_ns += 1
        for i in running:
            generated[i] += 1
        running = [i for i in running if generated[i] < requests[i].output_tokens]
    return batches
