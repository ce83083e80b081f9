"""Policies beside vLLM V0 that swap: FastServe at its edges, and the referee on whatever it does."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.bounds import certificates
from cspsched.errors import CspschedError
from cspsched.policies.base import make_policy
from cspsched.policies.fastserve import Fastserve, FastserveSettings
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.simulate import LivelockError, PolicyError, simulate
from tests.support.policy_runs import batches, evictions, run, schedule_or_error
from tests.support.strategies import check, feasible_runs
from tests.support.swap_cases import instance_of, with_swap
from tests.support.tight_instances import instances

QUICK = "fastserve:quantum_ms=0.000001"
"""A quantum of 1 ns, a batch of the tests."""


def test_fastserve_swaps_where_the_instance_does() -> None:
    """r1 arrives, is ahead of r0 and needs its memory; r0 goes on without a refill."""
    rows = [(4, 8), (4, 2, 3)]
    swaps, recomputes = (
        run(QUICK, instance_of(*rows, kv_blocks=11, preemption=preemption))
        for preemption in (Preemption.EITHER, Preemption.RECOMPUTE)
    )

    assert swaps.schedule.evicted_to_host.tolist() == [1] * swaps.schedule.num_preemptions
    assert swaps.schedule.num_preemptions > 0
    assert sum(swaps.schedule.tokens.tolist()) == 11 + 5 < sum(recomputes.schedule.tokens.tolist())


@pytest.mark.parametrize("missing", [0, 1])
def test_fastserve_recomputes_whom_host_memory_has_no_room_for(missing: int) -> None:
    """Host memory as large as the first victim's KV cache holds it; one block less, and it is dropped."""
    rows = [(4, 8), (4, 2, 3)]
    ample = run(QUICK, instance_of(*rows, kv_blocks=11)).schedule
    victim, batch = int(ample.evicted_request[0]), int(ample.evicted_batch[0])
    held = int(ample.kv_tokens[(ample.request == victim) & (ample.batch_of_entry < batch)][-1])
    tight = run(QUICK, instance_of(*rows, kv_blocks=11, host=held - missing)).schedule

    assert held > 1
    assert (tight.evicted_batch[0], tight.evicted_request[0]) == (batch, victim)
    assert tight.evicted_to_host[0] == 1 - missing


def test_fastserve_refuses_to_drop_what_may_only_be_swapped() -> None:
    """With swap alone and no host memory there is no way to make room."""
    instance = instance_of((4, 8), (4, 2, 3), kv_blocks=11, host=0, preemption=Preemption.SWAP)
    message = r"'r0' is swapped out with \d KV blocks to host memory, 0 of 0 are free"
    with pytest.raises(PolicyError, match=message):
        simulate(instance, make_policy(QUICK))


def test_fastserve_starts_no_prompt_while_host_memory_is_short() -> None:
    """All host blocks but one are taken: of ten that is a tenth, which is enough; of eleven it is not."""
    starts = {}
    for host in (10, 11):
        # r0 makes room for r1 after two batches, with all but one of the host blocks; then r2 comes.
        rows = [(host - 2, 8), (8, 5, 2), (1, 1, 3)]
        simulation = run(QUICK, instance_of(*rows, kv_blocks=16, host=host))

        assert batches(simulation)[:3] == [[(0, host - 2)], [(0, 1)], [(1, 8)]]
        assert (evictions(simulation)[0], simulation.schedule.evicted_to_host[0]) == ((2, 0), 1)
        starts[host] = batches(simulation)[3]

    assert starts == {10: [(1, 1), (2, 1)], 11: [(1, 1)]}


swap_instances = st.builds(
    with_swap,
    instances(),
    st.integers(0, 60),
    preemption=st.sampled_from([Preemption.SWAP, Preemption.EITHER]),
    swap_block=st.sampled_from([0, Fraction(5, 3)]),
)
settings = st.builds(
    FastserveSettings,
    quantum_ms=st.sampled_from([0.000005, 0.00002, 0.001]),
    starvation_period=st.sampled_from([10, 1000]),
    starvation_threshold_ms=st.sampled_from([0.001, 3000.0]),
    max_batch_size=st.none() | st.integers(1, 4),
)


@check
@given(swap_instances, settings)
def test_fastserve_with_swap_breaks_no_rule(instance: Instance, settings: FastserveSettings) -> None:
    """Whatever is evicted, moved and brought back: the referee finds nothing."""
    ours = schedule_or_error(instance, Fastserve(settings))
    if isinstance(ours, CspschedError):
        is_full = "KV blocks to host memory" in str(ours) and not instance.switches.preemption.recomputes
        assert is_full or isinstance(ours, LivelockError)
        return

    assert find_violations(instance, ours.schedule) == []


@pytest.mark.parametrize("objective", Objective)
def test_no_bound_is_above_a_schedule_with_swap(objective: Objective) -> None:
    """Moves are free here, so that a schedule may gain by swap whatever can be gained."""

    @check
    @given(feasible_runs())
    def holds(drawn) -> None:  # type: ignore[no-untyped-def]
        instance, schedule = drawn
        free = replace(instance, cost=replace(instance.cost, swap_block=Fraction(0)))
        value = measure(instance, schedule).objective_ns(objective)

        for certificate in certificates(free, objective):
            assert certificate.value_ns <= value

    holds()
