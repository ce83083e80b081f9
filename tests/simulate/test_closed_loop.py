"""Closed loops: by a twin that simulates anew for every arrival, by hand, and on an input that was tried."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cspsched.errors import CspschedError, StuckError, UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Preemption, Switches
from cspsched.referee.judge import judge
from cspsched.serving import make_instance as served
from cspsched.simulate import Engine, simulate
from cspsched.simulate.closed_loop import ClosedLoop, closed_loop_of, simulate_closed
from cspsched.simulate.served import as_served
from cspsched.trace import read_trace
from tests.oracles.naive_loop import FAR_NS, naive_loop
from tests.support.kernel_cases import BY_REQUEST, REST, SETTINGS, digest, draw_case
from tests.support.places import DATA
from tests.support.strategies import EXAMPLES, make_instance

TRIED = DATA / "tried" / "08_closed_loop.csv"


def with_sessions(rng: random.Random, instance: Instance) -> Instance:
    """The same requests, most of them turns of a few sessions."""
    names, most_ns = rng.choice(["", "ab", "abcd", "aab "]), rng.choice([0, 0, 30, 300])
    turns = [rng.choice(names).strip() if names else "" for _ in instance.requests]
    pairs = zip(instance.requests, turns, strict=True)
    return replace(
        instance,
        requests=tuple(
            replace(one, session_id=name, think_time_ns=rng.randint(0, most_ns) if name else 0)
            for one, name in pairs
        ),
    )


def arrivals(instance: Instance) -> list[int]:
    """When each request arrives."""
    return instance.columns.arrival_ns.tolist()


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, Engine.PLAIN) for name in [*SETTINGS, *BY_REQUEST, *REST]),
        *((name, Engine.COMPILED) for name in ("vllm", "mc-sf", "sglang", "vllm async", "vidur-vllm stages")),
    ],
)
def test_a_loop_is_that_of_the_twin(name: str, engine: Engine) -> None:
    """Arrivals, batches, blocks and queue, where memory is short, too; the frozen trace gives them again."""
    num_compared = 0
    for seed in range(8000, 8000 + max(EXAMPLES // 10, 8)):
        case, rng = draw_case(name, seed), random.Random(f"loop {name} {seed}")
        if case is None:
            continue
        instance, policy = with_sessions(rng, case[0]), case[1]
        concurrency = rng.choice([None, 1, 2, 3, 5, 100])
        loop = closed_loop_of(instance, concurrency)
        if loop is None:
            continue
        try:
            expected, twin = naive_loop(instance, policy, loop.sessions, concurrency)
        except CspschedError:
            continue
        if max(expected) >= FAR_NS:
            # A policy is stuck, or a bug has dropped a request.
            with pytest.raises((StuckError, UsageError)):
                simulate_closed(instance, policy, loop, engine)
            continue
        frozen, simulation = simulate_closed(instance, policy, loop, engine)
        num_compared += 1

        assert arrivals(frozen) == expected, seed
        assert digest(simulation) == digest(twin), seed
        assert digest(simulation) == digest(simulate(frozen, policy)), seed
        free = replace(frozen, switches=Switches(preemption=Preemption.EITHER))
        assert not judge(*as_served(free, simulation)).violations
        assert closed_loop_of(frozen) is None
    assert num_compared >= 2


def test_two_users_by_hand() -> None:
    """Batches of 1 ns: r1 ends at 1, r0 at 3; r2 comes at 1 and ends at 3, too, so r3 and r4 come then."""
    instance = make_instance((1, 3), (1, 1), (1, 2), (1, 5), (1, 1), arrivals_ns=[0, 7, 8, 9, 10])
    frozen, simulation = simulate_closed(instance, make_policy("vllm"), closed_loop_of(instance, 2))

    assert arrivals(frozen) == [0, 0, 1, 3, 3]
    assert simulation.schedule.num_batches == 8


def test_turns_by_hand() -> None:
    """Turn two comes 4 ns after the end of turn one at 5, not at its own arrival; others come as they say."""
    instance = make_instance((1, 3), (1, 2), (1, 1), (1, 1), arrivals_ns=[2, 3, 4, 6])
    chat = {"session_id": "chat", "think_time_ns": 4}
    first, second, third, other = instance.requests
    turns = (replace(first, **chat), replace(second, **chat), replace(third, session_id="chat"), other)
    instance = replace(instance, requests=turns)
    frozen, _ = simulate_closed(instance, make_policy("vllm"), closed_loop_of(instance))

    assert arrivals(frozen) == [2, 9, 11, 6]
    assert frozen.columns.session_id is None
    assert frozen.columns.think_time_ns is None


def test_users_take_whole_sessions() -> None:
    """One user: both turns of the first session, then the request, then the second session."""
    instance = make_instance(*[(1, 2)] * 5)
    names = ["a", "", "b", "a", "b"]
    pairs = zip(instance.requests, names, strict=True)
    turns = tuple(replace(one, session_id=name, think_time_ns=10 if name else 0) for one, name in pairs)
    instance = replace(instance, requests=turns)
    frozen, _ = simulate_closed(instance, make_policy("vllm"), closed_loop_of(instance, 1))

    assert arrivals(frozen) == [0, 14, 16, 12, 28]


def test_what_is_around_the_schedule_delays_the_next() -> None:
    """A client that waits 5 ns more for an answer sends its next request as much later."""
    instance = make_instance((1, 3), (1, 1))
    loop = ClosedLoop(sessions=[[0], [1]], concurrency=1, added_ns=5)
    frozen, _ = simulate_closed(instance, make_policy("vllm"), loop)

    assert arrivals(frozen) == [0, 8]


def test_no_more_than_so_many_are_in_flight() -> None:
    """Under every number of users there are exactly so many until requests run out."""
    rng = random.Random(3)
    instance = make_instance(*((rng.randint(1, 9), rng.randint(1, 9)) for _ in range(40)), kv_blocks=60)
    for concurrency in (1, 2, 7, 40, 100):
        frozen, simulation = simulate_closed(
            instance, make_policy("vllm"), closed_loop_of(instance, concurrency)
        )
        schedule = simulation.schedule
        end_ns = np.zeros(40, dtype=np.int64)
        np.maximum.at(end_ns, schedule.request, schedule.end_ns[schedule.batch_of_entry])
        arrived = np.sort(frozen.columns.arrival_ns)
        in_flight = [int((arrived <= t).sum() - (end_ns <= t).sum()) for t in arrived.tolist()]

        assert set(in_flight[concurrency - 1 :]) <= {concurrency}
        assert max(in_flight) == min(concurrency, 40)


def test_without_sessions_and_users_there_is_no_loop() -> None:
    """A session of one turn is a loop all the same, of arrivals as they stand."""
    instance = make_instance((1, 3), (1, 1), arrivals_ns=[0, 5])
    named = replace(instance, requests=(replace(instance.requests[0], session_id="a"), instance.requests[1]))
    frozen, _ = simulate_closed(named, make_policy("vllm"), closed_loop_of(named))

    assert closed_loop_of(instance) is None
    assert frozen.fingerprint() == instance.fingerprint()


def test_a_dropped_request_leaves_its_user_waiting() -> None:
    """An emulated bug that loses requests is told in a sentence, not by a loop without end."""
    case = next(
        (case, policy)
        for seed in range(200)
        if (drawn := draw_case("vllm-v0 bugs", seed)) is not None
        for case, policy in [drawn]
        if drops(case, policy)
    )

    with pytest.raises(UsageError, match="requests wait for ends that never come"):
        simulate_closed(*case, closed_loop_of(case[0], 1))


def drops(instance: Instance, policy: object) -> bool:
    """Whether a policy drops a request, with another behind it."""
    try:
        run = naive_loop(instance, policy, [[i] for i in range(len(instance.requests))], 1)[1]
    except CspschedError:
        return False
    return len(set(run.schedule.request.tolist())) < len(instance.requests)


@pytest.mark.skipif(not TRIED.is_file(), reason=f"the inputs that were tried are not at {TRIED}")
def test_two_at_a_time() -> None:
    """r2 is submitted when r0 or r1 ends, and r3 when the other does; TTFT counts from there."""
    instance = served(read_trace(TRIED))
    frozen, simulation = simulate_closed(instance, make_policy("vllm"), closed_loop_of(instance, 2))
    metrics = judge(frozen, simulation.schedule).metrics
    ends = (metrics.arrival_ns + metrics.latency_ns).tolist()

    assert arrivals(frozen) == [0, 0, *sorted(ends[:2])]
    assert metrics.ttft_ns.max() < 1.2 * 10**9
    backlog = judge(instance, simulate(instance, make_policy("vllm")).schedule).metrics
    assert backlog.ttft_ns.max() > 1.8 * 10**9
