"""What a schedule is worth: objectives and serving metrics, each defined once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import linear_form
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.objectives import Objective as Objective
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import History, follow
from cspsched.units import NS_PER_S

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaps:
    """Gaps between consecutive tokens, equal ones together: rising, and how many there are up to each."""

    gap_ns: IntArray
    num_so_far: IntArray

    @classmethod
    def of(cls, gap_ns: IntArray, times: IntArray) -> Gaps:
        """Build from gaps in any order and how often there is each, shape (num_gaps,) both."""
        gap_ns, times = gap_ns[times > 0], times[times > 0]
        order = np.argsort(gap_ns)
        return cls(gap_ns=gap_ns[order], num_so_far=np.cumsum(times[order]))

    @property
    def largest_ns(self) -> int:
        """Largest gap, 0 if there is none."""
        return int(self.gap_ns[-1]) if len(self.gap_ns) else 0

    def summary_s(self) -> dict[str, float] | None:
        """As `summary_s` of all gaps one by one."""
        if not len(self.gap_ns):
            return None
        num = int(self.num_so_far[-1])
        places = (num - 1) * (np.array(PERCENTILES) / 100)
        share = places - np.floor(places)
        below = self._at(np.floor(places).astype(np.int64))
        above = self._at(np.minimum(np.floor(places).astype(np.int64) + 1, num - 1))
        # From the nearer end, as numpy does it: the last bits are the same.
        points = np.where(share < 0.5, below + (above - below) * share, above - (above - below) * (1 - share))
        return {
            "mean": self._total_ns() / num / NS_PER_S,
            **{f"p{p}": float(value) for p, value in zip(PERCENTILES, points / NS_PER_S, strict=True)},
            "max": self.largest_ns / NS_PER_S,
        }

    def _at(self, places: IntArray) -> IntArray:
        """Gaps at places of the whole order, counted from 0."""
        found: IntArray = self.gap_ns[np.searchsorted(self.num_so_far, places, side="right")]
        return found

    def _total_ns(self) -> float:
        times = np.diff(self.num_so_far, prepend=0)
        if self.largest_ns * int(self.num_so_far[-1]) < INT64_SAFE:
            return float((self.gap_ns * times).sum())
        return float(np.dot(self.gap_ns.astype(np.float64), times))


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """When the requests got their tokens, shape (num_requests,) each, and all gaps between these."""

    first_token_ns: IntArray
    last_token_ns: IntArray
    gaps: Gaps


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """Times of a complete schedule, from its batch ends and what its decisions imply.

    `times` are there if a walk along runs has found them; else they come from the columns of the history.
    """

    history: History
    times: Times | None = None

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
        return np.cumsum(self.output_tokens)

    @cached_property
    def arrival_ns(self) -> IntArray:
        """Arrivals, shape (num_requests,)."""
        return self._instance.columns.arrival_ns

    @cached_property
    def output_tokens(self) -> IntArray:
        """Output tokens, shape (num_requests,)."""
        return self._instance.columns.output_tokens

    @cached_property
    def latency_ns(self) -> IntArray:
        """Completion - arrival (end to end), shape (num_requests,)."""
        if self.times is not None:
            return self.times.last_token_ns - self.arrival_ns
        completion: IntArray = self.token_ns[self._last_token - 1]
        return completion - self.arrival_ns

    @cached_property
    def ttft_ns(self) -> IntArray:
        """First token - arrival, shape (num_requests,)."""
        if self.times is not None:
            return self.times.first_token_ns - self.arrival_ns
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

    @property
    def largest_itl_ns(self) -> int:
        """Largest gap, 0 if there is none."""
        return int(self.itl_ns.max(initial=0)) if self.times is None else self.times.gaps.largest_ns

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
            self.largest_itl_ns,
        )

    def to_json(self) -> dict[str, Any]:
        """Summary with units in the names; percentiles by linear interpolation."""
        requests, span_s = len(self._instance.columns), self.makespan_ns / NS_PER_S
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
            "itl_s": summary_s(self.itl_ns) if self.times is None else self.times.gaps.summary_s(),
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

    The schedule must be free of violations (see `cspsched.referee.rules`): a request without all its tokens
    has no latency.
    """
    return Metrics(history=follow(instance, schedule))
