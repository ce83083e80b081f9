"""Counts of batches: their bound holds, their schedules are feasible, affine costs leave rounding only."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.members import Clock
from cspsched.exact.model.batch_counts import BATCH_COUNTS, CountSearch, CountTalk, can_count
from cspsched.exact.model.count_member import CountMember
from cspsched.exact.record import Proof, Record, best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits, Watch
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.exact_cases import run_to_completion, tiny_instances
from tests.support.instances import NO_PREEMPTION, RUN_TO_COMPLETION, instance_of

AFFINE = CostModel(
    name="affine",
    step=Fraction(50),
    prefill_batch=Fraction(20),
    decode_batch=Fraction(7, 2),
    prefill_request=Fraction(4),
    decode_request=Fraction(1, 3),
    tokens=PiecewiseLinear.linear(Fraction(9, 4)),
    prefill_attention=PiecewiseLinear.linear(Fraction(3, 2)),
    decode_context=PiecewiseLinear.linear(Fraction(1, 2)),
)


def record_of(instance, time_limit_s=60.0):
    """What is known before anybody has searched."""
    incumbent = best_incumbent(instance, Objective.MAKESPAN, list_schedules(instance))
    watch = Watch(SearchLimits(time_limit_s=time_limit_s), incumbent.value_ns, 0, None)
    return Record(instance, Objective.MAKESPAN, incumbent, Proof(dual_ns=0, certificate=""), watch)


@settings(max_examples=40, deadline=None)
@given(tiny_instances(switches=run_to_completion, arrivals=False))
def test_bound_holds_and_the_schedule_is_one(instance):
    """Any cost form, budget, seats, blocks, reservation: the optimum is between bound and value."""
    record = record_of(instance)
    optimum = exhaustive_optimum(instance)
    CountMember().run(record, Clock(record, SearchLimits()))
    record.check()

    assert record.proof.dual_ns <= optimum <= record.incumbent.value_ns


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4),
    st.integers(0, 8),
    st.integers(4, 9),
    st.integers(1, 3),
)
def test_affine_batch_times_are_settled_up_to_rounding(shapes, spare, budget, seats):
    """What is left between bound and value is the rounding of batch times, and the optimum is there."""
    peak = max(prompt + output - 1 for prompt, output in shapes)
    instance = instance_of(
        shapes,
        kv_blocks=peak + spare,
        max_batch_tokens=budget,
        max_batch_requests=seats,
        cost=AFFINE,
        switches=RUN_TO_COMPLETION,
    )
    record = record_of(instance)
    reason, details = CountMember().run(record, Clock(record, SearchLimits()))
    rounding = 13 * record.incumbent.schedule.num_batches

    assert record.is_closed or reason is StopReason.ROUNDING
    assert record.incumbent.value_ns - exhaustive_optimum(instance) <= rounding
    assert details["name"] == BATCH_COUNTS


def test_counts_beat_list_schedules_and_say_so():
    """Twenty requests, memory for 0.6 of their peaks: settled, where the model with times left 3 to 9 %."""
    rng = random.Random("completion-n20-s3")
    shapes = [(rng.randint(10, 60), rng.randint(5, 20)) for _ in range(20)]
    instance = instance_of(shapes, kv_blocks=525, switches=RUN_TO_COMPLETION)
    result = solve_exactly(instance, Objective.MAKESPAN, SearchLimits(time_limit_s=30.0))

    assert result.certificate == BATCH_COUNTS
    assert result.stop_reason in (StopReason.ROUNDING, StopReason.PROVEN)
    assert result.primal_ns - result.dual_ns <= 13 * result.schedule.num_batches
    assert result.violations() == []


def test_no_time_leaves_what_was_known():
    """Stopped at once, the bound is that of the KV volume and the incumbent is the first one."""
    instance = instance_of([(3, 5), (4, 6), (2, 7)], kv_blocks=14, switches=RUN_TO_COMPLETION)
    record = record_of(instance)
    first = record.incumbent
    bounds = []
    talk = CountTalk(
        watch=record.watch,
        time_left=lambda: 0.0,
        tell_bound=bounds.append,
        tell_schedule=lambda decisions: record.offer(BATCH_COUNTS, decisions),
    )
    search = CountSearch(instance, talk)

    assert not search.run()
    assert search.num_questions == 0
    assert len(bounds) == 1
    assert 0 < bounds[0] <= first.value_ns
    assert record.incumbent is first


@pytest.mark.parametrize(
    ("shapes", "switches", "known"),
    [
        ([(3, 5), (4, 6)], RUN_TO_COMPLETION, True),
        ([(3, 5), (4, 6, 9)], RUN_TO_COMPLETION, False),
        ([(3, 5), (4, 6)], NO_PREEMPTION, False),
        ([(3, 5), (4, 6)], Switches(), False),
        ([(1, 900)] * 10, RUN_TO_COMPLETION, False),
    ],
)
def test_counts_decide_only_where_everybody_starts_at_0_and_runs_to_completion(shapes, switches, known):
    """Elsewhere tokens are processed again, or requests wait for arrivals; long ones are too many."""
    assert can_count(instance_of(shapes, kv_blocks=1000, switches=switches)) == known
