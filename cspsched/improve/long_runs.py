"""Schedules of many millions of entries: made, judged and dropped part after part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.simulate.kernel import KernelRun
from cspsched.simulate.kernel.layout import AMOUNT, BEFORE, FIRST, KIND, RUN_SPAN
from cspsched.simulate.kernel.spans import expand_spans
from cspsched.simulate.kernel.workload import Int32Array

MOST_ENTRIES = 20_000_000
"""Output tokens up to which a schedule is held whole: about a gigabyte with what the referee derives."""
PART_ENTRIES = 2_000_000


def is_long(instance: Instance) -> bool:
    """Whether schedules of an instance are judged in parts."""
    return int(instance.columns.output_tokens.sum()) > MOST_ENTRIES


def batch_ranges(sizes: IntArray, most_entries: int = PART_ENTRIES) -> Iterator[tuple[int, int]]:
    """Ranges [first, end) of batches with at most so many entries each, at least one batch.

    Parameters
    ----------
    sizes
        Entries of every batch, shape (num_batches,).
    """
    total = np.cumsum(sizes)
    first, done = 0, 0
    while first < len(sizes):
        end = max(int(np.searchsorted(total, done + most_entries, side="right")), first + 1)
        yield first, end
        first, done = end, int(total[end - 1])


def parts_of_run(run: KernelRun, most_entries: int = PART_ENTRIES) -> Iterator[Schedule]:
    """The schedule of a kernel run in parts, as `KernelRun.to_simulation` gives it whole."""
    sizes = run.batch_counts[:, 0].astype(np.int64) + run.batch_counts[:, 1]
    decode_steps = np.concatenate(([0], np.cumsum(run.batch_counts[:, 1] > 0)))
    for first, end in batch_ranges(sizes, most_entries):
        steps = int(decode_steps[first]), int(decode_steps[end])
        spans = _clipped(run.spans, (first, end), steps)
        yield expand_spans(run.rules, run.batch_ns[first:end], run.batch_counts[first:end], spans)


def _clipped(spans: Int32Array, batches: tuple[int, int], steps: tuple[int, int]) -> Int32Array:
    """Spans of a range of batches, counted from its first; a run of decodes is counted in decode steps."""
    is_run = spans[:, KIND] == RUN_SPAN
    begin, end = np.where(is_run, steps[0], batches[0]), np.where(is_run, steps[1], batches[1])
    length = np.where(is_run, spans[:, AMOUNT], 1)
    here = (spans[:, FIRST] < end) & (spans[:, FIRST] + length > begin)
    clipped, is_run, begin, end = spans[here], is_run[here], begin[here], end[here]
    skipped = np.maximum(begin - clipped[:, FIRST], 0)
    last = np.minimum(clipped[:, FIRST] + clipped[:, AMOUNT], end)
    clipped[:, AMOUNT] = np.where(is_run, last - clipped[:, FIRST] - skipped, clipped[:, AMOUNT])
    clipped[:, BEFORE] += skipped.astype(np.int32)
    clipped[:, FIRST] += (skipped - begin).astype(np.int32)
    return clipped
