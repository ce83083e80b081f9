"""A fixed matrix product, measured again and again: if it drifts, so did what was measured meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from cspsched.profiler.timing import Call, Timer, summarise

SIZE = {"cuda": 8192, "cpu": 384}
"""Rows and columns of both factors."""
EVERY_S = {"cuda": 60.0, "cpu": 15.0}
MOST_DRIFT = {"cuda": 0.03, "cpu": 0.15}
"""Relative to the median of the series; a processor that others use wanders more than a GPU."""
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
REPEATS = 7
TRIES = 3


class Sentinel:
    """The series of a run.

    Parameters
    ----------
    series
        What earlier runs of the same profile noted, continued here.
    """

    def __init__(
        self,
        torch: Any,
        device: str,
        timer: Timer,
        series: list[dict[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.series = series
        self._calls = [_product(torch, device)]
        self._timer = timer
        self._every_s = EVERY_S[device]
        self._most_drift = MOST_DRIFT[device]
        self._clock = clock
        self._last_s = clock()
        self._offset_s = series[-1]["at_s"] - self._last_s if series else -self._last_s

    @property
    def interval(self) -> int:
        """Number of the interval that the last sentinel began."""
        return len(self.series) - 1

    @property
    def is_due(self) -> bool:
        """Whether the last one is so long ago."""
        return self._clock() - self._last_s >= self._every_s

    def measure(self) -> float:
        """Measure once more and return the drift over the interval that ends (0.01 is 1 %)."""
        # Other programs can only slow it down: of a few medians the least is the device's.
        tries = (summarise(self._timer.samples_us(self._calls, REPEATS)).median_us for _ in range(TRIES))
        t_us = min(tries)
        self._last_s = self._clock()
        self.series.append({"at_s": round(self._last_s + self._offset_s, 3), "t_us": round(t_us, 3)})
        return drift([entry["t_us"] for entry in self.series])

    def has_drifted(self, change: float) -> bool:
        """Whether a drift is more than the device is allowed."""
        return change > self._most_drift


def drift(times: list[float]) -> float:
    """Largest relative distance of the last two times from the median of all."""
    middle = median(times)
    return max(abs(t / middle - 1) for t in times[-2:])


def ceilings(torch: Any, device: str, timer: Timer) -> dict[str, float]:
    """What the device reaches at best: bytes a second of a copy, operations a second of the sentinel."""
    source = torch.ones(COPY_BYTES[device], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy_us = summarise(timer.samples_us([partial(target.copy_, source)], REPEATS)).median_us
    product_us = summarise(timer.samples_us([_product(torch, device)], REPEATS)).median_us
    return {
        "copy_bytes_per_s": round(2e6 * COPY_BYTES[device] / copy_us),
        "product_flops_per_s": round(2e6 * SIZE[device] ** 3 / product_us),
    }


def _product(torch: Any, device: str) -> Call:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(SIZE[device], SIZE[device], device=device, dtype=dtype) for _ in range(2))
    return partial(torch.matmul, left, right)
