"""Shadow prices: what a policy saves is simulated, what the optimum saves lies in its interval."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.costs.presets import load_cost
from cspsched.problem.objectives import Objective
from cspsched.studies.explain import ExplanationTask, Part, explain
from cspsched.studies.explain.prices import Resource
from cspsched.studies.reference import ReferenceLimits
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.explain_cases import run
from tests.support.strategies import UNIT, make_instance

TIGHT = {"kv_blocks": 5, "max_batch_tokens": 3, "max_batch_requests": 2}
SHAPES = [(2, 2), (3, 1), (1, 3)]


@pytest.mark.parametrize("work_s", [0, 1.0], ids=["open", "solved"])
@pytest.mark.parametrize("objective", list(Objective), ids=str)
def test_saving_of_the_optimum_is_in_its_interval(objective, work_s):
    """Against the optima of both instances by exhaustive search; proven optima leave no interval."""
    instance = make_instance(*SHAPES, cost=UNIT, **TIGHT)
    limits = ReferenceLimits(work_s=work_s, steps=0)
    task = ExplanationTask(
        instance=instance, objective=objective, heuristics=("vllm",), parts=[Part.PRICES], limits=limits
    )
    optimum_ns = exhaustive_optimum(instance, objective)
    for price in explain(task).prices:
        wide = replace(instance.limits, **{price.resource.value: price.limit + price.more})
        saved_ns = optimum_ns - exhaustive_optimum(replace(instance, limits=wide), objective)

        assert price.least_ns <= saved_ns <= price.most_ns
        assert not work_s or price.least_ns == price.most_ns


def test_saving_of_a_policy_is_simulated():
    """The same number as two runs of it give; 5 % are rounded up to a whole block, token or request."""
    instance = make_instance((9, 9), (9, 5), (4, 9), kv_blocks=21, cost=load_cost("infermax-7b"))
    task = ExplanationTask(instance=instance, parts=[Part.PRICES], limits=ReferenceLimits(work_s=0, steps=0))
    found = {price.resource: price for price in explain(task).prices}
    blocks = found[Resource.KV_BLOCKS]
    wide = replace(instance, limits=replace(instance.limits, kv_blocks=23))

    assert (blocks.limit, blocks.more) == (21, 2)
    assert dict(blocks.policies_ns) == {
        policy: run(instance, policy).value_ns - run(wide, policy).value_ns for policy in ("vllm", "sarathi")
    }
    assert {saved_ns for _, saved_ns in found[Resource.BATCH_REQUESTS].policies_ns} == {0}
