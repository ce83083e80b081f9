"""Objectives as texts, as linear forms, and one after the other."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cspsched.errors import InputError
from cspsched.exact import lexicographic
from cspsched.exact.lexicographic import solve_in_order
from cspsched.exact.watch import SearchLimits
from cspsched.problem.linear_form import linear_form, read_objectives
from cspsched.problem.objectives import Measure, Mixture, Objective, Term, parse_stages
from cspsched.problem.result import Result, Status, StopReason, unit_of
from cspsched.referee.metrics import measure
from cspsched.referee.retiming import timings
from cspsched.referee.rules import find_violations
from cspsched.studies.solving import solve
from tests.support.objective_cases import OBJECTIVES, random_case
from tests.support.strategies import check_briefly, feasible_runs, make_instance

EXACT = SearchLimits(time_limit_s=30, num_workers=1)


@pytest.mark.parametrize("text", OBJECTIVES)
def test_objectives_are_read_as_they_are_written(text):
    """What an objective is called is what it is read from."""
    instance, _ = random_case(5)
    objectives = read_objectives(text, instance)
    named = ",".join(objective.value for objective in objectives)

    assert read_objectives(named, instance) == objectives


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "objective 'speed' is not known, expected a measure"),
        ("", "objective '' is not known"),
        ("latency,", "objective '' is not known"),
        ("-1*latency", "objective '-1*latency' is not known"),
        ("0*latency", "objective '0*latency' has the weight 0, expected a number above 0"),
        ("1/0*latency", "has the weight 1/0, expected a number above 0"),
        ("ttft,ttft", "names a stage twice"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text, message):
    """The sentence names the part that is wrong."""
    with pytest.raises(InputError) as caught:
        parse_stages(text)

    assert message in str(caught.value)


def test_nothing_to_miss_is_refused():
    """Misses are counted where a request has a limit."""
    with pytest.raises(InputError, match="no request has a limit to miss; give the trace a column"):
        read_objectives("misses", make_instance((1, 1)))


def test_sums_and_means_of_the_three_objectives_are_these():
    """Alone, a sum and its mean have the same optimum, so all members know them."""
    instance = make_instance((1, 2), (2, 2))

    assert read_objectives("mean-latency,2*ttft,makespan", instance) == (
        Objective.LATENCY,
        Objective.TTFT,
        Objective.MAKESPAN,
    )


@check_briefly
@given(feasible_runs())
def test_every_measure_is_what_its_definition_says(run):
    """The linear form of a measure, against numpy on the token times of any feasible schedule."""
    instance, schedule = run
    requests = [
        replace(request, ttft_limit_ns=20 + 5 * i, tpot_limit_ns=9)
        for i, request in enumerate(instance.requests)
    ]
    instance = replace(instance, requests=tuple(requests))
    metrics = measure(instance, schedule)
    latency, ttft, itl = metrics.latency_ns, metrics.ttft_ns, metrics.itl_ns
    several = metrics.output_tokens > 1
    tpot = [
        Fraction(int(all_of - first), int(outputs) - 1)
        for all_of, first, outputs in zip(latency, ttft, metrics.output_tokens, strict=True)
        if outputs > 1
    ]
    urgency = np.array([1 + max(r.priority for r in requests) - r.priority for r in requests])
    late = ttft > [r.ttft_limit_ns for r in requests]
    late[several] |= metrics.tpot_ns > 9
    expected = {
        Measure.MAKESPAN: int(schedule.end_ns.max()),
        Measure.LATENCY: int(latency.sum()),
        Measure.MEAN_LATENCY: Fraction(int(latency.sum()), len(requests)),
        Measure.WEIGHTED_LATENCY: int((urgency * latency).sum()),
        Measure.TTFT: int(ttft.sum()),
        Measure.MEAN_TTFT: Fraction(int(ttft.sum()), len(requests)),
        Measure.WEIGHTED_TTFT: int((urgency * ttft).sum()),
        Measure.ITL: int(itl.sum()),
        Measure.MEAN_ITL: Fraction(int(itl.sum()), len(itl) or 1),
        Measure.MAX_ITL: int(itl.max(initial=0)),
        Measure.TPOT: sum(tpot),
        Measure.MEAN_TPOT: sum(tpot) / (len(tpot) or 1),
        Measure.MAX_TPOT: max(tpot, default=0),
        Measure.MISSES: int(late.sum()),
        Measure.WEIGHTED_MISSES: int(urgency[late].sum()),
    }

    for name, value in expected.items():
        # A second term keeps the three objectives from being taken for themselves.
        text = f"{name}+makespan" if not name.counts else name.value
        mixture = read_objectives(text, instance)[0]
        whole = value if name.counts else value + expected[Measure.MAKESPAN]
        assert isinstance(mixture, Mixture)
        assert (name, Fraction(metrics.objective_ns(mixture), mixture.scale)) == (name, whole)


@check_briefly
@given(feasible_runs())
def test_a_schedule_without_idle_time_is_feasible_with_the_smallest_gaps(run):
    """Every batch as late as the last one allows: the referee has no objection, and no gap is longer."""
    instance, schedule = run
    versions = list(timings(instance, schedule))
    assume(len(versions) > 1)
    now, then = (measure(instance, one) for one in versions)

    assert find_violations(instance, versions[1]) == []
    assert (then.itl_ns <= now.itl_ns).all()
    assert then.makespan_ns == now.makespan_ns


def test_values_are_whole_in_their_unit():
    """TPOT of three and four gaps: twelfths of a nanosecond; misses beside times weigh seconds."""
    instance = make_instance((1, 4), (1, 5))
    limited = replace(instance, requests=tuple(replace(one, ttft_limit_ns=1) for one in instance.requests))
    tpot = read_objectives("tpot", instance)[0]
    mixed = read_objectives("2*misses+latency", limited)[0]
    counted = read_objectives("misses", limited)[0]

    assert (tpot.scale, unit_of(tpot), linear_form(tpot, instance).span) == (12, "1/12 ns", (4, 3))
    assert linear_form(mixed, limited).late == (2 * 10**9, 2 * 10**9)
    assert (unit_of(counted), counted.show(1, 2)) == ("request", "1 missed")
    assert Mixture((Term(Measure.MAX_ITL, Fraction(1, 2)),)).value == "1/2*max-itl"


def two_stages(limits=EXACT):
    """Two requests of which one must miss its limit, and what is done for the other."""
    instance = make_instance((3, 3), (3, 3), kv_blocks=5)
    requests = tuple(replace(request, ttft_limit_ns=1) for request in instance.requests)
    instance = replace(instance, requests=requests)
    return solve_in_order(instance, read_objectives("misses,latency", instance), limits)


def test_every_stage_is_proven_and_survives_its_json():
    """One miss cannot be avoided; the least latency with one miss follows, and all is in the file."""
    result = two_stages()
    stage = result.earlier[0]
    again = Result.from_json(result.to_json())

    assert (stage.objective.value, stage.primal_ns, stage.dual_ns) == ("misses", 1, 1)
    assert (result.objective, result.status) == (Objective.LATENCY, Status.OPTIMAL)
    assert result.violations() == again.violations() == []
    assert again.to_json() == result.to_json()


def test_a_wrong_stage_is_found():
    """Stages are measured again, and a result whose stage is open is not optimal."""
    result = two_stages()
    wrong = replace(result, earlier=(replace(result.earlier[0], primal_ns=0, dual_ns=0),))
    open_stage = replace(result, earlier=(replace(result.earlier[0], dual_ns=0),))

    assert [one.rule for one in wrong.violations()] == ["objective"]
    assert [one.rule for one in open_stage.violations()] == ["status"]


def test_stages_that_are_not_reached_are_still_certified():
    """Without time every stage has its first incumbent and its closed-form bound, and is said to be open."""
    instance, _ = random_case(3)
    result = solve_in_order(
        instance, read_objectives("makespan,latency", instance), SearchLimits(time_limit_s=0)
    )

    assert result.violations() == []
    assert (result.status, result.stop_reason) == (Status.FEASIBLE, StopReason.TIME_LIMIT)


def test_after_an_interruption_no_stage_is_searched(monkeypatch):
    """Ctrl-C in the first stage: the others are bounded, and the result says that it was interrupted."""
    limits = []
    solve_exactly = lexicographic.solve_exactly

    def interrupted(instance, objective, given, **options):
        limits.append(given.time_limit_s)
        result = solve_exactly(instance, objective, given, **options)
        return replace(result, stop_reason=StopReason.INTERRUPTED) if len(limits) == 1 else result

    monkeypatch.setattr(lexicographic, "solve_exactly", interrupted)

    assert two_stages().stop_reason is StopReason.INTERRUPTED
    assert limits[1] == 0


def test_solve_takes_a_text():
    """The library reads what the command line does."""
    instance = make_instance((2, 2), (1, 3), kv_blocks=4)
    result = solve(instance, "max-itl,latency", limits=EXACT).result

    assert [stage.objective.value for stage in result.earlier] == ["max-itl"]
    assert result.violations() == []


@pytest.mark.parametrize(
    ("objective", "value", "count", "shown"),
    [
        (Objective.MAKESPAN, 8_000_000_000_025_644_234, 2, "8000000000.025644234 s"),
        (Objective.MAKESPAN, 7, 2, "0.000000007 s"),
        (Objective.LATENCY, 2**60 + 1, 1, "1152921504.606846977 s"),
        (Objective.TTFT, 10**19 + 5, 3, "3333333333.333333335 s"),
        (Mixture((Term(Measure.LATENCY),)), 2**60 + 1, 7, "1152921504.606846977 s"),
        (Mixture((Term(Measure.MEAN_TPOT),), scale=4), 2**62 + 8, 7, "1152921504.606846978 s"),
        (Mixture((Term(Measure.MISSES),), scale=2), 3, 7, "1.5 missed"),
    ],
)
def test_values_are_shown_to_the_nanosecond(objective, value, count, shown):
    """All nine decimals are right, however large the number; floats have about 16 digits."""
    assert objective.show(value, count) == shown


@given(st.integers(0, 10**22), st.integers(1, 1000))
def test_shown_seconds_are_the_nearest(value_ns, count):
    """A mean is rounded to the nearest nanosecond, half to even, and to nothing else."""
    number = Fraction(Objective.LATENCY.show(value_ns, count).removesuffix(" s"))

    assert number == Fraction(round(Fraction(value_ns, count)), 10**9)
