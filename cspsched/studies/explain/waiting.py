"""What a request does from its arrival to its last token, and what it waits for; from the schedule alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from cspsched.errors import UsageError
from cspsched.policies.settings import nearest
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.referee.history import History
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.walk import BoolArray


class Doing(StrEnum):
    """What a request does in a batch: it is processed, or waits for the first of these reasons that holds."""

    PREFILL = "prefill"
    REFILL = "refill"
    DECODE = "decode"
    UNDER_WAY = "batch under way"
    """It came while a batch ran."""
    MEMORY = "memory"
    """The KV blocks that its known tokens lack were not free."""
    REQUESTS = "request limit"
    """The batch has R requests."""
    TOKENS = "token budget"
    """The batch has C tokens, or as many as several batches of the schedule have and none exceeds."""
    ORDER = "order"
    """The batch processes a request that came later."""
    QUEUE = "queue"
    """A request that came earlier waits, too."""
    RULES = "rules of the policy"
    """There was room, and all that came earlier were served."""

    @property
    def waits(self) -> bool:
        """Whether the request is not processed."""
        return self not in (Doing.PREFILL, Doing.REFILL, Doing.DECODE)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Batches in a row in which a request does the same. The spans of a request leave no gap.

    Attributes
    ----------
    first_batch, last_batch
        Numbers of batches, from 0 on.
    tokens
        Of the request, processed.
    evicted
        The request loses its KV cache at the start.
    passed
        Requests that came later and were processed while it waited.
    finished
        Requests that finished in the last batch: what they held was free at the end.
    """

    doing: Doing
    begin_ns: int
    end_ns: int
    first_batch: int
    last_batch: int
    tokens: int = 0
    evicted: bool = False
    passed: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "doing": self.doing.value,
            "begin_ns": self.begin_ns,
            "end_ns": self.end_ns,
            "first_batch": self.first_batch,
            "last_batch": self.last_batch,
            "tokens": self.tokens,
            "evicted": self.evicted,
            "passed_by": list(self.passed),
            "finished": list(self.finished),
        }


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All spans of a request under a policy, from its arrival to its last token."""

    policy: str
    request_id: str
    spans: tuple[Span, ...]

    @property
    def waited_ns(self) -> dict[Doing, int]:
        """Time of each reason to wait that there was, the longest first."""
        total: dict[Doing, int] = {}
        for span in self.spans:
            if span.doing.waits:
                total[span.doing] = total.get(span.doing, 0) + span.end_ns - span.begin_ns
        return dict(sorted(total.items(), key=lambda one: -one[1]))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "policy": self.policy,
            "request_id": self.request_id,
            "waits": [
                {"reason": doing.value, "waited_ns": waited_ns} for doing, waited_ns in self.waited_ns.items()
            ],
            "spans": [span.to_json() for span in self.spans],
        }


def position_of(instance: Instance, request_id: str) -> int:
    """Where a request of a name is.

    Raises
    ------
    UsageError
        If there is none.
    """
    names = list(instance.columns.request_id)
    if request_id not in names:
        raise UsageError(
            f"there is no request {request_id!r}{nearest(request_id, names)}; the first is {names[0]!r}, the "
            f"last {names[-1]!r} (those that can never be served are left out)"
        )
    return names.index(request_id)


def follow_request(policy: str, history: History, request: int) -> Timeline:
    """Timeline of a request in a schedule that keeps all rules."""
    name = history.instance.columns.request_id[request]
    return Timeline(policy=policy, request_id=name, spans=_Watched(history, request).spans())


class _Watched:
    """One request of a schedule."""

    def __init__(self, history: History, request: int) -> None:
        self._history, self._schedule, self._request = history, history.schedule, request
        self._limits, self._columns = history.instance.limits, history.instance.columns
        mine = np.flatnonzero(self._schedule.request == request)
        self._entry = dict(zip(self._schedule.batch_of_entry[mine].tolist(), mine.tolist(), strict=True))
        evicted = self._schedule.evicted_batch[self._schedule.evicted_request == request]
        self._evicted: set[int] = set(evicted.tolist())
        self._arrival_ns = int(self._columns.arrival_ns[request])
        self._held = self._generated = 0

    @cached_property
    def _free_blocks(self) -> IntArray:
        return self._limits.kv_blocks - occupied_blocks(self._history)

    @cached_property
    def _sizes(self) -> IntArray:
        return np.diff(self._schedule.first_entry)

    @cached_property
    def _budget(self) -> int:
        """C, or the largest batch if that is no exception: then it is the policy's own budget."""
        tokens = self._history.features.tokens
        largest = int(tokens.max())
        is_usual = np.count_nonzero(tokens == largest) > 1
        return largest if is_usual else self._limits.max_batch_tokens

    def spans(self) -> tuple[Span, ...]:
        """One span a batch, merged where the request does the same."""
        schedule, found, last = self._schedule, list[Span](), max(self._entry)
        first = int(np.searchsorted(schedule.end_ns, self._arrival_ns, side="right"))
        since_ns = self._arrival_ns
        for batch in range(first, last + 1):
            end_ns = int(schedule.end_ns[batch])
            one = self._span(batch, since_ns, end_ns)
            since_ns = end_ns
            if found and _goes_on(found[-1], one):
                one = replace(
                    one,
                    begin_ns=found[-1].begin_ns,
                    first_batch=found[-1].first_batch,
                    tokens=found[-1].tokens + one.tokens,
                    evicted=found[-1].evicted,
                    passed=tuple(dict.fromkeys((*found[-1].passed, *one.passed))),
                )
                found.pop()
            found.append(one)
        return tuple(found)

    def _span(self, batch: int, begin_ns: int, end_ns: int) -> Span:
        evicted = batch in self._evicted
        if evicted:
            self._held = 0
        doing, tokens, passed = self._doing(batch)
        return Span(
            doing=doing,
            begin_ns=begin_ns,
            end_ns=end_ns,
            first_batch=batch,
            last_batch=batch,
            tokens=tokens,
            evicted=evicted,
            passed=self._names(passed),
            finished=self._names(self._finished_in(batch)) if doing.waits else (),
        )

    def _doing(self, batch: int) -> tuple[Doing, int, IntArray]:
        """What the request does in a batch, its tokens, and which later ones are served while it waits."""
        history, entry = self._history, self._entry.get(batch)
        none = np.zeros(0, dtype=np.int64)
        if entry is not None:
            self._held = int(history.kv_after[entry])
            self._generated += int(history.generates[entry])
            if history.decodes[entry]:
                return Doing.DECODE, 1, none
            refills = history.generated_before[entry] > 0
            tokens = int(self._schedule.tokens[entry])
            return (Doing.REFILL if refills else Doing.PREFILL), tokens, none
        if self._schedule.start_ns[batch] < self._arrival_ns:
            return Doing.UNDER_WAY, 0, none
        later = self._later_in(batch)
        return self._why_waits(batch, later), 0, later

    def _why_waits(self, batch: int, later: IntArray) -> Doing:
        limits, known = self._limits, int(self._columns.prompt_tokens[self._request]) + self._generated
        if limits.blocks_of(known) - limits.blocks_of(self._held) > self._free_blocks[batch]:
            return Doing.MEMORY
        if self._sizes[batch] >= limits.max_batch_requests:
            return Doing.REQUESTS
        if self._history.features.tokens[batch] >= self._budget:
            return Doing.TOKENS
        if len(later):
            return Doing.ORDER
        return Doing.QUEUE if self._waits_behind(batch) else Doing.RULES

    def _waits_behind(self, batch: int) -> bool:
        """Whether a request that came earlier is unfinished and not in the batch; no later one is in it."""
        unfinished = np.count_nonzero(self._last_batch[self._comes_before] >= batch)
        return bool(unfinished > self._sizes[batch])

    @cached_property
    def _last_batch(self) -> IntArray:
        """Batch in which each request finishes, shape (num_requests,)."""
        last, finishes = np.zeros(len(self._columns), dtype=np.int64), self._history.finishes
        last[self._schedule.request[finishes]] = self._schedule.batch_of_entry[finishes]
        return last

    @cached_property
    def _comes_before(self) -> BoolArray:
        """Requests that came before this one, or with it and stand before it."""
        arrival_ns = self._columns.arrival_ns
        together = (arrival_ns == self._arrival_ns) & (np.arange(len(arrival_ns)) < self._request)
        before: BoolArray = (arrival_ns < self._arrival_ns) | together
        return before

    def _later_in(self, batch: int) -> IntArray:
        """Requests of a batch that came after this one, or with it and stand behind it."""
        schedule = self._schedule
        served = schedule.request[schedule.first_entry[batch] : schedule.first_entry[batch + 1]]
        later: IntArray = served[~self._comes_before[served]]
        return later

    def _finished_in(self, batch: int) -> IntArray:
        schedule = self._schedule
        entries = slice(int(schedule.first_entry[batch]), int(schedule.first_entry[batch + 1]))
        finished: IntArray = schedule.request[entries][self._history.finishes[entries]]
        return finished

    def _names(self, requests: IntArray) -> tuple[str, ...]:
        return tuple(self._columns.request_id[i] for i in requests.tolist())


def _goes_on(span: Span, after: Span) -> bool:
    """Whether two spans are one."""
    return span.doing is after.doing and not after.evicted
