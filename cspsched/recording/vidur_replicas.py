"""Replicas of a recorded run of Vidur, and which of them gets a request.

Round robin looks at nothing but the number of a request. LOR ("least outstanding requests") looks at the
replicas at the request's arrival, to which they are advanced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cspsched.costs.vidur_tables import VidurTables
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.vidur_case import BatchRow
from cspsched.recording.vidur_machine import VidurMachine, VidurRequest
from cspsched.simulate import Policy, ReplicaView, Simulation
from cspsched.simulate.kernel import KernelReplica


@dataclass(frozen=True, kw_only=True)
class ReplicaRun:
    """What a replica made of its requests. Times in femtoseconds.

    Attributes
    ----------
    requests
        In the order of their arrival.
    names
        Of all requests of the trace.
    simulation
        Its batches; requests are positions in the whole trace.
    noted
        What Vidur notes of each request.
    prefill_tokens
        Tokens of every batch that are prefill.
    """

    requests: tuple[Request, ...]
    names: tuple[str, ...]
    simulation: Simulation
    noted: tuple[VidurRequest, ...]
    prefill_tokens: tuple[int, ...]

    def batches(self) -> list[BatchRow]:
        """All batches in the order in which they were formed."""
        schedule = self.simulation.schedule
        pairs = zip(schedule.request.tolist(), schedule.tokens.tolist(), strict=True)
        entries = [(self.names[position], tokens) for position, tokens in pairs]
        offsets = schedule.first_entry.tolist()
        columns = self.prefill_tokens, self.simulation.decided_ns.tolist(), schedule.end_ns.tolist()
        return [
            BatchRow(tuple(entries[offsets[j] : offsets[j + 1]]), *row)
            for j, row in enumerate(zip(*columns, strict=True))
        ]


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

    def run_round_robin(self, requests: Sequence[Request]) -> list[ReplicaRun]:
        """Request k goes to replica k modulo their number.

        Raises
        ------
        NotSimulatedError
            If a request does not fit the device.
        PolicyError
            If the policy gets stuck, as Vidur would.
        """
        return self._run(requests, lambda number, _: number % self.count)

    def run_least_outstanding(self, requests: Sequence[Request]) -> list[ReplicaRun]:
        """Each request goes to the first of the replicas with the fewest outstanding requests.

        With Vidur's bug only those in the queue count, so that idle and busy replicas are alike. Errors as
        `run_round_robin`.
        """

        def count(view: ReplicaView) -> int:
            return view.num_waiting if self.emulate_bugs else len(view.outstanding)

        def choose(number: int, replicas: Sequence[KernelReplica]) -> int:
            for replica in replicas:
                replica.advance(requests[number].arrival_ns)
            counts = [count(replica.view) for replica in replicas]
            return counts.index(min(counts))

        return self._run(requests, choose)

    def _run(
        self, requests: Sequence[Request], choose: Callable[[int, Sequence[KernelReplica]], int]
    ) -> list[ReplicaRun]:
        # The machine prices the batches; an instance has to have a cost all the same.
        cost = CostModel(name="vidur-tables", step=Fraction(1))
        instance = Instance(requests=tuple(requests), limits=self.limits, cost=cost)
        rejections = instance.split_rejected()[1]
        if rejections:
            raise NotSimulatedError(rejections[0].reason)
        machines = [
            VidurMachine(requests, self.tables, emulate_bugs=self.emulate_bugs) for _ in range(self.count)
        ]
        replicas = [KernelReplica(instance, self.policy, plain=True, machine=machine) for machine in machines]
        parts: list[list[int]] = [[] for _ in replicas]
        for number in range(len(requests)):
            chosen = choose(number, replicas)
            replicas[chosen].submit(number)
            parts[chosen].append(number)
        names = tuple(request.request_id for request in requests)
        return [
            ReplicaRun(
                requests=tuple(requests[number] for number in part),
                names=names,
                simulation=replica.finish(),
                noted=tuple(machine.requests[number] for number in part),
                prefill_tokens=tuple(machine.prefill_tokens),
            )
            for replica, machine, part in zip(replicas, machines, parts, strict=True)
        ]
