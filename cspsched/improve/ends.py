"""Lower ends of brackets for every objective, and what is known about the room between the ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cspsched.bounds import best_bound
from cspsched.bounds.certificate import Certificate
from cspsched.exact.closed_form import closed_form_bound
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective, Measure, Mixture, Objective


@dataclass(frozen=True, kw_only=True)
class LowerEnd:
    """A proven bound on a mixture, in its unit, and the theorem behind it."""

    name: str
    value_ns: int


def lower_end(
    instance: Instance, objective: AnyObjective, *, time_left: Callable[[], float] | None = None
) -> Certificate | LowerEnd:
    """The best proven bound on an objective of an instance whose requests all fit, in the time there is."""
    if isinstance(objective, Objective):
        return best_bound(instance, objective, time_left=time_left)
    bound = closed_form_bound(instance, objective)
    return LowerEnd(name=bound.name, value_ns=bound.value_ns)


WHY_OPEN = {
    Measure.MAKESPAN: (
        "L packs memory, tokens and seats without waste and knows idle time only before the last arrivals; "
        "U is the best order found"
    ),
    Measure.LATENCY: (
        "mostly L: it shares a batch's fixed cost out, or lets a request wait for half of the others' "
        "prefills, while in a schedule every request waits for all of each of its batches"
    ),
    Measure.TTFT: (
        "L is one machine that serves the shortest first and stops at will: it neither waits for the batch "
        "at hand nor serves the decodes that run beside"
    ),
    Measure.TPOT: (
        "L lets each request decode alone, and serving one request at a time does; so the optimum is no way "
        "to serve, and is to be read beside the latency"
    ),
    Measure.MISSES: (
        "L drops all arrivals but the first before it counts who must be late, so that early spare time may "
        "serve late requests; U was searched by latency and TTFT, not by limits"
    ),
}
"""What is left between the ends, by measure."""
SAME_REASON = {
    Measure.MEAN_LATENCY: Measure.LATENCY,
    Measure.MEAN_TTFT: Measure.TTFT,
    Measure.MEAN_TPOT: Measure.TPOT,
    Measure.WEIGHTED_MISSES: Measure.MISSES,
}
OTHER_REASON = "where L takes requests as alone, no request waits in it; U was searched by latency and TTFT"


def why_open(objective: AnyObjective) -> str:
    """Where the rest of the gap is, in a sentence."""
    if isinstance(objective, Mixture) and len(objective.terms) > 1:
        return OTHER_REASON
    measure = Measure(objective.value) if isinstance(objective, Objective) else objective.terms[0].measure
    return WHY_OPEN.get(SAME_REASON.get(measure, measure), OTHER_REASON)
