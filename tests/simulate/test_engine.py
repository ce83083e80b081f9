"""The engine's clock, arrivals and refusals, with small policies of our own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import pytest

from cspsched.errors import InputError
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.referee.rules import find_violations
from cspsched.simulate import PolicyError, Step, simulate
from tests.support.scripted import Scripted


def instance_of(*rows: tuple[int, int, int], kv_blocks: int = 20, step_ns: int = 10) -> Instance:
    """Requests (arrival_ns, prompt, output) named r0, r1, ... with blocks of one token."""
    requests = tuple(
        Request(request_id=f"r{i}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
        for i, (arrival, prompt, output) in enumerate(rows)
    )
    limits = Limits(kv_blocks=kv_blocks, block_tokens=1, max_batch_tokens=64, max_batch_requests=64)
    return Instance(requests=requests, limits=limits, cost=CostModel(name="step", step=Fraction(step_ns)))


class OneByOne:
    """Serves one request at a time, in order of submission."""

    name: ClassVar[str] = "one-by-one"
    label: ClassVar[str] = "one-by-one"

    def new_run(self, instance: Instance) -> OneByOneRun:
        return OneByOneRun()


class OneByOneRun:
    def __init__(self) -> None:
        self.queue: list[int] = []

    def submit(self, request: int) -> None:
        self.queue.append(request)

    def schedule(self, step: Step) -> None:
        if self.queue:
            request = self.queue[0]
            tokens = step.known_tokens[request] - step.computed_tokens[request]
            step.schedule(request, tokens, step.missing_blocks(request, tokens))

    def retire(self, requests: Sequence[int]) -> None:
        assert [self.queue.pop(0)] == list(requests)


@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (5, 1), (1, 4), (7, 3)])
def test_a_lone_request_processes_all_but_its_last_token(prompt: int, output: int) -> None:
    """E1: I + O - 1 tokens processed, peak I + O - 1, O batches if the prompt is one chunk."""
    simulation = simulate(instance_of((0, prompt, output)), OneByOne())

    assert prompt + output - 1 == int(simulation.schedule.tokens.sum())
    assert prompt + output - 1 == int(simulation.schedule.kv_tokens.max())
    assert prompt + output - 1 == int(simulation.held_blocks.max())
    assert output == simulation.schedule.num_batches


def test_the_clock_jumps_to_the_next_arrival() -> None:
    """Idle until 100, busy until 120, idle until 500."""
    schedule = simulate(instance_of((100, 2, 2), (500, 1, 1)), OneByOne()).schedule

    assert schedule.start_ns.tolist() == [100, 110, 500]
    assert schedule.end_ns.tolist() == [110, 120, 510]


@pytest.mark.parametrize(("arrival_ns", "first_batch"), [(10, 1), (11, 2)])
def test_an_arrival_at_the_clock_is_in_time(arrival_ns: int, first_batch: int) -> None:
    """A request that arrives exactly when a batch ends is seen by the next decision."""
    seen: list[int] = []

    def decide(number: int, step: Step) -> None:
        if step.known_tokens[1] and not seen:
            seen.append(number)
        for request in (0, 1):
            tokens = step.known_tokens[request] - step.computed_tokens[request]
            if tokens:
                step.schedule(request, tokens, tokens)

    simulate(instance_of((0, 1, 5), (arrival_ns, 1, 1)), Scripted(decide))

    assert [first_batch] == seen


def test_equal_arrivals_are_submitted_in_file_order() -> None:
    """By (arrival, file order)."""
    schedule = simulate(instance_of((5, 1, 1), (0, 1, 1), (5, 2, 1), (0, 2, 1)), OneByOne()).schedule

    assert schedule.request.tolist() == [1, 3, 0, 2]


def test_waiting_requests_are_counted_during_each_batch() -> None:
    """Arrived and without a block."""
    simulation = simulate(instance_of((0, 1, 2), (0, 1, 1), (15, 1, 1)), OneByOne())

    assert simulation.num_waiting.tolist() == [1, 1, 1, 0]


def test_a_policy_that_does_nothing_is_an_error() -> None:
    """Not an endless loop: who waits is said."""
    with pytest.raises(
        PolicyError,
        match="policy scripted:by=hand schedules nothing although nothing more can arrive: "
        "2 requests wait, 0 are running with 0 of 20 KV blocks",
    ):
        simulate(instance_of((0, 1, 1), (7, 1, 1)), Scripted(lambda number, step: None))


def test_a_policy_that_holds_its_resident_for_ever_is_an_error() -> None:
    """The running count and their blocks are said."""

    def decide(number: int, step: Step) -> None:
        if number == 0:
            step.schedule(0, 3, 3)

    with pytest.raises(PolicyError, match="0 requests wait, 1 are running with 3 of 20 KV blocks"):
        simulate(instance_of((0, 3, 2)), Scripted(decide))


def test_a_decision_that_only_evicts_is_asked_again_at_once() -> None:
    """The eviction belongs to the boundary before the next batch; no time passes."""

    def decide(number: int, step: Step) -> None:
        if number == 1:
            step.preempt(0)
        else:
            tokens = step.known_tokens[0] - step.computed_tokens[0]
            step.schedule(0, tokens, step.missing_blocks(0, tokens))

    instance = instance_of((0, 3, 2), (900, 1, 1))
    instance = Instance(requests=instance.requests[:1], limits=instance.limits, cost=instance.cost)
    schedule = simulate(instance, Scripted(decide)).schedule

    assert schedule.start_ns.tolist() == [0, 10]
    assert (schedule.evicted_batch.tolist(), schedule.evicted_request.tolist()) == ([1], [0])
    assert schedule.kv_tokens.tolist() == [3, 4]
    assert find_violations(instance, schedule) == []


def test_blocks_are_freed_at_the_end_of_the_batch() -> None:
    """The next batch may take all that a finished request held."""
    simulation = simulate(instance_of((0, 20, 1), (0, 20, 1)), OneByOne())

    assert simulation.held_blocks.tolist() == [20, 20]


def test_blocks_allocated_ahead_are_counted() -> None:
    """A policy may hold more than the tokens need."""

    def decide(number: int, step: Step) -> None:
        tokens = step.known_tokens[0] - step.computed_tokens[0]
        step.schedule(0, tokens, 0 if number else 9)

    simulation = simulate(instance_of((0, 2, 3)), Scripted(decide))

    assert simulation.held_blocks.tolist() == [9, 9, 9]
    assert simulation.schedule.kv_tokens.tolist() == [2, 3, 4]


def test_a_request_that_can_never_be_served_is_refused() -> None:
    """The engine names it and says what to do."""
    with pytest.raises(InputError, match=r"'r1' alone needs 21 KV blocks.*split_rejected"):
        simulate(instance_of((0, 1, 1), (0, 20, 2)), OneByOne())


def test_a_simulation_names_its_policy() -> None:
    """The label says which policy it was."""
    assert simulate(instance_of((0, 1, 1)), OneByOne()).policy == "one-by-one"
