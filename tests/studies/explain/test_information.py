"""The ladder of information: each rung is no worse than the one before, and says who is on it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cspsched.policies.base import BUILT_IN
from cspsched.policies.catalogue import READS_OUTPUTS
from cspsched.problem.objectives import Objective
from cspsched.studies.explain import Explanation, ExplanationTask, Part, explain
from cspsched.studies.reference import ReferenceLimits
from tests.support.strategies import make_instance

SHAPES = [(9, 2), (3, 9), (6, 4), (1, 12), (8, 3), (2, 7)]
NO_SEARCH = ReferenceLimits(work_s=0, steps=0)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    """The ladders of all built-in policies on six requests in little memory."""
    instance = make_instance(
        *SHAPES, arrivals_ns=[0, 0, 2, 3, 9, 12], kv_blocks=20, max_batch_tokens=12, max_model_len=20
    )
    task = ExplanationTask(
        instance=instance, heuristics=("vllm:max_num_seqs=2",), parts=[Part.INFORMATION], limits=NO_SEARCH
    )
    return explain(task)


def test_every_built_in_policy_has_a_ladder(explanation):
    """The policy that was named comes first; what cannot run is named with the reason."""
    names = [ladder.policy for ladder in explanation.information]

    assert names[0] == "vllm:max_num_seqs=2"
    assert {*names[1:], *(name for name, _ in explanation.skipped)} == {*BUILT_IN}


def test_rungs_never_get_worse(explanation):
    """More knowledge never makes the best known worse, and no rung is below the bound."""
    for ladder in explanation.information:
        rungs = [
            ladder.value_ns, ladder.same_ns, ladder.lengths_ns, ladder.clairvoyant_ns, ladder.bound_ns
        ]  # fmt: skip
        assert all(low <= high for high, low in pairwise(rungs))
        shares = ladder.own_ns, ladder.outputs_ns, ladder.arrivals_ns, ladder.open_ns
        assert ladder.value_ns - ladder.bound_ns == sum(shares)


def test_a_policy_is_measured_against_those_that_know_as_much(explanation):
    """One that does not read outputs is never set beside one that does."""
    for ladder in explanation.information:
        name = ladder.same_by.partition(" (")[0].partition(":")[0]
        assert ladder.reads_outputs or name not in READS_OUTPUTS


def test_a_policy_of_another_package_is_not_said_to_know_anything(tmp_path):
    """What it reads is not known, and is shown so."""
    file = tmp_path / "own.py"
    file.write_text(
        "from cspsched.policies.base import DecisionPolicy\nclass Own(DecisionPolicy):\n    name = 'own'\n"
    )
    task = ExplanationTask(
        instance=make_instance(*SHAPES[:2]), heuristics=(f"{file}:Own",), parts=[Part.INFORMATION],
        objective=Objective.TTFT, limits=NO_SEARCH,
    )  # fmt: skip

    assert explain(task).information[0].reads_outputs is None
