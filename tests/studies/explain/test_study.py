"""An explanation as a whole: repeats, keeps what was found at Ctrl-C, and refuses what it cannot do."""

from __future__ import annotations

import pytest

from cspsched.costs.presets import load_cost
from cspsched.errors import UsageError
from cspsched.improve.long_runs import MOST_ENTRIES
from cspsched.studies.compare import compare_policies
from cspsched.studies.explain import ExplanationTask, Part, explain
from cspsched.studies.reference import ReferenceLimits
from tests.support.schemas import validate
from tests.support.strategies import make_instance

LIMITS = ReferenceLimits(work_s=0, steps=3)


def task(**given):
    instance = make_instance(
        (9, 9), (9, 5), (4, 9), (2, 6), kv_blocks=24, max_batch_tokens=12, cost=load_cost("infermax-7b")
    )
    return ExplanationTask(instance=instance, limits=LIMITS, **given)


def test_explanation_repeats():
    """Twice the same data, steps and work are counted."""
    found = explain(task(request="r2")).to_json()

    assert found == explain(task(request="r2")).to_json()
    validate(found, "explanation")


def test_excess_is_that_of_compare():
    """By the same reference, as long as no built-in policy is better than it."""
    asked = task(parts=[Part.CAUSES])
    compared = compare_policies(asked.instance, limits=LIMITS)

    assert [row.excess for row in compared.rows] == [one.excess for one in explain(asked).policies]


def test_interrupt_keeps_what_was_found(monkeypatch):
    """Causes are there, prices are not."""

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("cspsched.studies.explain.study.find_price", stop)
    found = explain(task())

    assert found.interrupted
    assert all(one.causes for one in found.policies)
    assert found.prices == ()


def test_parts_that_are_not_asked_for_are_left_out():
    """Nothing but the policies' values and the timeline."""
    found = explain(task(parts=[], request="r0"))

    assert (found.information, found.prices) == ((), ())
    assert [one.causes for one in found.policies] == [(), ()]
    assert [timeline.policy for timeline in found.timelines] == ["vllm", "sarathi"]


def test_long_traces_are_refused():
    """Schedules that are not kept cannot be followed."""
    huge = make_instance((1, MOST_ENTRIES + 1), kv_blocks=2 * MOST_ENTRIES)

    with pytest.raises(UsageError, match="shorten the trace"):
        explain(ExplanationTask(instance=huge))
