"""Closed loops: requests that are sent when others have ended, by users in turn or as turns of sessions.

Order of events at equal times: requests end, then those that follow arrive, in the order of the file, then
the policy decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import chain, pairwise

from cspsched.errors import UsageError
from cspsched.problem.columns import Requests
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.api import Engine, new_replica
from cspsched.simulate.kernel.records import NEVER_NS
from cspsched.simulate.protocol import Policy
from cspsched.simulate.replica import Replica
from cspsched.simulate.simulation import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Who sends which requests, one after the other.

    Attributes
    ----------
    sessions
        Positions of the turns of each session, a single request being a session of one turn. Each turn but
        the first arrives when the one before has ended and its think time has passed.
    concurrency
        Most sessions at a time: so many begin at the first's own arrival, each further one when one has
        ended. None: each begins at its own arrival.
    added_ns
        Between the last token of a request and what follows, besides think times: what is around the
        schedule.
    """

    sessions: Sequence[Sequence[int]]
    concurrency: int | None = None
    added_ns: int = 0

    def sentence(self, policy: str) -> str:
        """What the arrivals of a result are that came about under a policy."""
        num_users = f"{self.concurrency} at a time, " if self.concurrency is not None else ""
        num_requests = sum(map(len, self.sessions))
        return (
            f"Arrivals came about under {policy} in a closed loop "
            f"({num_users}{num_requests - len(self.sessions)} of {num_requests} requests follow another of "
            "their session); they are frozen for the referee, the metrics, the bounds and the excess"
        )

    def serve(self, replica: Replica, arrival_ns: IntArray, think_ns: IntArray | None = None) -> None:
        """Submit all requests to a replica as they come, and write when they do.

        Parameters
        ----------
        arrival_ns
            By position in the instance, shape (num_requests,); of the first turns it holds when they arrive,
            as far as that does not follow from the loop.
        think_ns
            Think times by position; None: there are none.

        Raises
        ------
        UsageError
            If a request never ends although others wait for that, as one that an emulated bug drops.
        """
        follower = dict(chain.from_iterable(map(pairwise, self.sessions)))
        waiting = [turns[0] for turns in self.sessions]
        num_open = len(waiting) if self.concurrency is None else self.concurrency
        coming = [(int(arrival_ns[i]), i) for i in waiting[:num_open]]
        if self.concurrency is not None:
            coming = [(coming[0][0], i) for _, i in coming]
        next_session = iter(waiting[num_open:])
        coming.sort()
        ends: list[tuple[int, int]] = []
        left, reached_ns = sum(map(len, self.sessions)), -1
        while left:
            if ends and (not coming or ends[0][0] <= coming[0][0]):
                end_ns, request = heappop(ends)
                following = follower.get(request)
                pause_ns = self.added_ns
                if following is None:
                    following = next(next_session, None)
                elif think_ns is not None:
                    pause_ns += int(think_ns[following])
                if following is not None:
                    heappush(coming, (end_ns + pause_ns, following))
                continue
            until_ns = coming[0][0] if coming else NEVER_NS
            if until_ns > reached_ns:
                for end in replica.advance_to_end(until_ns):
                    heappush(ends, end)
                reached_ns = min(until_ns, ends[0][0]) if ends else until_ns
            if coming and until_ns <= reached_ns and not (ends and ends[0][0] <= until_ns):
                at_ns, request = heappop(coming)
                arrival_ns[request] = at_ns
                replica.submit(request, at_ns)
                left -= 1
            elif not ends:
                replica.finish()
                raise UsageError(
                    f"{left} requests wait for ends that never come, as the policy drops requests; run the "
                    "trace without --max-concurrency and sessions"
                )


def closed_loop_of(instance: Instance, concurrency: int | None = None) -> ClosedLoop | None:
    """The loop that sessions of an instance make, or so many users; None if it arrives as it stands.

    Turns of a session, and sessions that wait for a user, are in the order of the instance.
    """
    names = instance.columns.session_id
    if names is None and concurrency is None:
        return None
    turns: dict[str | int, list[int]] = {}
    for i in range(len(instance.requests)):
        turns.setdefault((names[i] if names is not None else "") or i, []).append(i)
    return ClosedLoop(sessions=list(turns.values()), concurrency=concurrency)


def simulate_closed(
    instance: Instance, policy: Policy, loop: ClosedLoop, engine: Engine | str = Engine.AUTO
) -> tuple[Instance, Simulation]:
    """Run a policy over requests that are sent as others end.

    Returns
    -------
    tuple[Instance, Simulation]
        The instance with the arrivals that came about, turns of no session any more, and what was done. It
        belongs to that instance, and is what the policy does on it with all arrivals given.

    Raises
    ------
    UsageError
        As `simulate`; if a request never ends although others wait for that.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    columns = instance.columns
    arrival_ns: IntArray = columns.arrival_ns.copy()
    replica = new_replica(instance, policy, engine)
    loop.serve(replica, arrival_ns, columns.think_time_ns)
    simulation = replica.finish()
    return replace(instance, requests=Requests(columns.arriving(arrival_ns))), simulation
