"""Runs the members of a portfolio: side by side with two workers, else one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property

from cspsched.exact.members import Clock, Company, Leader, Member
from cspsched.exact.model.member import is_affordable
from cspsched.exact.record import Ending, Record
from cspsched.exact.watch import SearchLimits
from cspsched.problem.result import StopReason

HEAD_START_S = 2.0
"""What a leader has for itself: it proves small instances before a model would be built."""
COMPLETION_HEAD_START_S = 6.0
"""The same where requests run to completion: CP-SAT proves less there, and takes seconds to begin."""
QUICK_START_S = 0.1
"""The same before members that are quick, and of a background member before a model is built."""
MOST_HEAD_START = 0.25
"""The same as a share of the time limit, at most."""
FAILED: Ending = (StopReason.FAILED, {})
EVERYWHERE, NOWHERE = frozenset(Company), frozenset[Company]()


@dataclass(frozen=True)
class Row:
    """How a member takes part. Which company it is in is for the leader to say."""

    make: Callable[[], Member]
    share: float = 1.0
    """Part of the time that is left when it begins."""
    in_turn: frozenset[Company] = EVERYWHERE
    """Where it runs before or after the leader, on one worker."""
    beside: frozenset[Company] = EVERYWHERE
    """Where it runs beside the leader."""
    in_background: bool = False
    """Whether it gets a thread where all run; it proves nothing, so its ending says nothing of the gap."""
    is_quick: bool = False
    """Whether a leader in the company of CP-SAT waits for it only so long."""


class Entry:
    """A row with its member, made for one solve."""

    def __init__(self, row: Row, record: Record) -> None:
        self.row, self.member, self._record = row, row.make(), record

    @cached_property
    def applies(self) -> bool:
        """Whether the member applies; not if it fails at that."""
        record, member = self._record, self.member
        return record.attempt(member.name, lambda: member.applies(record), False)

    def run(self, limits: SearchLimits, share: float) -> Ending:
        """Return the ending of the member, also of one that fails."""
        record, member = self._record, self.member
        return record.attempt(member.name, lambda: member.run(record, Clock(record, limits, share)), FAILED)


class Race:
    """A solve with a portfolio. `endings` says of each member why it stopped, as soon as it has."""

    def __init__(
        self, record: Record, limits: SearchLimits, rows: Sequence[Row], endings: list[Ending]
    ) -> None:
        self._record, self._limits, self._endings = record, limits, endings
        entries = [Entry(row, record) for row in rows]
        self._leaders = [entry for entry in entries if isinstance(entry.member, Leader)]
        self._others = [entry for entry in entries if entry not in self._leaders]
        self._entries, self._last = entries, entries[-1]

    def run(self) -> None:
        """Run the members until the gap is closed, time is over, or none is left."""
        if self._limits.time_limit_s <= 0:
            self._endings.append((StopReason.TIME_LIMIT, {}))
            return
        leader = next((entry for entry in self._leaders if entry.applies), None)
        if self._limits.num_workers == 1:
            self._take_turns(leader)
        elif leader is None:
            self._run_all(self._limits)
        else:
            self._follow(leader)

    def _company_of(self, leader: Entry | None) -> Company:
        if leader is not None and isinstance(leader.member, Leader):
            return leader.member.company(self._record)
        return Company.ALL

    def _take_turns(self, leader: Entry | None) -> None:
        """One after the other, in the order of the rows."""
        company = self._company_of(leader)
        for entry in self._entries:
            if entry is leader:
                self._endings.append(entry.run(self._limits, entry.row.share))
            elif entry in self._others and company in entry.row.in_turn:
                self._run_if_open(entry, self._limits, self._endings)

    def _run_if_open(self, entry: Entry, limits: SearchLimits, endings: list[Ending]) -> None:
        """Run a member that applies, unless no further search is of use."""
        if self._record.is_closed or _is_final(endings) or not entry.applies:
            return
        ending = entry.run(limits, entry.row.share)
        if not entry.row.in_background:
            endings.append(ending)

    def _follow(self, leader: Entry) -> None:
        """The leader in a thread, and others beside it as soon as the instance proves hard."""
        record, company = self._record, self._company_of(leader)
        before = len(self._endings)
        with _beside(record, lambda: self._lead(leader)) as future:
            _wait(future, min(self._head_start_s(company), MOST_HEAD_START * self._limits.time_limit_s))
            if not future.done():
                self._run_beside(company, _one_less(self._limits))
            others = self._endings[before:]
            if _is_final(others):
                if company is not Company.ALL:
                    # What is left of the gap is rounding: small instances are proven without.
                    _wait(future, HEAD_START_S)
                record.watch.stop()
            ending = future.result()
            self._endings.append(ending)
        if record.is_closed or _is_final(self._endings) or record.watch.remaining_s <= 0:
            return
        if company is Company.ALL:
            if not others:
                self._run_all(self._limits)
        elif ending[0] is StopReason.TOO_LARGE:
            self._endings.append(self._last.run(self._limits, self._last.row.share))
        elif ending == FAILED:
            self._run_all(self._limits)

    def _lead(self, leader: Entry) -> Ending:
        """Run the leader; once it is through, what runs beside it has nothing left to find."""
        ending = leader.run(self._limits, 1.0)
        if ending[0] is StopReason.ROUNDING:
            self._record.watch.stop()
        return ending

    def _head_start_s(self, company: Company) -> float:
        """What the leader has for itself."""
        if company is not Company.MODEL:
            return HEAD_START_S
        has_quick = any(entry.row.is_quick and entry.applies for entry in self._others)
        return QUICK_START_S if has_quick else COMPLETION_HEAD_START_S

    def _run_beside(self, company: Company, limits: SearchLimits) -> None:
        """What runs beside the leader, in one thread. The last of them says why it stopped."""
        if company is Company.ALL:
            self._run_all(limits)
            return
        endings: list[Ending] = []
        for entry in self._others:
            if company in entry.row.beside:
                self._run_if_open(entry, limits, endings)
        self._endings += endings[-1:]

    def _run_all(self, limits: SearchLimits) -> None:
        """Run all that applies, and the background in a thread: for a while, or all the time.

        All the time if no model is affordable, or if others come before it: the model is large then, and a
        search for schedules finds better ones.
        """
        able = [entry for entry in self._others if Company.ALL in entry.row.beside and entry.applies]
        background = next((entry for entry in able if entry.row.in_background), None)
        rest = [entry for entry in able if entry is not background]
        if background is None:
            self._run_rest(rest, limits)
            return
        is_brief = len(rest) == 1 and is_affordable(self._record, limits)
        share = background.row.share if is_brief else 1.0
        with _beside(self._record, lambda: background.run(limits, share)) as future:
            # A better incumbent means a shorter horizon, and on small instances it is there at once.
            _wait(future, min(QUICK_START_S, MOST_HEAD_START * limits.time_limit_s))
            before = len(self._endings)
            self._run_rest(rest, limits)
            others = self._endings[before:]
            if others and others[-1][0] not in (StopReason.TOO_LARGE, StopReason.FAILED):
                self._record.watch.stop()
            future.result()

    def _run_rest(self, entries: Sequence[Entry], limits: SearchLimits) -> None:
        for entry in entries:
            self._run_if_open(entry, limits, self._endings)


def _one_less(limits: SearchLimits) -> SearchLimits:
    """What is left for others while the leader has a thread of its own."""
    return replace(limits, num_workers=max(1, limits.num_workers - 1))


@contextmanager
def _beside(record: Record, member: Callable[[], Ending]) -> Iterator[Future[Ending]]:
    """Run a member in a thread; it is asked to stop if anything goes wrong here."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(member)
        try:
            yield future
        except BaseException:
            record.watch.stop()
            raise


def _wait(future: Future[Ending], timeout_s: float) -> None:
    """Wait for a member to end, for some time."""
    with suppress(TimeoutError):
        future.result(timeout=timeout_s)


def _is_final(endings: list[Ending]) -> bool:
    """No further search: what remains of the gap is rounding, or the user asked to stop."""
    return any(reason in (StopReason.ROUNDING, StopReason.INTERRUPTED) for reason, _ in endings)
