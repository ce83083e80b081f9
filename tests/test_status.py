"""One status for one fact: optimal, optimal up to rounding with the gap in ns, or feasible, everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given

from cspsched.cli.group import cspsched_group, run
from cspsched.exact import lexicographic
from cspsched.exact.watch import SearchLimits
from cspsched.problem.cost import BatchFeatures, CostModel
from cspsched.problem.objectives import Objective
from cspsched.problem.piecewise import PiecewiseLinear
from cspsched.problem.result import Result, Status, StopReason, most_rounding_ns, status_of
from cspsched.referee.metrics import measure
from cspsched.referee.timing import schedule_asap
from cspsched.report.ladder import ladder_figure, rows
from cspsched.report.ladder import sentences as ladder_sentences
from cspsched.studies.ladder import Rung, climb, hand_down_bounds
from cspsched.studies.solving import solve
from tests.support.strategies import check_briefly, feasible_runs, make_instance

UP_TO_ROUNDING = Status.OPTIMAL_UP_TO_ROUNDING
THIRDS = CostModel(name="thirds", step=Fraction(1_000), tokens=PiecewiseLinear.linear(Fraction(400, 3)))
"""One term of a batch's time is no whole number of nanoseconds."""
BURST = ["solve", "burst-6", "--limit", "4", "--cost", "infermax-70b", "--kv-tokens", "64"]
BURST += ["--block-tokens", "1", "--objective", "latency"]


@pytest.fixture
def rounded() -> Result:
    """Two requests (2, 2) in two batches whose search left 3 of at most 4 ns of rounding."""
    instance = replace(make_instance((2, 2), (2, 2)), cost=THIRDS)
    schedule = schedule_asap(instance, [[(0, 2), (1, 2)], [(0, 1), (1, 1)]], [[], []])
    value = measure(instance, schedule).objective_ns(Objective.LATENCY)
    return Result(
        instance=instance,
        objective=Objective.LATENCY,
        schedule=schedule,
        primal_ns=value,
        dual_ns=value - 3,
        status=UP_TO_ROUNDING,
        stop_reason=StopReason.ROUNDING,
        certificate="state search",
    )


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> Result:
    """A burst that the state search proves up to rounding."""
    folder = tmp_path_factory.mktemp("solved")
    assert run(cspsched_group, [*BURST, "--out", str(folder)]) == 0
    return Result.from_json(json.loads((folder / "schedule.json").read_text()))


# Derived in one place


@pytest.mark.parametrize(
    ("gap_ns", "reason", "status"),
    [
        (0, StopReason.ROUNDING, Status.OPTIMAL),
        (0, StopReason.TIME_LIMIT, Status.OPTIMAL),
        (4, StopReason.ROUNDING, UP_TO_ROUNDING),
        (5, StopReason.ROUNDING, Status.FEASIBLE),
        (4, StopReason.TIME_LIMIT, Status.FEASIBLE),
    ],
)
def test_the_status_follows_from_the_gap_and_why_the_search_stopped(rounded, gap_ns, reason, status):
    """Two batches with one rounded term delay two requests by less than 4 ns in all, no more."""
    interval_ns = rounded.primal_ns - gap_ns, rounded.primal_ns

    assert status_of(rounded.instance, Objective.LATENCY, rounded.schedule, interval_ns, reason) is status


@pytest.mark.parametrize(("objective", "most"), [(Objective.MAKESPAN, 2), (Objective.LATENCY, 4)])
def test_every_batch_rounds_once_for_each_request_it_delays(rounded, objective, most):
    """The makespan pays the rounding of a batch once, a sum of latencies once a request."""
    assert most_rounding_ns(rounded.instance, objective, rounded.schedule) == most


@given(feasible_runs())
@check_briefly
def test_rounding_is_never_more_than_is_allowed(run):
    """A batch's time is at least the exact one, and more by less than one for each rounded term."""
    instance, schedule = run
    cost = instance.cost
    columns = (column.tolist() for column in measure(instance, schedule).history.features)
    for batch in map(BatchFeatures._make, zip(*columns, strict=True)):
        exact = cost.step + cost.prefill_batch * (batch.num_prefills > 0)
        exact += cost.decode_batch * (batch.num_decodes > 0)
        terms = cost.functions(mixed=False) + (cost.functions(mixed=True) if batch.num_prefills else [])
        exact += sum(function.exact(batch[feature]) for feature, function in terms)
        lost = cost.batch_time_ns(batch) - exact
        assert 0 <= lost <= cost.num_rounded_terms
        assert lost == 0 or lost < cost.num_rounded_terms


def test_whole_costs_round_nothing():
    """Where every price is whole no gap is rounding."""
    instance = make_instance((2, 2), (2, 2))
    schedule = solve(instance, limits=SearchLimits(time_limit_s=0)).result.schedule

    assert most_rounding_ns(instance, Objective.LATENCY, schedule) == 0


# The same word everywhere


def test_the_state_search_says_so(solved):
    """What is left of the burst's gap is some nanoseconds: its own status, with the gap."""
    assert solved.status is UP_TO_ROUNDING
    assert 0 < solved.gap_ns <= most_rounding_ns(solved.instance, solved.objective, solved.schedule)
    assert solved.violations() == []


def test_screen_and_json_say_the_same(solved, tmp_path, capsys):
    """Verdict, status and gap agree; the exit code is that of a success."""
    assert run(cspsched_group, [*BURST, "--out", str(tmp_path)]) == 0
    screen = capsys.readouterr().out
    assert run(cspsched_group, [*BURST, "--out", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)

    assert screen.startswith("OPTIMAL up to rounding: ")
    assert f"within {solved.gap_ns} ns in total of what state search proves" in screen
    assert (data["status"], data["gap_ns"]) == ("optimal_up_to_rounding", solved.gap_ns)
    assert data["stop_reason"] == "proven up to rounding"


def test_every_rung_says_so(solved):
    """Table, picture, JSON and sentences of a ladder use the status of the rung."""
    ladder = climb(solved.instance, Objective.LATENCY, limits=SearchLimits(time_limit_s=60))
    by_name = {rung.name: rung for rung in ladder.solved}
    recompute = by_name["recompute"].result
    told = json.loads(json.dumps(ladder.to_json()))["rungs"]

    assert recompute.status is UP_TO_ROUNDING
    assert [row[5] for row in rows(ladder)] == [
        rung.result.verdict if rung.result else "skipped" for rung in ladder.rungs
    ]
    assert [(rung["status"], rung["gap_ns"]) for rung in told if not rung["skipped"]] == [
        (rung.result.status.value, rung.result.gap_ns) for rung in ladder.solved
    ]
    labels = [text.get_text() for text in ladder_figure(ladder).axes[0].texts]
    assert any(label.endswith("optimal up to rounding") for label in labels)
    assert ladder_sentences(ladder)


def test_a_rounded_bound_that_is_handed_down_stays_one(rounded):
    """A narrower class with the same value and no bound of its own is optimal up to rounding, too."""
    open_result = replace(
        rounded, dual_ns=1, status=Status.FEASIBLE, stop_reason=StopReason.TIME_LIMIT, certificate="srpt"
    )
    narrow, _ = hand_down_bounds(
        [
            Rung(name="narrow", policy_class="", result=open_result),
            Rung(name="wide", policy_class="", result=rounded),
        ]
    )

    assert (narrow.result.status, narrow.result.gap_ns) == (UP_TO_ROUNDING, 3)
    assert narrow.result.stop_reason is StopReason.ROUNDING
    assert narrow.result.certificate == "state search (wide)"
    assert narrow.result.violations() == []


def test_an_order_is_proven_as_far_as_its_weakest_stage(rounded, monkeypatch, capsys, tmp_path):
    """A first stage up to rounding and a proven second one: the order is optimal up to rounding."""
    value = measure(rounded.instance, rounded.schedule).objective_ns(Objective.MAKESPAN)
    last = replace(
        rounded,
        objective=Objective.MAKESPAN,
        primal_ns=value,
        dual_ns=value,
        status=Status.OPTIMAL,
        stop_reason=StopReason.PROVEN,
    )
    results = iter([rounded, last])
    monkeypatch.setattr(lexicographic, "solve_exactly", lambda *_, **__: next(results))
    joined = lexicographic.solve_in_order(
        rounded.instance, [Objective.LATENCY, Objective.MAKESPAN], SearchLimits(time_limit_s=1)
    )
    again = Result.from_json(joined.to_json())

    assert [stage.status for stage in joined.earlier] == [UP_TO_ROUNDING]
    assert (joined.status, joined.gap_ns) == (UP_TO_ROUNDING, 0)
    assert joined.to_json()["earlier"][0]["gap_ns"] == 3
    assert joined.violations() == again.violations() == []
    assert again.to_json() == joined.to_json()
    worse = replace(joined, earlier=(replace(joined.earlier[0], dual_ns=1),))
    assert [one.rule for one in worse.violations()] == ["status"]


# Files


def test_a_gap_beyond_rounding_is_not_rounding(rounded):
    """A file that calls a gap rounding is believed as far as batch times can be rounded."""
    assert rounded.violations() == []
    assert [one.rule for one in replace(rounded, dual_ns=rounded.dual_ns - 2).violations()] == ["status"]
    assert [one.rule for one in replace(rounded, dual_ns=None).violations()] == ["status"]


def first_schema(result: Result) -> dict[str, object]:
    """The file as cspsched wrote it before there was the status."""
    data = {**result.to_json(), "schema": "cspsched/result/1", "status": "feasible"}
    del data["gap_ns"]
    return data


def test_files_of_the_first_schema_are_read(rounded):
    """Feasible with the stop reason 'proven up to rounding' is what is now a status."""
    assert Result.from_json(first_schema(rounded)).status is UP_TO_ROUNDING


@pytest.mark.parametrize(
    "changes",
    [
        {"stop_reason": "time limit"},
        {"dual_ns": 1},
        {"dual_ns": None},
        {"schedule": None},
    ],
)
def test_other_files_of_the_first_schema_stay_as_they_are(rounded, changes):
    """Cut off, too far apart or without a schedule: feasible."""
    assert Result.from_json({**first_schema(rounded), **changes}).status is Status.FEASIBLE


def test_old_orders_stay_feasible(rounded):
    """Which of several stages was rounded an old file does not say."""
    stage = {"objective": "makespan", "primal_ns": 5, "dual_ns": 4, "certificate": "tokens"}
    old = Result.from_json({**first_schema(rounded), "earlier": [stage]})

    assert (old.status, old.earlier[0].status) == (Status.FEASIBLE, Status.FEASIBLE)
