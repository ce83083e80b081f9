"""Replicas of a recorded run of Vidur, and which of them gets a request.

Round robin looks at nothing but the number of a request. LOR ("least outstanding requests") looks at the
replicas at the request's arrival. What a replica did until then does not depend on what arrives later: so it
is simulated with the requests that it has, for each of them anew. That takes time quadratic in the number of
requests, about 10 s for 300, and needs nothing of the engine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from cspsched.costs.vidur_tables import VidurTables
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.vidur_case import BatchRow
from cspsched.recording.vidur_machine import VidurMachine, VidurRequest
from cspsched.simulate import Policy, Simulation, simulate


@dataclass(frozen=True, kw_only=True)
class ReplicaRun:
    """What a replica made of its requests. Times in femtoseconds.

    Attributes
    ----------
    requests
        In the order of their arrival.
    simulation
        Its batches; None if it had no request.
    noted
        What Vidur notes of each request.
    prefill_tokens
        Tokens of every batch that are prefill.
    """

    requests: tuple[Request, ...] = ()
    simulation: Simulation | None = None
    noted: tuple[VidurRequest, ...] = ()
    prefill_tokens: tuple[int, ...] = ()

    def batches(self) -> list[BatchRow]:
        """All batches in the order in which they were formed."""
        if self.simulation is None:
            return []
        schedule, names = self.simulation.schedule, [request.request_id for request in self.requests]
        pairs = zip(schedule.request.tolist(), schedule.tokens.tolist(), strict=True)
        entries = [(names[position], tokens) for position, tokens in pairs]
        offsets = schedule.first_entry.tolist()
        columns = self.prefill_tokens, self._decided_fs, schedule.end_ns.tolist()
        return [
            BatchRow(tuple(entries[offsets[j] : offsets[j + 1]]), *row)
            for j, row in enumerate(zip(*columns, strict=True))
        ]

    def waiting_at(self, time_fs: int) -> int:
        """Requests in the queue just before a time: what the last batch left there, and later arrivals."""
        if self.simulation is None:
            return 0
        last = bisect_left(self._decided_fs, time_fs) - 1
        if last < 0:
            return len(self.requests)
        later = (request.arrival_ns > self._decided_fs[last] for request in self.requests)
        return int(self.simulation.num_waiting[last]) + sum(later)

    def unfinished_at(self, time_fs: int) -> int:
        """Requests that have not finished at a time."""
        return sum(request.completed_fs is None or request.completed_fs > time_fs for request in self.noted)

    @cached_property
    def _decided_fs(self) -> list[int]:
        return [] if self.simulation is None else self.simulation.decided_ns.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Replicas that are all alike.

    Attributes
    ----------
    count
        How many.
    """

    count: int
    policy: Policy
    limits: Limits
    tables: VidurTables
    emulate_bugs: bool

    def run(self, requests: Sequence[Request]) -> ReplicaRun:
        """Simulate one of them.

        Raises
        ------
        NotSimulatedError
            If a request does not fit the device.
        PolicyError
            If the policy gets stuck, as Vidur would.
        """
        if not requests:
            return ReplicaRun()
        # The machine prices the batches; an instance has to have a cost all the same.
        cost = CostModel(name="vidur-tables", step=Fraction(1))
        instance = Instance(requests=tuple(requests), limits=self.limits, cost=cost)
        rejections = instance.split_rejected()[1]
        if rejections:
            raise NotSimulatedError(rejections[0].reason)
        machine = VidurMachine(requests, self.tables, emulate_bugs=self.emulate_bugs)
        simulation = simulate(instance, self.policy, machine=machine)
        return ReplicaRun(
            requests=tuple(instance.requests),
            simulation=simulation,
            noted=tuple(machine.requests),
            prefill_tokens=tuple(machine.prefill_tokens),
        )

    def run_round_robin(self, requests: Sequence[Request]) -> list[ReplicaRun]:
        """Request k goes to replica k modulo their number."""
        return [self.run(requests[number :: self.count]) for number in range(self.count)]

    def run_least_outstanding(self, requests: Sequence[Request]) -> list[ReplicaRun]:
        """Each request goes to the first of the replicas with the fewest outstanding requests.

        With Vidur's bug only those in the queue count, so that idle and busy replicas are alike.
        """
        runs = [ReplicaRun() for _ in range(self.count)]
        for request in requests:
            count = ReplicaRun.waiting_at if self.emulate_bugs else ReplicaRun.unfinished_at
            chosen = min(range(self.count), key=lambda number: count(runs[number], request.arrival_ns))
            runs[chosen] = self.run((*runs[chosen].requests, request))
        return runs
