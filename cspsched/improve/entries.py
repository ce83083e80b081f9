"""From the logs of a list-scheduling run to a schedule, entry by entry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cspsched.improve.machine import (
    ADMITTED,
    BATCH,
    CHUNK_ROW,
    FIRST_TOKEN,
    LAST_TOKEN,
    OUTPUT,
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
    num_batches = int(machine.now[BATCH])
    batch, request, tokens, kv_tokens = (
        np.concatenate(columns)
        for columns in zip(_chunk_entries(machine), _decode_entries(machine), strict=True)
    )
    by_batch = np.lexsort((request, machine.places[request, ADMITTED], batch))
    sizes = np.bincount(batch, minlength=num_batches)
    none = np.zeros(0, dtype=np.int64)
    return Schedule(
        start_ns=machine.batch_ns[:num_batches, 0].copy(),
        end_ns=machine.batch_ns[:num_batches, 1].copy(),
        first_entry=np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes))),
        request=order[request[by_batch]],
        tokens=tokens[by_batch],
        kv_tokens=kv_tokens[by_batch],
        evicted_batch=none,
        evicted_request=none,
    )


def _chunk_entries(machine: Machine) -> tuple[IntArray, ...]:
    """Batch, request, tokens and KV entries afterwards of every chunk."""
    chunks = machine.chunks[: int(machine.now[CHUNK_ROW])].astype(np.int64)
    batch, request, tokens = chunks.T
    # The chunks of a request stand together in the log.
    total = np.cumsum(tokens)
    begins = np.concatenate(([True], request[1:] != request[:-1]))
    before = np.maximum.accumulate(np.where(begins, total - tokens, 0))
    return batch, request, tokens, total - before


def _decode_entries(machine: Machine) -> tuple[IntArray, ...]:
    """Batch, request, tokens and KV entries afterwards of every decode."""
    prompt, output = (machine.table[:, column].astype(np.int64) for column in (PROMPT, OUTPUT))
    first = machine.places[:, FIRST_TOKEN].astype(np.int64)
    decodes = machine.places[:, LAST_TOKEN] - first
    request = np.repeat(np.arange(len(output)), decodes)
    number = np.arange(len(request)) - np.repeat(np.cumsum(decodes) - decodes, decodes) + 1
    return first[request] + number, request, np.ones_like(number), prompt[request] + number
