"""How long the batches of a recorded engine took, as measurements that a cost model is fitted to."""

from __future__ import annotations

import numpy as np

from cspsched.costs.fit import Measurements
from cspsched.errors import InputError
from cspsched.problem.cost import BatchFeatures, triangle
from cspsched.recording.log import Iteration, Recording


def step_times(recording: Recording) -> Measurements:
    """Batches of a recording with what they held and how long they took.

    A batch runs from its start, or from the end of the one before if that is later: an engine that schedules
    ahead notes a start while the device is still busy. Iterations that moved KV blocks are left out.

    Raises
    ------
    InputError
        If no iteration with work took any time.
    """
    generated: set[str] = set()
    features, times_ns, free_ns = [], [], 0
    for iteration in recording.iterations:
        time_ns = iteration.end_ns - max(iteration.start_ns, free_ns)
        free_ns = max(free_ns, iteration.end_ns)
        if iteration.scheduled and time_ns > 0 and not iteration.moved_blocks:
            features.append(_features(iteration, generated))
            times_ns.append(float(time_ns))
        generated |= set(iteration.emitted)
        generated -= {*iteration.preempted, *iteration.finished}
    if not features:
        raise InputError(f"no iteration of {recording.source} has work and a time above 0")
    columns = np.array(features, dtype=np.int64).T
    return Measurements(features=BatchFeatures(*columns), times_ns=np.array(times_ns))


def _features(iteration: Iteration, generated: set[str]) -> BatchFeatures[int]:
    """A request that has generated and processes one token is decoding; all others are in their prefill."""
    decodes = [entry for entry in iteration.scheduled if entry.tokens == 1 and entry.name in generated]
    prefills = [entry for entry in iteration.scheduled if entry not in decodes]
    return BatchFeatures(
        tokens=sum(entry.tokens for entry in iteration.scheduled),
        prefill_attention=sum(triangle(e.before + e.tokens) - triangle(e.before) for e in prefills),
        prefill_tokens=sum(entry.tokens for entry in prefills),
        prefill_context=sum(entry.before for entry in prefills),
        decode_context=sum(entry.before for entry in decodes),
        num_generating=len(iteration.emitted),
        num_prefills=len(prefills),
        num_decodes=len(decodes),
    )
