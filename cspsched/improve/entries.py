"""From the logs of a list-scheduling run to a schedule, entry by entry, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from cspsched.improve.machine import (
    ADMITTED,
    AFTER,
    BATCH,
    CHUNK_ROW,
    FIRST_TOKEN,
    LAST_TOKEN,
    PROMPT,
    Machine,
)
from cspsched.problem.cost import IntArray
from cspsched.problem.schedule import Schedule


def schedule_of(machine: Machine, order: npt.NDArray[np.intp]) -> Schedule:
    """Schedule of a finished run; within a batch the requests stand in order of admission.

    Parameters
    ----------
    order
        Position in the instance of each of the machine's requests.
    """
    (schedule,) = schedule_parts(machine, order, [(0, int(machine.now[BATCH]))])
    return schedule


def schedule_parts(
    machine: Machine, order: npt.NDArray[np.intp], ranges: Iterable[tuple[int, int]]
) -> Iterator[Schedule]:
    """The same for each of some ranges [first, end) of batches."""
    chunks = _chunk_entries(machine)
    evicted_request = np.flatnonzero(machine.table[:, AFTER] >= 0)
    evicted_batch = machine.places[machine.table[evicted_request, AFTER], LAST_TOKEN].astype(np.int64) + 1
    for first, end in ranges:
        here = (chunks[0] >= first) & (chunks[0] < end)
        batch, request, tokens, kv_tokens = (
            np.concatenate((chunk[here], decodes))
            for chunk, decodes in zip(chunks, _decode_entries(machine, first, end), strict=True)
        )
        by_batch = np.lexsort((request, machine.places[request, ADMITTED], batch))
        sizes = np.bincount(batch - first, minlength=end - first)
        gone = np.flatnonzero((evicted_batch >= first) & (evicted_batch < end))
        gone = gone[np.argsort(evicted_batch[gone], kind="stable")]
        yield Schedule(
            start_ns=machine.batch_ns[first:end, 0].copy(),
            end_ns=machine.batch_ns[first:end, 1].copy(),
            first_entry=np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes))),
            request=order[request[by_batch]],
            tokens=tokens[by_batch],
            kv_tokens=kv_tokens[by_batch],
            evicted_batch=evicted_batch[gone] - first,
            evicted_request=order[evicted_request[gone]],
        )


def batch_sizes(machine: Machine) -> IntArray:
    """Entries of every batch, shape (num_batches,)."""
    num_batches = int(machine.now[BATCH])
    chunks = np.bincount(machine.chunks[: int(machine.now[CHUNK_ROW]), 0], minlength=num_batches)
    begun, ended = (
        np.bincount(machine.places[:, column] + 1, minlength=num_batches + 1)
        for column in (FIRST_TOKEN, LAST_TOKEN)
    )
    sizes: IntArray = np.cumsum(begun - ended)[:num_batches] + chunks
    return sizes


def _chunk_entries(machine: Machine) -> tuple[IntArray, ...]:
    """Batch, request, tokens and KV entries afterwards of every chunk."""
    chunks = machine.chunks[: int(machine.now[CHUNK_ROW])].astype(np.int64)
    batch, request, tokens = chunks.T
    # The chunks of a request stand together in the log.
    total = np.cumsum(tokens)
    begins = np.concatenate(([True], request[1:] != request[:-1]))
    before = np.maximum.accumulate(np.where(begins, total - tokens, 0))
    return batch, request, tokens, total - before


def _decode_entries(machine: Machine, first: int, end: int) -> tuple[IntArray, ...]:
    """Batch, request, tokens and KV entries afterwards of every decode in a range of batches."""
    emitted = machine.places[:, FIRST_TOKEN].astype(np.int64)
    begin = np.maximum(emitted + 1, first)
    decodes = np.maximum(np.minimum(machine.places[:, LAST_TOKEN] + 1, end) - begin, 0)
    request = np.repeat(np.arange(len(decodes)), decodes)
    batch = begin[request] + np.arange(len(request)) - np.repeat(np.cumsum(decodes) - decodes, decodes)
    number = batch - emitted[request]
    return batch, request, np.ones_like(number), machine.table[request, PROMPT] + number
