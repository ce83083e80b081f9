"""Closed loops without a replica: the whole trace is simulated anew whenever another arrival is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cspsched.problem.instance import Instance
from cspsched.simulate import Engine, Policy, Simulation, simulate

FAR_NS = 10**15
"""Requests whose arrival is not known yet come then, when all others have long ended."""


def naive_loop(
    instance: Instance, policy: Policy, sessions: Sequence[Sequence[int]], concurrency: int | None
) -> tuple[list[int], Simulation]:
    """Arrivals that come about, and the run with them.

    What has not arrived changes nothing before, so the earliest end of a run is final once all arrivals up to
    it are known.
    """
    requests = instance.requests
    arrivals = [FAR_NS + i for i in range(len(requests))]
    begun = len(sessions) if concurrency is None else concurrency
    for turns in sessions[:begun]:
        arrivals[turns[0]] = requests[turns[0]].arrival_ns if concurrency is None else requests[0].arrival_ns
    unstarted, handled = [turns[0] for turns in sessions[begun:]], set[int]()
    while True:
        placed = tuple(replace(one, arrival_ns=at) for one, at in zip(requests, arrivals, strict=True))
        simulation = simulate(replace(instance, requests=placed), policy, Engine.PLAIN)
        schedule = simulation.schedule
        last_batch = dict(zip(schedule.request.tolist(), schedule.batch_of_entry.tolist(), strict=True))
        ends = sorted((int(schedule.end_ns[batch]), i) for i, batch in last_batch.items() if i not in handled)
        if not ends or ends[0][0] >= FAR_NS:
            return arrivals, simulation
        end_ns, request = ends[0]
        handled.add(request)
        (turns,) = (turns for turns in sessions if request in turns)
        place = turns.index(request)
        if place + 1 < len(turns):
            arrivals[turns[place + 1]] = end_ns + requests[turns[place + 1]].think_time_ns
        elif unstarted:
            arrivals[unstarted.pop(0)] = end_ns
