"""A simulated run with all that its report needs: what the engine noted, and what the schedule implies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Rejection
from cspsched.problem.result import tool_versions
from cspsched.referee.history import History
from cspsched.referee.metrics import Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A complete, feasible run of a policy, and the requests that nobody can serve.

    Attributes
    ----------
    policy
        Label of the policy.
    metrics
        Times of the schedule and, by their history, phases and KV entries.
    held_blocks
        Shape (num_batches,): KV blocks held during each batch, as the engine counted them.
    num_waiting
        Shape (num_batches,): requests that have arrived and hold no KV block during each batch.
    rejections
        Requests that are in the trace and not in the instance.
    """

    policy: str
    metrics: Metrics
    held_blocks: IntArray
    num_waiting: IntArray
    rejections: tuple[Rejection, ...] = ()

    @property
    def history(self) -> History:
        """What the decisions imply."""
        return self.metrics.history

    @cached_property
    def num_running(self) -> IntArray:
        """Requests with KV entries on the device during each batch, shape (num_batches,)."""
        history = self.history
        ones = np.ones_like
        return self._running_total(
            processed=(history.kv_before == 0).astype(np.int64),
            hit=(history.schedule.hit_tokens > 0).astype(np.int64),
            restored=ones(history.kv_restored),
            evicted=(history.kv_evicted > 0).astype(np.int64),
            finished=ones(history.kv_after),
        )

    @cached_property
    def kv_tokens(self) -> IntArray:
        """KV entries of all requests on the device when each batch has run, shape (num_batches,).

        An entry that several requests share by prefix caching counts for each of them.
        """
        history = self.history
        return self._running_total(
            processed=history.schedule.tokens,
            hit=history.schedule.hit_tokens,
            restored=history.kv_restored,
            evicted=history.kv_evicted,
            finished=history.kv_after,
        )

    def _running_total(
        self, *, processed: IntArray, hit: IntArray, restored: IntArray, evicted: IntArray, finished: IntArray
    ) -> IntArray:
        """Sum up to each batch of what comes onto the device less what has left it.

        `processed` and `finished` are columns of entries, the others of the events of their name. A finished
        request leaves after its last batch, all others at the boundary before a batch.
        """
        schedule, finishes = self.history.schedule, self.history.finishes
        change = np.zeros(schedule.num_batches + 1, dtype=np.int64)
        np.add.at(change, schedule.batch_of_entry, processed)
        np.add.at(change, schedule.batch_of_entry[finishes] + 1, -finished[finishes])
        np.add.at(change, schedule.hit_batch, hit)
        np.add.at(change, schedule.restored_batch, restored)
        np.add.at(change, schedule.evicted_batch, -evicted)
        return np.cumsum(change)[:-1]

    @cached_property
    def num_preemptions(self) -> IntArray:
        """Evictions at the boundary before each batch, shape (num_batches,)."""
        schedule = self.history.schedule
        return np.bincount(schedule.evicted_batch, minlength=schedule.num_batches)

    def provenance(self) -> dict[str, Any]:
        """Policy, fingerprint of the instance and versions of the tools: what every file of a run states."""
        return {
            "policy": self.policy,
            "fingerprint": self.history.instance.fingerprint(),
            "versions": tool_versions(),
        }
