"""What a run logs: arrays that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.layout import Kernel

ROWS_A_REQUEST, MOST_ROWS = 32, 1 << 22
"""Rows of a log at first, seldom too few, and how many it gets at a time. Unused ones cost nothing."""


class Logs:
    """Rows logged so far; the kernel writes into the newest array of each log."""

    def __init__(self) -> None:
        self._full: dict[str, list[npt.NDArray[Any]]] = {"batch_ns": [], "batch_counts": [], "spans": []}

    def keep(self, kernel: Kernel) -> None:
        """Take over what a kernel has logged."""
        num_batches, num_spans = kernel.now.batch_row, kernel.now.span_row
        self._full["batch_ns"].append(kernel.batch_ns[:num_batches])
        self._full["batch_counts"].append(kernel.batch_counts[:num_batches])
        self._full["spans"].append(kernel.spans[:num_spans])

    def grow(self, kernel: Kernel) -> Kernel:
        """Take over what is logged and give the kernel new arrays."""
        self.keep(kernel)
        kernel.now.batch_row = kernel.now.span_row = 0
        rows = max(MOST_ROWS, 3 * len(kernel.slots))
        return kernel._replace(
            **new_logs(rows, kernel.batch_ns.shape[1], plain=isinstance(kernel.requests, list))
        )

    def last_batch(self, kernel: Kernel) -> tuple[int, list[int]]:
        """End and counts of the last batch; (-1, []) if there was none."""
        row, times, counts = kernel.now.batch_row, kernel.batch_ns, kernel.batch_counts
        if not row and self._full["batch_ns"]:
            times, counts = self._full["batch_ns"][-1], self._full["batch_counts"][-1]
            row = len(times)
        return (int(times[row - 1, 1]), counts[row - 1].tolist()) if row else (-1, [])

    def column(self, name: str) -> npt.NDArray[Any]:
        """All rows of a log in order; they are given away."""
        rows = self._full.pop(name)
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


def new_logs(rows: int, times: int, *, plain: bool) -> dict[str, Any]:
    """Empty arrays of so many rows, with columns for so many times of a batch."""
    kind = np.int64 if plain else np.int32
    return {
        "batch_ns": np.empty((rows, times), dtype=np.int64),
        "batch_counts": np.empty((rows, 6), dtype=kind),
        "spans": np.empty((rows, layout.BEFORE + 1), dtype=kind),
    }
