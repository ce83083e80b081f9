"""The same server simulated: stage after stage, requests in flight kept at a number, or single requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cspsched.costs.frontend import Frontend
from cspsched.errors import UsageError
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.referee.judge import judge
from cspsched.referee.metrics import Metrics, measure
from cspsched.serving import Serving, hardware, make_instance
from cspsched.simulate import Policy, Replica, Simulation, new_replica, simulate
from cspsched.simulate.closed_loop import ClosedLoop
from cspsched.simulate.served import as_served
from cspsched.studies.validation.load import num_prompts, offsets_ns, requests_of
from cspsched.studies.validation.nouns import Arrivals, Stage, Times
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

WAITING_WEIGHT = 4
PAUSE_NS = NS_PER_S
"""Between the last token of a stage and the next stage; inference-perf looks for the end once a second."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What is simulated.

    Attributes
    ----------
    arrivals, prompts
        What was asked for in place of what the stages say; None if nothing.
    frontend
        What is added to the times of a client, if anything.
    """

    serving: Serving
    policy: Policy
    arrivals: Arrivals | None = None
    prompts: int | None = None
    frontend: Frontend | None = None

    @property
    def added_ns(self) -> int:
        """What a client waits for around the schedule."""
        return 0 if self.frontend is None else self.frontend.added_ns


def serve_requests(server: Server, requests: Sequence[Request]) -> Times:
    """Times of requests with arrivals, as the client sees them.

    Groups of data parallelism do not wait for each other; the cost model takes their batches as equal.
    """
    members = _groups(server, requests)
    parts = []
    for positions in members:
        instance = _instance(server, [requests[position] for position in positions])
        simulation = simulate(instance, server.policy)
        parts.append(_times(server, _metrics(instance, simulation, judged=True)))
    return Times.joined(parts, np.argsort(np.concatenate(members), kind="stable"))


def _groups(server: Server, requests: Sequence[Request]) -> list[list[int]]:
    """Requests of each group that is served by ranks of its own, by position.

    A request goes to the group with the least of four times its waiting and once its running requests, of
    several to the one after the last (vLLM's `DPLBAsyncMPClient`; its counts are up to 100 ms old, ours are
    not).
    """
    number = hardware(server.serving).parallelism.data
    if number == 1:
        return [list(range(len(requests)))]
    instance = _instance(server, requests)
    replicas = [new_replica(instance, server.policy) for _ in range(number)]
    members: list[list[int]] = [[] for _ in replicas]
    first = 0
    for position in np.argsort(instance.columns.arrival_ns, kind="stable").tolist():
        loads = []
        for replica in replicas:
            replica.advance(requests[position].arrival_ns)
            loads.append(WAITING_WEIGHT * replica.view.num_waiting + replica.view.num_running)
        chosen = min(range(number), key=lambda group: (loads[group], (group - first) % number))
        replicas[chosen].submit(position)
        members[chosen].append(position)
        first = chosen + 1
    return members


def serve_stages(server: Server, stages: Sequence[Stage], seed: int) -> list[Times]:
    """Times of the requests of each stage, one stage after another on one server.

    The referee derives all times again. Its rules, whose look at shared blocks takes ten times as long as the
    simulation, are asked of the first seed.

    Raises
    ------
    UsageError
        With several groups of data parallelism.
    """
    if (groups := hardware(server.serving).parallelism.data) > 1:
        raise UsageError(
            f"data_parallel is {groups}, and stages are offered to one group; give the load of one, with "
            "data_parallel 1"
        )
    rng = np.random.default_rng(seed)
    parts = [
        requests_of(stage, num_prompts(stage, server.prompts), f"s{number}", rng)
        for number, stage in enumerate(stages)
    ]
    instance = _instance(server, [request for part in parts for request in part])
    replica, arrivals = new_replica(instance, server.policy), np.zeros(len(instance.requests), dtype=np.int64)
    first, begin_ns = 0, 0
    for stage in stages:
        end = first + stage.num_requests
        arrivals[first:end] = begin_ns
        if stage.concurrency is None:
            arrivals[first:end] += offsets_ns(stage, server.arrivals, rng)
        loop = ClosedLoop(
            sessions=[[request] for request in range(first, end)],
            concurrency=stage.concurrency,
            added_ns=server.added_ns,
        )
        loop.serve(replica, arrivals)
        begin_ns, first = _drained_ns(replica, int(arrivals[end - 1])) + PAUSE_NS, end
    served = _with_arrivals(instance, arrivals)
    times = _times(server, _metrics(served, replica.finish(), judged=seed == 0))
    ends = np.cumsum([stage.num_requests for stage in stages]).tolist()
    return [times.part(end - stage.num_requests, end) for stage, end in zip(stages, ends, strict=True)]


def _drained_ns(replica: Replica, from_ns: int) -> int:
    """When all that was submitted has finished, to the second, as a client looks for it."""
    now_ns = from_ns
    while replica.next_event_ns is not None:
        now_ns += NS_PER_S
        replica.advance(now_ns)
    return now_ns


def _instance(server: Server, requests: Sequence[Request]) -> Instance:
    trace = Trace(name="measured", format="generated", requests=tuple(requests))
    instance, rejections = make_instance(trace, server.serving).split_rejected()
    if rejections:
        raise UsageError(f"{rejections[0].reason}; the deployment is not that of the run, correct its limits")
    return instance


def _with_arrivals(instance: Instance, arrivals: IntArray) -> Instance:
    pairs = zip(instance.requests, arrivals.tolist(), strict=True)
    return replace(instance, requests=tuple(replace(one, arrival_ns=at_ns) for one, at_ns in pairs))


def _metrics(instance: Instance, simulation: Simulation, *, judged: bool) -> Metrics:
    """What the referee says of it; that no rule is broken only where it is asked."""
    served, schedule = as_served(instance, simulation)
    if not judged:
        return measure(served, schedule)
    verdict = judge(served, schedule)
    if verdict.violations:
        raise UsageError(
            f"policy {simulation.policy} does what the deployment does not allow: "
            f"{verdict.violations[0].message}"
        )
    return verdict.metrics


def _times(server: Server, metrics: Metrics) -> Times:
    arrival = metrics.arrival_ns.astype(np.float64)
    return Times(
        arrival=arrival / NS_PER_S,
        first_token=(arrival + metrics.ttft_ns + server.added_ns) / NS_PER_S,
        last_token=(arrival + metrics.latency_ns + server.added_ns) / NS_PER_S,
        outputs=metrics.output_tokens,
    )
