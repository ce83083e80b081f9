"""A replica that is advanced piece by piece does what one does that knows all arrivals from the start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cspsched.errors import InfeasibleError, StuckError, UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.simulate import Engine, Policy, Replica, ReplicaView, Simulation, new_replica, simulate
from tests.support.kernel_cases import BY_REQUEST, REST, SETTINGS, digest, draw_case, draw_instance, outcome
from tests.support.scripted import LastFirst
from tests.support.strategies import EXAMPLES, make_instance
from tests.support.swap_cases import Chaotic, with_swap

ENGINES = [Engine.PLAIN, Engine.COMPILED]
COMPILED = ["vllm", "sarathi", "sglang", "sorted-f"]
"""One policy of every family of loops, as each loop is compiled for long."""


def by_arrival(instance: Instance) -> list[int]:
    """Requests in the order in which they can be submitted."""
    return sorted(range(len(instance.requests)), key=lambda i: instance.requests[i].arrival_ns)


def in_pieces(instance: Instance, replica: Replica, rng: random.Random) -> Simulation:
    """Submit request after request, some early, and advance in between to any times up to their arrivals."""
    for request in by_arrival(instance):
        arrival_ns = instance.requests[request].arrival_ns
        if rng.random() < 0.8:
            replica.advance(rng.randint(0, arrival_ns))
            replica.advance(arrival_ns)
            assert (replica.next_event_ns or arrival_ns) >= arrival_ns
        replica.submit(request)
    return replica.finish()


def serves(instance: Instance, policy: Policy) -> bool:
    """Whether a policy comes to an end."""
    return outcome(lambda: simulate(instance, policy))[0] == "simulation"


def pieces_differ(instance: Instance, new_policy: Callable[[], Policy], engine: Engine, seed: int) -> bool:
    """Whether a run in pieces, or its error, is another one than that of plain Python at once."""
    rng = random.Random(seed)
    whole = outcome(lambda: simulate(instance, new_policy(), Engine.PLAIN))
    return outcome(lambda: in_pieces(instance, new_replica(instance, new_policy(), engine), rng)) != whole


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, Engine.PLAIN) for name in [*SETTINGS, *BY_REQUEST, *REST]),
        *((name, Engine.COMPILED) for name in COMPILED),
    ],
)
def test_pieces_make_the_whole(name: str, engine: Engine) -> None:
    """Every policy: same batches, blocks, queue and evictions by hash, or the same error."""
    drawn = [(seed, draw_case(name, seed)) for seed in range(5000, 5000 + EXAMPLES // 8)]
    cases = [(seed, *case) for seed, case in drawn if case]

    assert len(cases) > EXAMPLES // 16
    assert any(serves(instance, policy) for _, instance, policy in cases)
    assert [
        seed
        for seed, instance, policy in cases
        if pieces_differ(instance, lambda policy=policy: policy, engine, seed)
    ] == []


@pytest.mark.parametrize(
    "new_policy",
    [
        lambda seed, instance: LastFirst(),
        lambda seed, instance: LastFirst(batches_in_flight=2),
        lambda seed, instance: LastFirst(batches_in_flight=3, decides_on_arrival=True),
        lambda seed, instance: Chaotic(instance, random.Random(seed)),
    ],
    ids=["one by one", "ahead", "at arrivals", "at random"],
)
def test_pieces_of_a_users_policy_make_the_whole(new_policy: Callable[[int, Instance], Policy]) -> None:
    """A policy that is asked for every batch: at once, ahead, at arrivals, with swap at random."""
    served = 0
    for seed in range(EXAMPLES // 4):
        instance = servable(seed)
        if instance is not None:
            served += serves(instance, new_policy(seed, instance))

            assert not pieces_differ(
                instance,
                lambda instance=instance, seed=seed: new_policy(seed, instance),
                Engine.PLAIN,
                seed,
            ), seed
    assert served > EXAMPLES // 8


def servable(seed: int) -> Instance | None:
    """What of a random instance can be served, with host memory; None if that is nothing."""
    instance = with_swap(draw_instance(random.Random(f"pieces {seed}")), 50, swap_block=3)
    try:
        return instance.split_rejected()[0]
    except InfeasibleError:
        return None


def part_of(instance: Instance, requests: list[int]) -> Instance:
    """The instance with some requests only, in this order."""
    return replace(instance, requests=tuple(instance.requests[i] for i in requests))


def naive_view(instance: Instance, policy: Policy, submitted: list[int], time_ns: int) -> ReplicaView | None:
    """The view by a new simulation of what was submitted; None where no batch runs over the time."""
    simulation = simulate(part_of(instance, submitted), policy)
    schedule, decided_ns = simulation.schedule, simulation.decided_ns
    last = int(np.searchsorted(decided_ns, time_ns)) - 1
    if last < 0 or schedule.end_ns[last] <= time_ns:
        return None
    finished, waiting = [], 0
    for place, request in enumerate(submitted):
        ends = schedule.end_ns[schedule.batch_of_entry[schedule.request == place]]
        finished += [request] * bool(ends[-1] <= time_ns)
        waiting += instance.requests[request].arrival_ns > decided_ns[last]
    left = [instance.requests[i] for i in submitted if i not in finished]
    num_decided = sum(instance.requests[i].arrival_ns <= decided_ns[last] for i in submitted)
    ended = int(decided_ns[last])
    gone = sum(
        schedule.end_ns[schedule.batch_of_entry[schedule.request == place]][-1] <= ended
        for place in range(len(submitted))
    )
    num_waiting = int(simulation.num_waiting[last])
    return ReplicaView(
        num_running=int(num_decided - gone - num_waiting),
        num_waiting=num_waiting + waiting,
        free_blocks=instance.limits.kv_blocks - int(simulation.held_blocks[last]),
        outstanding=tuple(i for i in submitted if i not in finished),
        outstanding_tokens=sum(one.prompt_tokens + one.output_tokens for one in left),
    )


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, Engine.PLAIN) for name in [*COMPILED, "srpt", "vtc", "vidur-sarathi"]),
        *((name, Engine.COMPILED) for name in COMPILED),
    ],
)
def test_routed_requests_run_as_if_they_were_alone(name: str, engine: Engine) -> None:
    """Three replicas share a trace at random; views and schedules are those of simulations of each part."""
    seen = 0
    for seed in range(max(12, EXAMPLES // 16)):
        case = draw_case(name, seed)
        if case is None or not serves(*case):
            continue
        instance, policy = case
        rng = random.Random(seed)
        replicas, parts = [new_replica(instance, policy, engine) for _ in range(3)], [[], [], []]
        for request in by_arrival(instance):
            arrival_ns, chosen = instance.requests[request].arrival_ns, rng.randrange(3)
            for replica, part in zip(replicas, parts, strict=True):
                replica.advance(arrival_ns)
                knows = bool(part) and serves(part_of(instance, part), policy)
                expected = naive_view(instance, policy, part, arrival_ns) if knows else None
                if expected:
                    assert replica.view == expected
                    seen += 1
            replicas[chosen].submit(request)
            parts[chosen].append(request)
        for replica, part in zip(replicas, parts, strict=True):
            if part and serves(part_of(instance, part), policy):
                alone = simulate(part_of(instance, part), policy)
                schedule = replace(alone.schedule, **positions(alone, np.array(part)))
                assert digest(replica.finish()) == digest(
                    replace(
                        alone, schedule=schedule, preempted=tuple((j, part[i]) for j, i in alone.preempted)
                    )
                )
    assert seen > 3


def positions(simulation: Simulation, part: np.ndarray) -> dict[str, np.ndarray]:
    """Columns that name requests, by their places in the whole trace."""
    names = ("request", "evicted_request", "restored_request", "hit_request")
    return {name: part[getattr(simulation.schedule, name)] for name in names}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_idle_replica_has_no_event(engine: Engine) -> None:
    """Nothing submitted, a request that comes, a batch that runs, all done."""
    instance = make_instance((3, 2), (4, 1), arrivals_ns=[10, 500], kv_blocks=20)
    replica = new_replica(instance, make_policy("vllm"), engine)
    free = ReplicaView(num_running=0, num_waiting=0, free_blocks=20, outstanding=(), outstanding_tokens=0)
    assert (replica.next_event_ns, replica.view) == (None, free)
    replica.submit(0)
    replica.advance(10)

    assert replica.next_event_ns == 10
    assert replica.view == replace(free, num_waiting=1, outstanding=(0,), outstanding_tokens=5)
    replica.advance(11)
    assert (replica.view.num_running, replica.view.num_waiting, replica.view.outstanding) == (1, 0, (0,))
    replica.advance(400)
    assert (replica.next_event_ns, replica.view) == (None, free)
    replica.submit(1)
    assert replica.finish().schedule.start_ns[-1] == 500


@pytest.mark.parametrize("engine", ENGINES)
def test_who_waits_for_a_later_arrival_is_seen_beside_an_idle_device(engine: Engine) -> None:
    """It was submitted early; nothing runs until it comes, whatever the last batch held."""
    instance = make_instance((3, 2), (4, 1), arrivals_ns=[10, 500], kv_blocks=20)
    replica = new_replica(instance, make_policy("vllm"), engine)
    replica.submit(0)
    replica.submit(1)
    replica.advance(400)

    assert replica.next_event_ns == 500
    assert replica.view == ReplicaView(
        num_running=0, num_waiting=1, free_blocks=20, outstanding=(1,), outstanding_tokens=5
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_only_what_can_still_come_is_submitted(engine: Engine) -> None:
    """Neither the past, nor out of order, nor twice."""
    instance = make_instance((3, 2), (4, 1), (4, 1), arrivals_ns=[10, 500, 300])
    replica = new_replica(instance, make_policy("vllm"), engine)
    replica.submit(1)

    with pytest.raises(UsageError, match="'r1' is submitted twice, expected once"):
        replica.submit(1)
    with pytest.raises(UsageError, match="'r2' arrives at 300 ns, expected at least 500 ns"):
        replica.submit(2)
    other = new_replica(instance, make_policy("vllm"), engine)
    other.advance(11)
    with pytest.raises(
        UsageError, match="'r0' arrives at 10 ns, expected at least 11 ns: the replica is there"
    ):
        other.submit(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_policy_that_waits_for_an_arrival_is_stuck_only_at_the_end(engine: Engine) -> None:
    """A prompt that its budget never holds; before the end something may still arrive."""
    instance = make_instance((6, 3))
    policy = make_policy("vllm:max_num_batched_tokens=3,enable_chunked_prefill=false")
    replica = new_replica(instance, policy, engine)
    replica.submit(0)
    replica.advance(10**9)

    assert replica.next_event_ns is None
    assert replica.view.num_waiting == 1
    with pytest.raises(StuckError, match="schedules nothing although nothing more can arrive"):
        replica.finish()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name", ["vllm", "vllm:async_scheduling=true,enable_prefix_caching=true", "sarathi:chunk=8"]
)
def test_a_request_comes_when_its_submission_says(name: str, engine: Engine) -> None:
    """Submitted at times that the instance does not know, requests run as if it had known them."""
    sizes, arrivals_ns = [(5 + i, 3) for i in range(6)], [2 * i for i in range(6)]
    instance = make_instance(*sizes, arrivals_ns=arrivals_ns, kv_blocks=12, block_tokens=2)
    closed = replace(instance, requests=tuple(replace(one, arrival_ns=0) for one in instance.requests))
    replica = new_replica(closed, make_policy(name), engine)
    for position, request in enumerate(instance.requests):
        replica.advance(request.arrival_ns)
        replica.submit(position, request.arrival_ns)

    assert digest(replica.finish()) == digest(simulate(instance, make_policy(name), Engine.PLAIN))


@pytest.mark.parametrize("name", [*SETTINGS, *BY_REQUEST, *REST])
def test_an_order_by_arrival_takes_later_times(name: str) -> None:
    """By priority, name, length or deadline: requests stand as if the times had been known."""
    drawn = [(seed, draw_case(name, seed)) for seed in range(6000, 6000 + EXAMPLES // 8)]
    for seed, (instance, policy) in ((seed, case) for seed, case in drawn if case):
        own = [random.Random(seed).randint(0, one.arrival_ns) for one in instance.requests]
        pairs = zip(instance.requests, own, strict=True)
        others = tuple(replace(one, arrival_ns=arrival_ns) for one, arrival_ns in pairs)

        def late(
            instance: Instance = instance, policy: Policy = policy, others: tuple = others
        ) -> Simulation:
            replica = new_replica(replace(instance, requests=others), policy)
            for request in by_arrival(instance):
                replica.submit(request, instance.requests[request].arrival_ns)
            return replica.finish()

        assert outcome(late) == outcome(lambda: simulate(instance, policy)), seed  # noqa: B023


def test_an_end_stops_the_advance_where_it_is_asked_for() -> None:
    """Ends are told once, with their times; without one the time that was asked for comes."""
    instance = make_instance((5, 3), (5, 2), (5, 1), arrivals_ns=[0, 0, 10])
    replica = new_replica(instance, make_policy("vllm"))
    for request in range(3):
        replica.submit(request)

    assert replica.advance_to_end(100) == [(2, 1)]
    assert (replica.next_event_ns, replica.advance_to_end(3)) == (2, [(3, 0)])
    assert replica.advance_to_end(10) == []
    assert replica.next_event_ns == 10
    with pytest.raises(UsageError, match="submitted twice"):
        replica.submit(0)
    assert replica.advance_to_end(100) == [(11, 2)]
    assert replica.finish().schedule.num_batches == 4
