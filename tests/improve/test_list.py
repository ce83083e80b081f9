"""List scheduling by keys: what the compiled code states is what the referee finds, and rules hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import InputError, UsageError
from cspsched.exact.heuristics.list_schedule import list_schedule
from cspsched.improve.list_scheduler import ListScheduler
from cspsched.improve.moves import Moves, plan_of, ranked, start_shapes, steady_pace
from cspsched.improve.pauses import may_pause
from cspsched.improve.plan import MOST_DOUBLINGS, SHORTEST_FILL, Knobs, Pause, Plan, Shape
from cspsched.problem.cost import PiecewiseLinear
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.referee.runs import measure_runs
from tests.support.instances import instance_of, mixed, waves

OPEN = Knobs(seats=10**6, fill_tokens=10**6, longest_chunk=10**6)


def plan_with(scheduler: ListScheduler, knobs: Knobs, keys=None, delay_ns=None, doublings=None) -> Plan:
    count = scheduler.num_requests
    return Plan(
        knobs=knobs,
        keys=np.arange(count, dtype=np.float64) if keys is None else np.asarray(keys, dtype=np.float64),
        delay_ns=np.zeros(count, dtype=np.int64) if delay_ns is None else np.asarray(delay_ns),
        chunk_doublings=np.zeros(count, dtype=np.int8) if doublings is None else np.int8(doublings),
    )


@st.composite
def plans(draw):
    """An instance with some switches off, and any plan for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    block_tokens, count = draw(st.sampled_from([1, 4, 16])), draw(st.integers(1, 12))
    span = draw(st.sampled_from([0, 10**9, 10**10]))
    shapes = [
        (int(rng.integers(1, 40)), int(rng.integers(1, 20)), int(rng.integers(0, span + 1)))
        for _ in range(count)
    ]
    chunked = draw(st.booleans())
    instance = instance_of(
        shapes,
        kv_blocks=draw(st.integers(-(-60 // block_tokens), 200 // block_tokens)),
        block_tokens=block_tokens,
        max_batch_tokens=draw(st.integers(40 if not chunked else 1, 80)),
        max_batch_requests=draw(st.integers(1, 12)),
        switches=Switches(
            chunked_prefill=chunked,
            holding=draw(st.booleans()),
            reservation=draw(st.booleans()),
            preemption=draw(st.sampled_from([Preemption.NONE, Preemption.RECOMPUTE])),
        ),
    )
    knobs = Knobs(
        seats=draw(st.integers(1, 12)),
        fill_tokens=draw(st.integers(1, 80)),
        longest_chunk=draw(st.integers(1, 40)),
        depth=draw(st.integers(1, 6)),
        pace=draw(st.sampled_from([0, 0, 1500, 10_000])),
    )
    delay_ns = rng.integers(0, 10**9, count) * (rng.random(count) < 0.3)
    doublings = rng.integers(-MOST_DOUBLINGS, MOST_DOUBLINGS + 1, count, dtype=np.int8)
    return instance, Plan(knobs=knobs, keys=rng.random(count), delay_ns=delay_ns, chunk_doublings=doublings)


@st.composite
def paused_plans(draw):
    """An instance in which the search may preempt, and a plan that does so."""
    instance, plan = draw(plans())
    free = replace(
        instance.switches, chunked_prefill=True, reservation=False, preemption=Preemption.RECOMPUTE
    )
    instance = replace(instance, switches=free)
    outputs = ListScheduler(instance, Objective.LATENCY).output_tokens.tolist()
    pauses = tuple(
        Pause(request, draw(st.integers(1, output - 1)), draw(st.integers(0, 9)))
        for request, output in enumerate(outputs)
        if output > 1 and draw(st.booleans())
    )
    return instance, replace(plan, pauses=pauses)


@given(paused_plans())
def test_every_plan_with_preemptions_is_a_feasible_schedule_of_the_stated_value(drawn):
    """The referee accepts it, finds each preemption where it was planned, and measures the same value."""
    instance, plan = drawn
    for objective in Objective:
        scheduler = ListScheduler(instance, objective)
        value_ns = scheduler.value_ns(plan)
        schedule = scheduler.schedule(plan)

        assert may_pause(instance)
        assert find_violations(instance, schedule) == []
        assert measure(instance, schedule).objective_ns(objective) == value_ns
        metrics = measure_runs(instance, schedule)
        assert metrics is not None
        assert metrics.objective_ns(objective) == value_ns
        evicted = sorted(schedule.evicted_request.tolist())
        assert evicted == sorted(scheduler.order[[pause.request for pause in plan.pauses]].tolist())
        assert np.all(np.diff(schedule.evicted_batch) >= 0)


def test_a_preempted_request_sits_out_as_long_as_others_run():
    """One of two requests is preempted after 2 tokens for 3 batches; alone it would go on at once."""
    for hold_batches, count, gap in ((0, 2, 1), (3, 2, 4), (3, 1, 1)):
        instance = instance_of([(4, 9)] * count, kv_blocks=100)
        scheduler = ListScheduler(instance, Objective.LATENCY)
        plan = replace(plan_with(scheduler, OPEN), pauses=(Pause(0, 2, hold_batches),))
        schedule = scheduler.schedule(plan)
        own = schedule.request == 0

        assert schedule.tokens[own].tolist()[:3] == [4, 1, 6]
        assert np.diff(schedule.batch_of_entry[own]).tolist()[:2] == [1, gap]
        assert schedule.evicted_batch.tolist() == [2]


def test_a_preemption_after_the_last_token_is_refused():
    """A plan for other requests is not run."""
    scheduler = ListScheduler(instance_of([(4, 2)], kv_blocks=100), Objective.LATENCY)
    with pytest.raises(InputError, match="after its last token"):
        scheduler.value_ns(replace(plan_with(scheduler, OPEN), pauses=(Pause(0, 2, 0),)))


@pytest.mark.parametrize(
    "switches",
    [
        Switches(preemption=Preemption.NONE),
        Switches(preemption=Preemption.SWAP),
        Switches(chunked_prefill=False),
        Switches(reservation=True),
    ],
)
def test_nobody_is_preempted_where_that_is_forbidden(switches):
    """The search plans preemptions only if recomputing is allowed, in chunks, and nothing is reserved."""
    assert not may_pause(replace(mixed(arrivals=False), switches=switches))


def test_moves_preempt_in_their_window_and_within_the_output():
    """Each request is preempted once at most, before its last token; now and then one is so no longer."""
    instance = mixed(arrivals=False)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    moves = Moves(scheduler, instance.limits, Objective.LATENCY, pauses=True)
    plan, rng, counts = plan_with(scheduler, OPEN), np.random.default_rng(0), []
    for _ in range(500):
        plan = moves.change(plan, rng, (10, 20), 1e9)
        requests = [pause.request for pause in plan.pauses]
        counts.append(len(requests))

        assert requests == sorted(set(requests))
        assert set(requests) <= set(range(10, 20))
        assert all(1 <= pause.tokens < scheduler.output_tokens[pause.request] for pause in plan.pauses)
        assert all(pause.hold_batches >= 0 for pause in plan.pauses)
    assert min(np.diff(counts)) == -1


@given(plans())
def test_every_plan_is_a_feasible_schedule_of_the_stated_value(drawn):
    """Whatever the keys, delays and knobs, the referee accepts the schedule and measures the same value."""
    instance, plan = drawn
    for objective in Objective:
        scheduler = ListScheduler(instance, objective)
        value_ns = scheduler.value_ns(plan)
        schedule = scheduler.schedule(plan)

        assert find_violations(instance, schedule) == []
        assert measure(instance, schedule).objective_ns(objective) == value_ns


@pytest.mark.parametrize("arrivals", [False, True])
def test_one_order_gives_the_schedule_of_the_clear_list_scheduler(arrivals):
    """With all knobs open and prompts in one piece it is the schedule of `exact.heuristics.list_schedule`."""
    instance = mixed(arrivals=arrivals, kv_blocks=200)
    scheduler = ListScheduler(instance, Objective.MAKESPAN)
    keys = np.random.default_rng(1).permutation(len(instance.requests))
    order = scheduler.order[np.argsort(keys)].tolist()
    whole = replace(instance, switches=Switches(chunked_prefill=False))
    ours = ListScheduler(whole, Objective.MAKESPAN).schedule(plan_with(scheduler, OPEN, keys))
    clear = list_schedule(whole, order)

    assert np.array_equal(ours.end_ns, clear.end_ns)
    assert np.array_equal(ours.first_entry, clear.first_entry)


def test_nobody_is_admitted_before_its_delay_is_over():
    """A delay holds a request back even if the device is idle."""
    instance = instance_of([(4, 2)], kv_blocks=100)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    schedule = scheduler.schedule(plan_with(scheduler, OPEN, delay_ns=[12345]))

    assert schedule.start_ns[0] == 12345


def test_smaller_keys_go_first():
    """With one seat the requests run in the order of their keys."""
    instance = instance_of([(4, 2)] * 3, kv_blocks=100)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    schedule = scheduler.schedule(plan_with(scheduler, replace(OPEN, seats=1), keys=[2, 0, 1]))

    assert schedule.request.tolist() == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(("depth", "together"), [(1, False), (2, True)])
def test_depth_passes_over_who_does_not_fit(depth, together):
    """A small request passes a large one that does not fit beside the first, if the depth allows it."""
    instance = instance_of([(6, 4), (9, 2), (1, 2)], kv_blocks=12)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    schedule = scheduler.schedule(plan_with(scheduler, replace(OPEN, depth=depth)))

    assert (2 in schedule.request[: schedule.first_entry[1]].tolist()) == together


def test_the_pace_keeps_admissions_apart():
    """At a pace of 3000 a request is admitted in every third batch."""
    instance = instance_of([(2, 20)] * 4, kv_blocks=1000)
    scheduler = ListScheduler(instance, Objective.MAKESPAN)
    schedule = scheduler.schedule(plan_with(scheduler, replace(OPEN, pace=3000)))
    first = [int(schedule.batch_of_entry[schedule.request == i].min()) for i in range(4)]

    assert first == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("fill_tokens", "doublings", "chunks"),
    [
        (32, 0, [32, 32, 16]),
        (32, 1, [64, 16]),
        (32, 2, [80]),
        (32, -1, [16] * 5),
        (32, -2, [SHORTEST_FILL] * 5),
        (4, -2, [4] * 20),
    ],
)
def test_doublings_lengthen_and_shorten_the_chunks_of_a_request(fill_tokens, doublings, chunks):
    """Alone a prompt of 80 tokens fills batches to the knob, twice or half as far, not below the shortest."""
    instance = instance_of([(80, 2)], kv_blocks=100, max_batch_tokens=100)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    plan = plan_with(scheduler, replace(OPEN, fill_tokens=fill_tokens), doublings=[doublings])

    assert scheduler.schedule(plan).tokens.tolist() == [*chunks, 1]


def test_decodes_count_in_what_prefill_fills():
    """Beside three decodes a prompt gets the rest of the 20 tokens that batches are filled to, or of 40."""
    instance = instance_of([(4, 50)] * 3 + [(70, 1)], kv_blocks=400, max_batch_tokens=100)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    for doublings, chunks in ((0, [8, 17, 17, 17, 11]), (1, [28, 37, 5])):
        plan = plan_with(scheduler, replace(OPEN, fill_tokens=20), doublings=[0, 0, 0, doublings])
        schedule = scheduler.schedule(plan)

        assert schedule.tokens[schedule.request == 3].tolist() == chunks


def test_a_checkpoint_changes_nothing():
    """From a checkpoint in the middle the value is that of the run from the beginning."""
    instance = mixed(arrivals=True)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    plan = plan_with(scheduler, OPEN)
    start = scheduler.checkpoint(plan, int(scheduler.arrival_ns[20]))

    assert scheduler.value_of_first_ns(plan, start, len(instance.requests)) == scheduler.value_ns(plan)


def test_pacing_beats_waves_where_all_requests_are_alike():
    """E6 without reservation: spread over time the requests share the device, together they come in waves."""
    instance = replace(waves(20_000), switches=Switches())
    scheduler = ListScheduler(instance, Objective.MAKESPAN)
    together, apart = (
        scheduler.value_ns(plan_of(Shape(knobs=replace(OPEN, pace=pace)), scheduler)) for pace in (0, 28_500)
    )

    assert abs(steady_pace(scheduler, instance.limits) - 27_828) <= 1
    assert apart < 0.7 * together


def test_ranks_keep_the_order():
    """Ranked keys give the same schedule."""
    instance = mixed(arrivals=True)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    for shape in start_shapes(scheduler, instance.limits, Objective.LATENCY):
        plan = plan_of(shape, scheduler)

        assert scheduler.value_ns(ranked(plan)) == scheduler.value_ns(plan)


def test_moves_stay_in_their_window():
    """Keys and delays outside of the window, and the knobs, are left alone; delays are never negative."""
    instance = mixed(arrivals=True)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    moves, rng = Moves(scheduler, instance.limits, Objective.LATENCY), np.random.default_rng(0)
    plan = plan_with(scheduler, OPEN)
    for _ in range(300):
        changed = moves.change(plan, rng, (10, 20), 1e9)

        assert np.array_equal(np.delete(changed.keys, slice(10, 20)), np.delete(plan.keys, slice(10, 20)))
        assert np.delete(changed.delay_ns, slice(10, 20)).max() == 0
        assert changed.delay_ns.min() >= 0
        assert changed.knobs == OPEN


def test_moves_change_chunks_in_their_window_and_within_the_limits():
    """Each number of doublings occurs, none beyond the most, and only where the moves were told so."""
    instance = mixed(arrivals=True)
    scheduler = ListScheduler(instance, Objective.LATENCY)
    for objective, chunks, seen in (
        (Objective.LATENCY, True, {-2, -1, 0, 1, 2}),
        (Objective.LATENCY, False, {0}),
        (Objective.MAKESPAN, True, {0}),
    ):
        moves, rng = Moves(scheduler, instance.limits, objective, chunks=chunks), np.random.default_rng(0)
        plan, found = plan_with(scheduler, OPEN), set()
        for _ in range(300):
            plan = moves.change(plan, rng, (10, 20), 1e9)
            found |= set(plan.chunk_doublings[10:20].tolist())

            assert not np.delete(plan.chunk_doublings, slice(10, 20)).any()
        assert found == seen


def test_shapes_fill_batches_to_the_knots_of_the_cost():
    """Where a batch of one token more costs a jump, that length is tried to the token."""
    instance = mixed(arrivals=True, count=5, max_batch_tokens=600)
    steps = PiecewiseLinear(knots=(0, 8, 256, 257, 512, 700), slopes=(1, 9, 900, 9, 20, 9))
    instance = replace(instance, cost=replace(instance.cost, tokens=steps))
    scheduler = ListScheduler(instance, Objective.LATENCY)
    moves, rng = Moves(scheduler, instance.limits, Objective.LATENCY), np.random.default_rng(0)
    shape = next(start_shapes(scheduler, instance.limits, Objective.LATENCY))
    tried = [moves.reshape(shape, rng).knobs.fill_tokens for _ in range(400)]

    assert {256, 257, 512} <= set(tried)
    assert not {0, 8, 700} & set(tried)


@given(st.integers(0, 2**32))
def test_reshaped_knobs_stay_within_the_limits(seed):
    """No shape asks for more seats or tokens than the instance has, or for none."""
    instance = mixed(arrivals=True, count=5)
    scheduler = ListScheduler(instance, Objective.MAKESPAN)
    moves, rng = Moves(scheduler, instance.limits, Objective.MAKESPAN), np.random.default_rng(seed)
    shape = next(start_shapes(scheduler, instance.limits, Objective.MAKESPAN))
    for _ in range(20):
        shape = moves.reshape(shape, rng)

        assert 1 <= shape.knobs.seats <= instance.limits.max_batch_requests
        assert 1 <= shape.knobs.fill_tokens <= instance.limits.max_batch_tokens


def test_batches_of_one_kind_only_are_refused():
    """The list scheduler mixes prefill and decode, and says so where that is forbidden."""
    instance = instance_of([(4, 2)], kv_blocks=100, switches=Switches(hybrid_batches=False))
    with pytest.raises(UsageError, match="hybrid"):
        ListScheduler(instance, Objective.LATENCY)


def test_senseless_knobs_are_refused():
    """A list schedule without seats is none."""
    with pytest.raises(InputError, match="seats is 0, expected at least 1"):
        replace(OPEN, seats=0)
