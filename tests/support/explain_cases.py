"""Small instances with all freedoms but some kind of preemption, and policies' runs on them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from cspsched.improve.rivals import Rival, run_rivals
from cspsched.problem.instance import Instance, Switches
from cspsched.problem.objectives import AnyObjective, Objective
from tests.support.strategies import instances

OBJECTIVES = st.sampled_from(list(Objective))


@st.composite
def free_instances(draw: st.DrawFn) -> Instance:
    """Tiny instances whose only switch is preemption, and all requests of which can be served."""
    instance = draw(instances(fewest_requests=2))
    switches = Switches(preemption=instance.switches.preemption)
    limits = replace(instance.limits, max_model_len=None)
    return replace(instance, switches=switches, limits=limits)


def run(instance: Instance, policy: str, objective: AnyObjective = Objective.LATENCY) -> Rival:
    """What a policy reaches."""
    return run_rivals(instance, objective, [policy], lambda _: None)[0]
