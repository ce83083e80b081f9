"""A user's policy of answers to questions: one schedule, plain, compiled and step by step, and as vLLM."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from cspsched.errors import CspschedError, UsageError
from cspsched.policies.base import BatchMode, DecisionPolicy, View, make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.simulate import PolicyError, simulate
from cspsched.simulate.kernel import Workload, run_workload, simulate_fast
from tests.oracles.step_by_step import StepByStep
from tests.support.kernel_cases import draw_instance, outcome
from tests.support.places import DOCS
from tests.support.strategies import make_instance


class Fcfs(DecisionPolicy):
    """Nothing of its own."""

    name = "fcfs"


class Ordered(DecisionPolicy):
    """A key with many equals."""

    name = "ordered"

    def order(self, request: Request) -> float:
        return request.prompt_tokens % 3


class Careful(Ordered):
    """Looks at all that there is to see."""

    name = "careful"

    def admit(self, view: View, request: int) -> bool:
        return view.num_running == 0 or view.free_blocks > 2 or view.clock_ns % 2 == 0

    def chunk(self, view: View, request: int, most: int) -> int:
        return max(1, min(most, view.requests[request].prompt_tokens // 2, view.tokens_left))

    def victim(self, view: View, request: int) -> int:
        def rank(i: int) -> tuple[int, int, int]:
            return view.known_tokens(i) + view.computed_tokens(i), view.held_blocks(i), i

        return min(view.running, key=rank)


class Moody(Careful):
    """Asked before every batch, too."""

    name = "moody"

    def batch_mode(self, view: View) -> BatchMode:
        return BatchMode((view.num_running + view.num_waiting + view.clock_ns) % 3)


class Counting(Fcfs):
    """State of one run, in an object of its own."""

    name = "counting"

    def __init__(self) -> None:
        self.admitted = 0

    def start(self, instance: Instance) -> Counting:
        return Counting()

    def admit(self, view: View, request: int) -> bool:
        self.admitted += 1
        return self.admitted % 3 > 0 or not view.num_running


POLICIES = [Fcfs(), Ordered(), Careful(), Moody(), Counting()]


def instances() -> list[Instance]:
    """Servable ones, memory and budget tight."""
    drawn = []
    for seed in range(150):
        try:
            drawn.append(draw_instance(random.Random(f"decisions {seed}")).split_rejected()[0])
        except CspschedError:
            continue
    return drawn


INSTANCES = instances()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_compiled_it_is_asked_as_in_plain_python(policy: DecisionPolicy) -> None:
    """Same schedule by SHA-256, or the same error word by word, on random instances."""
    for instance in INSTANCES:
        plain = outcome(lambda i=instance: simulate(i, policy, "plain"))
        assert plain == outcome(lambda i=instance: simulate(i, policy, "compiled"))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_it_is_asked_as_step_by_step(policy: DecisionPolicy) -> None:
    """Same schedule by SHA-256 as of a run that asks whenever something comes up, or an error of both."""
    for instance in INSTANCES:
        kind, said = outcome(lambda i=instance: simulate(i, policy, "plain"))
        twin, its = outcome(lambda i=instance: simulate(i, StepByStep(policy)))
        assert (twin, its) == (kind, said)


def test_first_come_first_served_is_vllm() -> None:
    """A user's policy that decides nothing otherwise reproduces vLLM's schedule, plain and compiled."""
    for instance in INSTANCES:
        try:
            vllm = simulate(instance, make_policy("vllm"))
        except PolicyError:
            continue
        for engine in ("plain", "compiled"):
            run = simulate(instance, Fcfs(), engine)
            assert run.schedule == vllm.schedule
            assert np.array_equal(run.held_blocks, vllm.held_blocks)


def test_the_policies_are_not_all_alike() -> None:
    """Each answer matters somewhere: no two of them always agree, and evictions happen."""
    kinds, schedules = [], []
    for policy in POLICIES:
        runs = [outcome(lambda i=i, p=policy: simulate_fast(i, p).to_simulation()) for i in INSTANCES]
        kinds.append(sum(kind == "simulation" for kind, _ in runs))
        schedules.append([_entries(i, policy) for i in INSTANCES[:60]])

    assert min(kinds) > 50
    assert all(a != b for a, b in combinations(schedules, 2))
    assert any(simulate_fast(i, Fcfs()).num_preemptions.any() for i in INSTANCES[:60] if _entries(i, Fcfs()))


def _entries(instance: Instance, policy: DecisionPolicy) -> list[int] | None:
    """Requests in the order in which they were processed; None if the run ended with an error."""
    try:
        return simulate_fast(instance, policy).to_simulation().schedule.request.tolist()
    except PolicyError:
        return None


def test_the_front_door_takes_it() -> None:
    """Compiled by name, and without the policy's having rules of its own."""
    instance = make_instance((4, 4), (9, 2))

    assert simulate(instance, Careful(), "compiled").schedule == simulate(instance, Careful()).schedule


@pytest.mark.parametrize("engine", ["plain", "compiled"])
def test_nonsense_is_refused_with_the_name_of_the_policy(engine: str) -> None:
    """A chunk beyond what there is, and a victim that does not run."""

    class Greedy(Fcfs):
        name = "greedy"

        def chunk(self, view: View, request: int, most: int) -> int:
            return most + 1

    class Blind(Fcfs):
        name = "blind"

        def victim(self, view: View, request: int) -> int:
            return 7

    tight = make_instance((4, 9), (4, 9), kv_blocks=14)
    with pytest.raises(PolicyError, match="policy greedy: chunk of request 'r0' is 5, expected 0 to 4"):
        simulate(tight, Greedy(), engine)
    with pytest.raises(PolicyError, match="policy blind: victim is 7, expected a running request"):
        simulate(tight, Blind(), engine)


def test_the_example_of_the_page_runs() -> None:
    """The fast policy of docs/adding_a_policy.md, plain, compiled and step by step."""
    page = (DOCS / "adding_a_policy.md").read_text(encoding="utf-8")
    source = next(block for block in page.split("```python\n") if "class Fast(" in block).partition("```")[0]
    scope: dict[str, Any] = {"__name__": "fast_policy"}
    exec(source, scope)
    policy = scope["Fast"]()

    for instance in INSTANCES[:40]:
        plain = outcome(lambda i=instance: simulate(i, policy, "plain"))
        assert plain == outcome(lambda i=instance: simulate(i, policy, "compiled"))
        assert plain == outcome(lambda i=instance: simulate(i, StepByStep(policy)))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_columns_are_no_requests(policy: DecisionPolicy) -> None:
    """A policy in Python looks at requests, if only for their order, so columns alone will not do."""
    instance = make_instance((4, 4))
    rules = policy.kernel_rules(instance)

    with pytest.raises(UsageError, match="give an instance"):
        run_workload(Workload.from_instance(instance), rules, instance.cost, label="fcfs")
