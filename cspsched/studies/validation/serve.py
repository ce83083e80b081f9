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
from cspsched.serving import Serving, make_instance
from cspsched.simulate import Policy, Replica, Simulation, new_replica, simulate
from cspsched.simulate.closed_loop import ClosedLoop
from cspsched.simulate.served import as_served
from cspsched.studies.validation.load import num_prompts, offsets_ns, requests_of
from cspsched.studies.validation.nouns import Arrivals, Stage, Times
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

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
    """Times of requests with arrivals, as the client sees them."""
    instance = _instance(server, requests)
    return _times(server, _metrics(instance, simulate(instance, server.policy), judged=True))


def serve_stages(server: Server, stages: Sequence[Stage], seed: int) -> list[Times]:
    """Times of the requests of each stage, one stage after another on one server.

    The referee derives all times again. Its rules, whose look at shared blocks takes ten times as long as the
    simulation, are asked of the first seed.
    """
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
