"""From the logs of a list-scheduling run to the runs of a schedule."""

from __future__ import annotations

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
from cspsched.problem.runs import Runs, RunSchedule


def schedule_of(machine: Machine, order: npt.NDArray[np.intp]) -> RunSchedule:
    """Schedule of a finished run; within a batch the requests stand in order of admission.

    Parameters
    ----------
    order
        Position in the instance of each of the machine's requests.
    """
    num_batches = int(machine.now[BATCH])
    evicted_request = np.flatnonzero(machine.table[:, AFTER] >= 0)
    evicted_batch = machine.places[machine.table[evicted_request, AFTER], LAST_TOKEN].astype(np.int64) + 1
    in_time = np.argsort(evicted_batch, kind="stable")
    return RunSchedule.of(
        _runs(machine, order, num_batches),
        start_ns=machine.batch_ns[:num_batches, 0].copy(),
        end_ns=machine.batch_ns[:num_batches, 1].copy(),
        evicted_batch=evicted_batch[in_time],
        evicted_request=order[evicted_request[in_time]],
    )


def _runs(machine: Machine, order: npt.NDArray[np.intp], num_batches: int) -> Runs:
    """All chunks, then for each request the run of its decodes: a token in every batch."""
    batch, chunk_of, chunk_tokens = machine.chunks[: int(machine.now[CHUNK_ROW])].T
    # The chunks of a request stand together in the log.
    total = np.cumsum(chunk_tokens, dtype=np.int64)
    begins = np.concatenate(([True], chunk_of[1:] != chunk_of[:-1]))
    before = np.maximum.accumulate(np.where(begins, total - chunk_tokens, 0))
    emitted = machine.places[:, FIRST_TOKEN]
    decodes = machine.places[:, LAST_TOKEN] - emitted
    decoding = np.flatnonzero(decodes > 0)
    request = np.concatenate((chunk_of, decoding))
    by_admission = np.empty(len(emitted), dtype=np.int64)
    by_admission[np.argsort(machine.places[:, ADMITTED], kind="stable")] = np.arange(len(emitted))
    num_chunks = len(batch)
    # In time, so that chunks of a second part stand behind the decodes of the first.
    first = np.concatenate((batch, emitted[decoding] + 1))
    in_time = np.argsort(first, kind="stable")
    return Runs(
        request=order[request][in_time],
        is_decode_run=in_time >= num_chunks,
        first=first[in_time],
        length=np.concatenate((np.ones(num_chunks, dtype=np.int64), decodes[decoding]))[in_time],
        tokens=np.concatenate((chunk_tokens, np.ones(len(decoding), dtype=np.int64)))[in_time],
        kv_tokens=np.concatenate((total - before, machine.table[decoding, PROMPT] + 1))[in_time],
        rank=by_admission[request][in_time],
        step_batch=np.arange(num_batches),
    )
