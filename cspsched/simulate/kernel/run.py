"""What the kernel made of a workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.workload import Int32Array, Workload
from cspsched.simulate.simulation import Simulation

TIMES = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns", "recomputed_tokens")
"""Columns of `KernelRun.times_ns`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelRun:
    """What a policy made of a workload, per request, per batch and as spans.

    Attributes
    ----------
    times_ns
        int64, shape (num_requests, 5): arrival, start of the first batch, first token, last token, and tokens
        lost to preemption.
    num_preemptions
        int32, shape (num_requests,); as in the schedule, so without those with the last token in flight.
    batch_ns
        int64, shape (num_batches, 2): start and end. Of a policy that decides ahead there is a third column,
        when it decided.
    batch_counts
        int32, shape (num_batches, 6): prefills, decodes, prefill tokens, KV blocks held, requests waiting and
        running.
    spans
        int32, shape (num_spans, 6): prefill chunks, runs of decodes, evictions; columns as in `Kernel`. A run
        of decodes is one row, however long it is.
    output_changes
        As of `Simulation`.
    """

    policy: str
    rules: Rules
    workload: Workload
    times_ns: IntArray
    num_preemptions: Int32Array
    batch_ns: IntArray
    batch_counts: Int32Array
    spans: Int32Array
    output_changes: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_batches(self) -> int:
        """Batches run."""
        return len(self.batch_ns)

    @property
    def decided_ns(self) -> IntArray:
        """When each batch was decided."""
        is_noted = self.batch_ns.shape[1] > layout.DECIDED_NS
        return self.batch_ns[:, layout.DECIDED_NS if is_noted else 0]

    @property
    def scheduled_ns(self) -> IntArray:
        """Start of the first batch of every request."""
        return self.times_ns[:, TIMES.index("scheduled_ns")]

    @property
    def first_token_ns(self) -> IntArray:
        """End of the batch that generated the first token of every request."""
        return self.times_ns[:, TIMES.index("first_token_ns")]

    @property
    def finish_ns(self) -> IntArray:
        """End of the batch that generated the last token of every request."""
        return self.times_ns[:, TIMES.index("finish_ns")]

    @property
    def recomputed_tokens(self) -> IntArray:
        """KV entries that every request lost to preemption."""
        return self.times_ns[:, TIMES.index("recomputed_tokens")]

    def itl_gaps(self) -> tuple[IntArray, IntArray]:
        """All gaps between consecutive tokens of all requests, as (gap in ns, how often).

        Inside a run of decodes the gaps are those between ends of decode batches; before each run stands the
        gap to the token of the prefill that it follows, and before each refill's token the gap across it.
        """
        decode_ends = self.batch_ns[self.batch_counts[:, 1] > 0, 1]
        runs = self.spans[self.spans[:, layout.KIND] == layout.RUN_SPAN]
        first, end = runs[:, layout.FIRST], runs[:, layout.FIRST] + runs[:, layout.AMOUNT]
        size = len(decode_ends) + 1
        covers = np.bincount(first + 1, minlength=size) - np.bincount(end, minlength=size)
        lone = self._gaps_between_spans(decode_ends)
        gaps: IntArray = np.concatenate((np.diff(decode_ends, prepend=0), lone))
        times = np.concatenate((np.cumsum(covers)[:-1], np.ones(len(lone), dtype=np.int64)))
        return gaps[times > 0], times[times > 0]

    def _gaps_between_spans(self, decode_ends: IntArray) -> IntArray:
        """Gaps between the last token of a span and the first token of the next span of the same request."""
        kind, amount = self.spans[:, layout.KIND], self.spans[:, layout.AMOUNT]
        chunks, runs = self.spans[kind == layout.LAST_CHUNK_SPAN], self.spans[kind == layout.RUN_SPAN]
        chunk_ends = self.batch_ns[chunks[:, layout.FIRST], 1]
        last_steps = runs[:, layout.FIRST] + amount[kind == layout.RUN_SPAN] - 1
        request = np.concatenate((chunks[:, layout.SPAN_REQUEST], runs[:, layout.SPAN_REQUEST]))
        first = np.concatenate((chunk_ends, decode_ends[runs[:, layout.FIRST]]))
        last = np.concatenate((chunk_ends, decode_ends[last_steps]))
        order = np.lexsort((first, request))
        same = request[order][1:] == request[order][:-1]
        return np.asarray((first[order][1:] - last[order][:-1])[same], dtype=np.int64)

    def to_simulation(self) -> Simulation:
        """The whole schedule, entry by entry."""
        from cspsched.simulate.kernel.spans import expand_spans

        schedule = expand_spans(self.rules, self.batch_ns, self.batch_counts, self.spans)
        kind = self.spans[:, layout.KIND]
        preempted = self.spans[(kind == layout.EVICTION_SPAN) | (kind == layout.SWAP_SPAN)]
        return Simulation(
            policy=self.policy,
            schedule=schedule,
            held_blocks=self.batch_counts[:, 3].astype(np.int64),
            num_waiting=self.batch_counts[:, 4].astype(np.int64),
            decided_ns=np.ascontiguousarray(self.decided_ns),
            preempted=tuple(
                (batch, request)
                for batch, request in preempted[:, [layout.FIRST, layout.SPAN_REQUEST]].tolist()
            ),
            output_changes=self.output_changes,
        )
