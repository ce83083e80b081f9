"""Compiled: from runs to entries, one for each batch of a run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.problem.jit import compiled
from cspsched.problem.runs import Column


@compiled
def fill_entries(
    order: npt.NDArray[np.intp],
    is_decode_run: npt.NDArray[np.bool_],
    first: Column,
    length: Column,
    run_request: Column,
    run_tokens: Column,
    run_kv_tokens: Column,
    step_batch: npt.NDArray[np.intp],
    next_entry: IntArray,
    request: IntArray,
    tokens: IntArray,
    kv_tokens: IntArray,
) -> None:
    """Append every run, in the order given, to the batches that it covers.

    Parameters
    ----------
    next_entry
        Next free entry of each batch; used up.
    """
    for place in range(len(order)):
        run = order[place]
        for step in range(length[run]):
            batch = step_batch[first[run] + step] if is_decode_run[run] else first[run]
            entry = next_entry[batch]
            next_entry[batch] += 1
            request[entry] = run_request[run]
            tokens[entry] = run_tokens[run]
            kv_tokens[entry] = run_kv_tokens[run] + step
