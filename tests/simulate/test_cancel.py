"""Requests that are cancelled leave between batches; what was served is a trace of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest

from cspsched.errors import PolicyError, UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.step_runs import QueueRun, RankedRun
from cspsched.policies.vtc import Vtc
from cspsched.problem.instance import Instance, Preemption, Switches
from cspsched.referee.rules import find_violations
from cspsched.simulate import Engine, Policy, Replica, Simulation, Step, new_replica, simulate
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.served import as_served
from tests.support.kernel_cases import (
    BY_REQUEST,
    IN_LOCKSTEP,
    REST,
    SETTINGS,
    busy_instance,
    digest,
    draw_case,
    draw_instance,
    outcome,
)
from tests.support.scripted import LastFirst
from tests.support.strategies import EXAMPLES, UNIT, make_instance
from tests.support.swap_cases import SWAP, Chaotic, with_swap

ENGINES = [Engine.PLAIN, Engine.COMPILED]
COMPILED = ["vllm", "sorted-f", "vllm async", "vidur-sarathi"]
"""Policies of every kind of loop, as each loop is compiled for long."""
LOOSEST = Switches(preemption=Preemption.EITHER)


def serve(instance: Instance, replica: Replica, rng: random.Random) -> tuple[Simulation, set[int]]:
    """Submit all and cancel some at random times, early or late; who was cancelled."""
    cancelled = set()

    def cancel(request: int) -> None:
        cancelled.add(request)
        replica.cancel(request)

    order = sorted(range(len(instance.requests)), key=lambda i: instance.requests[i].arrival_ns)
    time_ns = 0
    for place, request in enumerate(order):
        time_ns = instance.requests[request].arrival_ns
        replica.advance(time_ns)
        replica.submit(request)
        if rng.random() < 0.2:
            cancel(order[rng.randint(0, place)])
    while replica.view.outstanding and replica.next_event_ns is not None:
        time_ns = max(time_ns, replica.next_event_ns) + rng.choice([1, 10, 200, 2000])
        replica.advance(time_ns)
        if rng.random() < 0.3 and replica.view.outstanding:
            cancel(rng.choice(replica.view.outstanding))
    replica.advance(10**12)
    if replica.next_event_ns is None and not replica.view.outstanding:
        assert replica.view.free_blocks == instance.limits.kv_blocks
    return replica.finish(), cancelled


def cut_short(instance: Instance, policy: Policy, seed: int, engine: Engine = Engine.PLAIN) -> str:
    """Serve with cancellations and let the referee judge: digest of it all, or the error."""
    try:
        simulation, cancelled = serve(instance, new_replica(instance, policy, engine), random.Random(seed))
    except PolicyError as error:
        return str(error)
    assert set(simulation.output_changes) <= cancelled or "emulate_bugs=true" in policy.label
    # Not all policies keep to the switches; the rules that all requests share are looked at.
    loose, changes = replace(instance, switches=LOOSEST), simulation.output_changes
    if len(changes) == len(instance.requests) and not any(changes.values()):
        assert simulation.schedule.num_batches == 0
    else:
        assert find_violations(*as_served(loose, simulation)) == [], seed
    return f"{digest(simulation)} {sorted(changes.items())}"


def ends(instance: Instance, policy: Policy) -> bool:
    """Whether a policy comes to an end without cancellations."""
    return outcome(lambda: simulate(instance, policy))[0] == "simulation"


@pytest.mark.parametrize("name", [*SETTINGS, *BY_REQUEST, *REST])
def test_what_is_served_with_cancellations_is_a_schedule(name: str) -> None:
    """Every policy: the referee accepts it for the trace as it was served, and all blocks are free then."""
    drawn = [(seed, draw_case(name, seed)) for seed in range(7000, 7000 + EXAMPLES // 4)]
    cases = [(seed, *case) for seed, case in drawn if case and ends(*case)]
    changed = [cut_short(instance, policy, seed) for seed, instance, policy in cases]

    assert len([text for text in changed if text.endswith(")]")]) > len(cases) // 4 > 0


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_cancellations_are_the_plain_ones(name: str) -> None:
    """Same batches, blocks, queue and tokens by hash."""
    drawn = [(seed, draw_case(name, seed)) for seed in range(7500, 7500 + EXAMPLES // 8)]
    cases = [(*case, seed) for seed, case in drawn if case and ends(*case)]
    several = [(cut_short(*case), cut_short(*case, Engine.COMPILED)) for case in cases]

    assert len(several) > EXAMPLES // 16
    assert [pair for pair in several if pair[0] != pair[1]] == []


@pytest.mark.parametrize("label", IN_LOCKSTEP)
def test_a_request_in_lockstep_leaves(label: str) -> None:
    """300 requests, of which many decode together when one is cancelled."""
    assert cut_short(busy_instance(300, 120), make_policy(label), 3).endswith(")]")


class Ranked:
    """A user's policy that serves by rank and moves victims to host memory."""

    name = label = "ranked"

    def new_run(self, instance: Instance) -> RankedRun:
        return RankedFirst(instance)


class RankedFirst(RankedRun):
    swaps = True

    def schedule(self, step: Step) -> None:
        self.serve(step)


class Queued:
    """A user's policy with a queue."""

    name = label = "queued"

    def new_run(self, instance: Instance) -> QueueRun:
        return DecodesFirst(instance)


class DecodesFirst(QueueRun):
    def schedule(self, step: Step) -> None:
        self.decode(step)
        self.prefill(step)


@pytest.mark.parametrize(
    "new_policy",
    [
        lambda seed, instance: LastFirst(),
        lambda seed, instance: LastFirst(batches_in_flight=2),
        lambda seed, instance: LastFirst(batches_in_flight=3, decides_on_arrival=True),
        lambda seed, instance: Chaotic(instance, random.Random(seed)),
        lambda seed, instance: Queued(),
        lambda seed, instance: Ranked(),
    ],
    ids=["one by one", "ahead", "at arrivals", "at random", "queue", "ranks"],
)
def test_requests_of_a_users_policy_are_cancelled(new_policy: Callable[[int, Instance], Policy]) -> None:
    """A policy that is asked for every batch: its run forgets who is cancelled."""
    changed = []
    for seed in range(EXAMPLES // 2):
        drawn = draw_instance(random.Random(f"cancel {seed}"))
        instance = with_swap(drawn, 50, swap_block=3).split_rejected()[0]
        if ends(instance, new_policy(seed, instance)):
            changed.append(cut_short(instance, new_policy(seed, instance), seed))
    assert len([text for text in changed if text.endswith(")]")]) > EXAMPLES // 10


def start(instance: Instance, policy: str = "vllm", engine: Engine = Engine.PLAIN) -> Replica:
    """A replica to which all requests were submitted."""
    replica = new_replica(instance, make_policy(policy), engine)
    for request in range(len(instance.requests)):
        replica.submit(request)
    return replica


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("at_ns", "generated", "ends_ns"), [(0, 0, None), (1, 1, 1), (2, 2, 2), (3, 3, 3)])
def test_a_decode_leaves_when_its_batch_has_ended(
    engine: Engine, at_ns: int, generated: int, ends_ns: int | None
) -> None:
    """Batches take 1 ns; at 2 ns the second batch has begun and ended, whose token counts."""
    instance = make_instance((3, 6), (4, 6), kv_blocks=20)
    replica = start(instance, engine=engine)
    replica.advance(at_ns)
    replica.cancel(0)
    replica.advance(at_ns + 1)

    assert replica.view.outstanding == (1,)
    assert replica.view.free_blocks == 20 - 4 - at_ns
    simulation = replica.finish()
    assert simulation.output_changes == {0: generated}
    entries = simulation.schedule.batch_of_entry[simulation.schedule.request == 0]
    assert (simulation.schedule.end_ns[entries[-1]] if len(entries) else None) == ends_ns


def test_a_batch_under_way_ends_first() -> None:
    """Until then the request is outstanding, and its blocks are held."""
    cost = replace(UNIT, step=Fraction(10))
    replica = start(make_instance((3, 6), (4, 6), kv_blocks=20, cost=cost))
    replica.advance(15)
    replica.cancel(0)

    assert (replica.view.outstanding, replica.view.free_blocks) == ((0, 1), 20 - 9)
    replica.advance(20)
    assert (replica.view.outstanding, replica.view.free_blocks) == ((1,), 20 - 5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_request_in_its_prefill_is_served_until_its_first_token(engine: Engine) -> None:
    """Half a prefill is no request: 3 of 8 tokens are processed, and the other 5 are, too."""
    instance = make_instance((8, 6), kv_blocks=20, max_batch_tokens=3)
    replica = start(instance, engine=engine)
    replica.advance(1)
    replica.cancel(0)
    simulation = replica.finish()

    assert simulation.output_changes == {0: 1}
    assert simulation.schedule.tokens.tolist() == [3, 3, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_request_that_was_preempted_leaves_the_queue(engine: Engine) -> None:
    """Two requests outgrow the device; the second is recomputed, unless it is cancelled as it waits."""
    instance = make_instance((3, 6), (3, 6), kv_blocks=9)
    replica = start(instance, engine=engine)
    replica.advance(4)
    assert replica.view.num_waiting == 1
    replica.cancel(1)
    simulation = replica.finish()

    assert simulation.output_changes == {1: 2}
    served, schedule = as_served(instance, simulation)
    assert (len(simulation.preempted), len(schedule.evicted_request)) == (1, 0)
    assert find_violations(served, schedule) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_host_memory_is_free_when_a_swapped_request_leaves(engine: Engine) -> None:
    """Nothing comes back, and what was moved away is not in the schedule of the trace as it was served."""
    instance = with_swap(make_instance((3, 6), (3, 6), kv_blocks=9), host=5)
    replica = start(instance, SWAP, engine)
    replica.advance(4)
    assert replica.view.num_waiting == 1
    replica.cancel(1)
    simulation = replica.finish()

    assert simulation.output_changes == {1: 2}
    assert len(simulation.schedule.restored_request) == 0
    assert find_violations(*as_served(instance, simulation)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_who_has_not_come_or_has_finished(engine: Engine) -> None:
    """The first never comes, the other stays as it is."""
    instance = make_instance((3, 2), (3, 2), arrivals_ns=[0, 50], kv_blocks=20)
    replica = start(instance, engine=engine)
    replica.advance(20)
    replica.cancel(0)
    replica.cancel(1)

    assert (replica.view.outstanding, replica.next_event_ns) == ((), None)
    simulation = replica.finish()
    assert simulation.output_changes == {1: 0}
    assert set(simulation.schedule.request.tolist()) == {0}


def test_a_replica_that_waits_goes_on_when_the_head_of_its_queue_is_cancelled() -> None:
    """The head is a prompt beyond the policy's budget; at 7 ns those behind it are served."""
    instance = make_instance((6, 3), (2, 1), arrivals_ns=[0, 1], kv_blocks=20)
    replica = start(instance, "vllm:max_num_batched_tokens=3,enable_chunked_prefill=false")
    replica.advance(7)
    assert replica.next_event_ns is None
    replica.cancel(0)

    assert replica.next_event_ns == 7
    assert replica.finish().schedule.start_ns.tolist() == [7]


def test_it_goes_on_before_the_next_arrival_too() -> None:
    """The clock of a replica that waits stands at the next arrival; it decides at once all the same."""
    instance = make_instance((6, 3), (2, 1), (1, 1), arrivals_ns=[0, 1, 90], kv_blocks=20)
    replica = start(instance, "vllm:max_num_batched_tokens=3,enable_chunked_prefill=false")
    replica.advance(7)
    replica.cancel(0)

    assert replica.finish().schedule.start_ns.tolist() == [7, 90]


def test_what_cannot_be_cancelled_is_refused() -> None:
    """A request that was not submitted, and one of a policy that has no way to forget it."""
    instance = make_instance((3, 2), (3, 2))
    with pytest.raises(UsageError, match="'r1' is cancelled but was not submitted to this replica"):
        new_replica(instance, make_policy("vllm")).cancel(1)
    replica = new_replica(instance, Unforgetting())
    replica.submit(0)
    replica.advance(0)
    replica.advance(1)
    with pytest.raises(UsageError, match=r"policy unforgetting: its run has no method cancel\(request\)"):
        replica.cancel(0)


def test_a_queue_that_is_not_the_heap_needs_its_own_way_out() -> None:
    """VTC keeps a queue for each client; without a function that forgets a request nothing is changed."""

    class OwnQueue(Vtc):
        def kernel_rules(self, instance: Instance) -> Rules:
            return replace(super().kernel_rules(instance), cancel=None)

    instance = make_instance((3, 2), (3, 2), max_batch_requests=1)
    replica = new_replica(instance, OwnQueue())
    for request in (0, 1):
        replica.submit(request)
    replica.advance(1)

    with pytest.raises(UsageError, match=r"keeps waiting requests in a queue of its own.*Rules\.cancel"):
        replica.cancel(1)
    assert digest(replica.finish()) == digest(simulate(instance, OwnQueue()))


class Unforgetting:
    """A user's policy without `cancel`, which waits for ever."""

    name = label = "unforgetting"

    def new_run(self, instance: Instance) -> Unforgetting:
        return self

    def submit(self, request: int) -> None:
        pass

    def schedule(self, step: Step) -> None:
        pass

    def retire(self, requests: list[int]) -> None:
        pass
