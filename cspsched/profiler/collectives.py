"""Collectives between processes, one a device. Without several devices nothing is measured or made up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cspsched.errors import InternalError
from cspsched.profiler.backends import require_torch
from cspsched.profiler.operators import COLLECTIVES
from cspsched.profiler.points import Point, tokens_chunk
from cspsched.profiler.shapes import RankShape
from cspsched.profiler.timing import US_PER_MS, US_PER_S, WARM_UP_CALLS, FloatArray, Sample, summarise

DEVICES = {"nccl": "cuda", "gloo": "cpu"}
CALLS_A_SAMPLE = 10
TIMEOUT_S = 300.0
Measured = list[tuple[str, int, FloatArray]]


def measure_collectives(
    ranks: int, backend: str, token_counts: Sequence[int], shape: RankShape, *, repeats: int = 15
) -> list[tuple[Point, Sample]]:
    """Measure every collective on tensors of tokens x hidden activations, the slowest rank each time.

    Parameters
    ----------
    backend
        `nccl` (as many GPUs as ranks), or `gloo` (processes on a CPU, wall-clock time).

    Raises
    ------
    InternalError
        If a rank failed or did not answer in time.
    """
    context = get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        plan = _Plan(ranks, backend, rendezvous, tuple(token_counts), shape, repeats)
        workers = [context.Process(target=_work, args=(rank, plan, results)) for rank in range(ranks)]
        for worker in workers:
            worker.start()
        try:
            measured: Measured = results.get(timeout=TIMEOUT_S)
        except OSError as error:
            raise InternalError(f"{ranks} ranks of {backend} did not answer: {error}") from None
        finally:
            for worker in workers:
                worker.join(timeout=10)
                worker.terminate()
    return [
        (Point(operator, ranks, backend, tokens_chunk(tokens)), summarise(samples_us))
        for operator, tokens, samples_us in measured
    ]


class _Plan(NamedTuple):
    """What all ranks measure, and where they meet."""

    ranks: int
    backend: str
    rendezvous: str
    counts: Sequence[int]
    shape: RankShape
    repeats: int


def _work(rank: int, plan: _Plan, results: Any) -> None:
    """One rank; the first hands back what all have measured."""
    device = DEVICES[plan.backend]
    torch, distributed = require_torch(device), import_module("torch.distributed")
    if device == "cuda":
        torch.cuda.set_device(rank)
    meeting = {"init_method": f"file://{plan.rendezvous}", "rank": rank, "world_size": plan.ranks}
    distributed.init_process_group(plan.backend, **meeting)
    measured: Measured = []
    for operator in COLLECTIVES:
        for tokens in plan.counts:
            dtype = getattr(torch, plan.shape.dtype)
            # A multiple of the ranks, which all_gather and reduce_scatter cut into even parts.
            size = -(-tokens * plan.shape.hidden // plan.ranks) * plan.ranks
            message = torch.randn(size, device=device, dtype=dtype)
            call = _call(torch, distributed, operator.name, message, rank)
            own = _samples_us(torch, distributed, call, device, plan.repeats)
            everyone: list[Any] = [None] * plan.ranks
            distributed.all_gather_object(everyone, own)
            measured.append((operator.name, tokens, np.max(everyone, axis=0)))
    if rank == 0:
        results.put(measured)
    distributed.destroy_process_group()


def _call(torch: Any, distributed: Any, operator: str, message: Any, rank: int) -> Callable[[], Any]:
    part = torch.empty_like(message[: len(message) // distributed.get_world_size()])
    match operator:
        case "all_reduce":
            return partial(distributed.all_reduce, message)
        case "all_gather":
            return partial(distributed.all_gather_into_tensor, message, part)
        case "reduce_scatter":
            return partial(distributed.reduce_scatter_tensor, part, message)
        case _:
            if rank > 1:
                return lambda: None
            return (
                partial(distributed.send, message, 1) if rank == 0 else partial(distributed.recv, message, 0)
            )


def _samples_us(
    torch: Any, distributed: Any, call: Callable[[], Any], device: str, repeats: int
) -> list[float]:
    """Microseconds a call on this rank; the ranks begin each sample together."""
    for _ in range(WARM_UP_CALLS):
        call()
    samples = []
    for _ in range(repeats):
        distributed.barrier()
        samples.append((_cuda_us if device == "cuda" else _wall_us)(torch, call) / CALLS_A_SAMPLE)
    return samples


def _cuda_us(torch: Any, call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS_A_SAMPLE):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * US_PER_MS


def _wall_us(torch: Any, call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS_A_SAMPLE):
        call()
    return (time.perf_counter() - start) * US_PER_S
