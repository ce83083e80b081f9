"""How long a call takes: CUDA-graph replays with a cold L2 on a GPU, CPU time of one thread elsewhere.

A measurement is repeated while its spread is large, and flagged if it stays so. Clocks are never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Call = Callable[[], object]

STEADY_SPREAD = 0.05
"""Interquartile range over the median up to which a measurement counts as steady."""
MOST_TRIES = 3
WARM_UP_CALLS = 3
FLUSH_BYTES = 256 * 2**20
"""Written between replays, several times the L2 of any GPU."""
LEAST_CPU_SAMPLE_S = 200e-6
"""A CPU sample lasts at least this long, or the clock's own cost shows."""
MOST_CPU_SAMPLE_S = 0.15
"""All repeats of a CPU measurement together, unless a single call takes longer."""
LEAST_CPU_REPEATS = 5
US_PER_S = 1e6
US_PER_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the repeats of one measurement give, in microseconds a call.

    Attributes
    ----------
    noisy
        Whether the spread stayed above `STEADY_SPREAD` in all tries.
    repeat_index
        Which try is reported, from 0: the one with the least spread.
    """

    median_us: float
    min_us: float
    p10_us: float
    p90_us: float
    iqr_us: float
    repeats: int
    noisy: bool = False
    repeat_index: int = 0

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return self.iqr_us / self.median_us


class Timer(Protocol):
    """Measures calls on a device."""

    def samples_us(self, variants: Sequence[Call], repeats: int) -> FloatArray:
        """Microseconds a call, shape (num_samples,); the variants do the same on other memory, in turn."""


class CpuTimer:
    """CPU time of the calling thread, which other programs on the machine hardly move.

    torch has to run on one thread (`Workbench` sees to it).
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock

    def samples_us(self, variants: Sequence[Call], repeats: int) -> FloatArray:
        """Microseconds a call; a sample of short calls goes over several, long calls have fewer samples."""
        for call in variants:
            call()
        calls = cycle(variants)
        single_s = max(self._elapsed_s(calls, len(variants)) / len(variants), 1e-9)
        per_sample = max(1, ceil(LEAST_CPU_SAMPLE_S / single_s))
        affordable = int(MOST_CPU_SAMPLE_S / (per_sample * single_s))
        count = max(LEAST_CPU_REPEATS, min(repeats, affordable))
        samples = [self._elapsed_s(calls, per_sample) / per_sample for _ in range(count)]
        return np.array(samples) * US_PER_S

    def _elapsed_s(self, calls: Iterator[Call], count: int) -> float:
        start = self._clock()
        for _ in range(count):
            next(calls)()
        return self._clock() - start


class CudaTimer:
    """Replays of a CUDA graph between two events; L2 is overwritten before each, outside the events."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def samples_us(self, variants: Sequence[Call], repeats: int) -> FloatArray:
        """Microseconds a call, from one graph of all variants."""
        graph = self.capture(variants)
        events = [
            (self._torch.cuda.Event(enable_timing=True), self._torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        for start, end in events:
            self._flush.zero_()
            start.record()
            graph.replay()
            end.record()
        self._torch.cuda.synchronize()
        elapsed_ms = np.array([start.elapsed_time(end) for start, end in events])
        return elapsed_ms / len(variants) * US_PER_MS

    def capture(self, variants: Sequence[Call]) -> Any:
        """Graph of all variants, warmed up beforehand on a side stream as capture demands."""
        side = self._torch.cuda.Stream()
        side.wait_stream(self._torch.cuda.current_stream())
        with self._torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                for call in variants:
                    call()
        stream = self._torch.cuda.current_stream()
        stream.wait_stream(side)
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph):
                for call in variants:
                    call()
        except Exception as error:  # noqa: BLE001 - put right and raised again
            self._leave_capture(stream)
            # Ending a capture that failed raises, too, and says nothing of the reason.
            raise error.__context__ or error from None
        graph.replay()
        return graph

    def _leave_capture(self, stream: Any) -> None:
        """Repair what a capture that failed leaves behind, or all that comes later would fail, too.

        Its stream stays the current one, and the generator of random numbers waits for its end.
        """
        cuda = self._torch.cuda
        cuda.set_stream(stream)
        fresh = self._torch.Generator(device="cuda")
        cuda.default_generators[cuda.current_device()].graphsafe_set_state(fresh.graphsafe_get_state())


def measure(timer: Timer, variants: Sequence[Call], *, repeats: int = 15, tries: int = MOST_TRIES) -> Sample:
    """Measure until the spread is small, at most `tries` times; the steadiest try is reported."""
    best: Sample | None = None
    for index in range(tries):
        sample = summarise(timer.samples_us(variants, repeats), repeat_index=index)
        if best is None or sample.spread < best.spread:
            best = sample
        if not best.noisy:
            break
    assert best is not None
    return best


def summarise(samples_us: FloatArray, *, repeat_index: int = 0) -> Sample:
    """Median and spread of repeats, shape (num_samples,), in microseconds."""
    low, p25, median, p75, high = (float(q) for q in np.percentile(samples_us, [10, 25, 50, 75, 90]))
    return Sample(
        median_us=median,
        min_us=float(samples_us.min()),
        p10_us=low,
        p90_us=high,
        iqr_us=p75 - p25,
        repeats=len(samples_us),
        noisy=p75 - p25 > STEADY_SPREAD * median,
        repeat_index=repeat_index,
    )
