"""What a schedule is worth: objectives and serving metrics, each defined once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.problem.history import History, follow
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.objectives import Objective as Objective
from cspsched.problem.schedule import Schedule
from cspsched.units import NS_PER_S

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """Times of a complete schedule, from its batch ends and what its decisions imply."""

    history: History

    @property
    def _instance(self) -> Instance:
        return self.history.instance

    @cached_property
    def token_ns(self) -> IntArray:
        """Time of every output token, grouped by request and in order, shape (sum of outputs,)."""
        order, ends = self._generating_entries
        return ends[order]

    @cached_property
    def _generating_entries(self) -> tuple[IntArray, IntArray]:
        schedule, generates = self.history.schedule, self.history.generates
        order = np.argsort(schedule.request[generates], kind="stable")
        return order, schedule.end_ns[schedule.batch_of_entry[generates]]

    @cached_property
    def _last_token(self) -> IntArray:
        """Position after the last token of each request in `token_ns`."""
        return np.cumsum([request.output_tokens for request in self._instance.requests])

    @cached_property
    def arrival_ns(self) -> IntArray:
        """Arrivals, shape (num_requests,)."""
        return np.array([request.arrival_ns for request in self._instance.requests], dtype=np.int64)

    @cached_property
    def output_tokens(self) -> IntArray:
        """Output tokens, shape (num_requests,)."""
        return np.array([request.output_tokens for request in self._instance.requests], dtype=np.int64)

    @cached_property
    def latency_ns(self) -> IntArray:
        """Completion - arrival (end to end), shape (num_requests,)."""
        completion: IntArray = self.token_ns[self._last_token - 1]
        return completion - self.arrival_ns

    @cached_property
    def ttft_ns(self) -> IntArray:
        """First token - arrival, shape (num_requests,)."""
        first: IntArray = self.token_ns[self._last_token - self.output_tokens]
        return first - self.arrival_ns

    @cached_property
    def tpot_ns(self) -> npt.NDArray[np.float64]:
        """(latency - TTFT) / (O - 1) of the requests with O > 1."""
        several = self.output_tokens > 1
        return (self.latency_ns - self.ttft_ns)[several] / (self.output_tokens[several] - 1)

    @cached_property
    def itl_ns(self) -> IntArray:
        """All gaps between consecutive tokens of all requests, pooled (ITL, also called TBT)."""
        gaps = np.diff(self.token_ns)
        return np.delete(gaps, self._last_token[:-1] - 1)

    @cached_property
    def makespan_ns(self) -> int:
        """End of the last batch; the clock starts at the first arrival."""
        return int(self.history.schedule.end_ns[-1])

    @property
    def recomputed_tokens(self) -> int:
        """KV entries lost to preemption."""
        return int(self.history.kv_lost.sum())

    @property
    def num_swaps(self) -> int:
        """Preemptions that move the KV cache to host memory."""
        return int(np.count_nonzero(self.history.schedule.evicted_to_host))

    @property
    def swapped_tokens(self) -> int:
        """KV entries moved to host memory."""
        return int(self.history.kv_evicted.sum()) - self.recomputed_tokens

    @property
    def swapped_blocks(self) -> int:
        """KV blocks moved between device and host memory, out and in."""
        return int(self.history.moved_blocks.sum())

    def objective_ns(self, objective: AnyObjective) -> int:
        """Value of an objective, an exact integer; nanoseconds, in the scale of a mixture."""
        if objective is Objective.MAKESPAN:
            return self.makespan_ns
        if isinstance(objective, Objective):
            return sum((self.latency_ns if objective is Objective.LATENCY else self.ttft_ns).tolist())
        return linear_form(objective, self._instance).value(
            self._instance.requests,
            self.makespan_ns,
            self.ttft_ns.tolist(),
            (self.latency_ns - self.ttft_ns).tolist(),
            int(self.itl_ns.max(initial=0)),
        )

    def to_json(self) -> dict[str, Any]:
        """Summary with units in the names; percentiles by linear interpolation."""
        requests, span_s = len(self._instance.requests), self.makespan_ns / NS_PER_S
        return {
            "num_requests": requests,
            "num_batches": self.history.schedule.num_batches,
            "makespan_s": span_s,
            "requests_per_s": requests / span_s,
            "output_tokens_per_s": int(self.output_tokens.sum()) / span_s,
            "preemptions": self.history.schedule.num_preemptions,
            "recomputed_tokens": self.recomputed_tokens,
            **(self._swap_to_json() if self._instance.switches.preemption.swaps else {}),
            "latency_s": summary_s(self.latency_ns),
            "ttft_s": summary_s(self.ttft_ns),
            "tpot_s": summary_s(self.tpot_ns),
            "itl_s": summary_s(self.itl_ns),
        }

    def _swap_to_json(self) -> dict[str, int]:
        return {
            "swaps": self.num_swaps,
            "swapped_tokens": self.swapped_tokens,
            "swapped_blocks": self.swapped_blocks,
        }


def summary_s(times_ns: npt.NDArray[Any]) -> dict[str, float] | None:
    """Mean, percentiles (linear interpolation) and maximum in seconds; None where there is no value."""
    if len(times_ns) == 0:
        return None
    points = np.percentile(times_ns, PERCENTILES) / NS_PER_S
    return {
        "mean": float(times_ns.mean()) / NS_PER_S,
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, points, strict=True)},
        "max": float(times_ns.max()) / NS_PER_S,
    }


def measure(instance: Instance, schedule: Schedule) -> Metrics:
    """Metrics of a complete schedule.

    The schedule must be free of violations (see `cspsched.problem.referee`): a request without all its tokens
    has no latency.
    """
    return Metrics(history=follow(instance, schedule))
