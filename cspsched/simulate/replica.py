"""One server that can be advanced to any time, whichever engine runs it; a whole trace is the special case.

Order of events at equal times: batches end, requests arrive (in the order of their submission), the policy
decides. So `advance` to a time makes every decision before it and none at it: first comes what is submitted
for that time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cspsched.errors import UsageError
from cspsched.problem.request import Request
from cspsched.simulate.simulation import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """What is seen of a replica from outside, at the time to which it was advanced.

    While a batch runs over that time the numbers are those of its decision, and of what was submitted since:
    what the batch does is not seen before it ends.

    Attributes
    ----------
    num_running
        Requests that hold KV blocks.
    num_waiting
        Requests that were submitted, are not finished and hold none.
    free_blocks
        KV blocks that no request holds.
    outstanding
        Requests that were submitted and have not generated their last token, in the order of submission.
    outstanding_tokens
        Prompt and output tokens of all of them, whatever has been processed.
    """

    num_running: int
    num_waiting: int
    free_blocks: int
    outstanding: tuple[int, ...]
    outstanding_tokens: int


class Replica(Protocol):
    """A server under a policy. Requests are positions in the instance, of which it may get some only.

    Raises
    ------
    PolicyError, LivelockError
        From `advance` and `finish`, as `simulate`. That nothing more can arrive is known to `finish` alone,
        so a policy that waits for an arrival is stuck there.
    """

    def submit(self, request: int, arrival_ns: int | None = None) -> None:
        """Let a request come at its arrival, or at a time that is known only now, as in a closed loop.

        What `finish` tells then belongs to the instance with that arrival. Of requests that arrive together
        those first in the file are to be submitted first.

        Raises
        ------
        UsageError
            If it was submitted before, or arrives before the time advanced to or another one that was
            submitted.
        """

    def cancel(self, request: int) -> None:
        """Let a request that was submitted leave before its end, and its KV blocks be free.

        It leaves with the tokens that it has generated once the batch under way has ended: out of the queue,
        or from the device. If it has processed tokens since the last of them (in the midst of its prefill or
        of a refill, or preempted there) it is served until its next token. Who has finished stays so.

        What `finish` tells has served the trace with so many output tokens (`Simulation.output_changes`,
        `as_served`), without those that left before their first.

        Raises
        ------
        UsageError
            If it was not submitted, or the policy is a user's own that cannot forget one that waits.
        """

    def advance(self, until_ns: int) -> None:
        """Make every decision before a time; the batch of the last one may end later."""

    def advance_to_end(self, until_ns: int) -> list[tuple[int, int]]:
        """Advance to a time, or to the first end of a request that comes to be known if that is before.

        Returns
        -------
        list[tuple[int, int]]
            (time, request) of all ends that came to be known, sorted; some may be later than that time.
        """

    def finish(self) -> Simulation:
        """Serve all that was submitted to its end, and tell what was done."""

    @property
    def next_event_ns(self) -> int | None:
        """When the next decision is due if nothing more is submitted; None if there is none."""

    def finish_ns(self, request: int) -> int | None:
        """When a request generates its last token; None if that is not decided yet."""

    @property
    def view(self) -> ReplicaView:
        """What a router may look at."""


class Submissions:
    """What was submitted to a replica, and until when it was advanced."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._submitted: set[int] = set()
        self._outstanding: list[int] = []
        self._earliest_ns = 0

    def add(self, request: int, arrival_ns: int) -> None:
        """Note a request, or refuse it (see `Replica.submit`)."""
        if request in self._submitted:
            name = self._requests[request].request_id
            raise UsageError(f"request {name!r} is submitted twice, expected once")
        if arrival_ns < self._earliest_ns:
            name = self._requests[request].request_id
            raise UsageError(
                f"request {name!r} arrives at {arrival_ns} ns, expected at least "
                f"{self._earliest_ns} ns: the replica is there already, or an earlier submission comes then"
            )
        self._earliest_ns = arrival_ns
        self._submitted.add(request)
        self._outstanding.append(request)

    def require(self, request: int) -> None:
        """Refuse a request that was not submitted (see `Replica.cancel`)."""
        if request not in self._submitted:
            name = self._requests[request].request_id
            raise UsageError(f"request {name!r} is cancelled but was not submitted to this replica")

    def advance(self, until_ns: int) -> None:
        """Note that nothing may arrive before a time any more."""
        self._earliest_ns = max(self._earliest_ns, until_ns)

    def look(
        self,
        finish_ns: Callable[[int], int],
        time_ns: int,
        *,
        num_running: int,
        num_waiting: int,
        free_blocks: int,
    ) -> ReplicaView:
        """The view at a time, by when every request finishes (-1: not known yet)."""
        self._outstanding = [i for i in self._outstanding if not 0 <= finish_ns(i) <= time_ns]
        left = (self._requests[i] for i in self._outstanding)
        return ReplicaView(
            num_running=num_running,
            num_waiting=num_waiting,
            free_blocks=free_blocks,
            outstanding=tuple(self._outstanding),
            outstanding_tokens=sum(one.prompt_tokens + one.output_tokens for one in left),
        )
