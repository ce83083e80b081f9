"""The gap ladder: rungs contain each other, intervals are certified, answers come with their proof."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from cspsched.errors import InfeasibleError, InternalError, UsageError
from cspsched.exact.watch import SearchLimits
from cspsched.problem.lifting import Restriction, lift, lift_all
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result, Status, StopReason
from cspsched.referee.rules import find_violations
from cspsched.report.ladder import HEADER, PROVEN, ladder_figure, markdown, rows, sentences, write_ladder
from cspsched.studies import ladder as ladder_module
from cspsched.studies.ladder import Ladder, Rung, Saving, climb, hand_down_bounds, ladder_steps, saving
from cspsched.studies.solving import solve
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.instances import NO_PREEMPTION, RUN_TO_COMPLETION, instance_of, three_equal
from tests.support.strategies import check_briefly, feasible_runs, instances

NO_SEARCH = SearchLimits(time_limit_s=0)
EXACT = SearchLimits(time_limit_s=60)
TWO_MICROSECONDS = 2_000


@pytest.fixture(scope="module")
def equal() -> Ladder:
    """The ladder of E2 and E3."""
    return climb(three_equal(), limits=EXACT)


@pytest.fixture(scope="module")
def open_ladder() -> Ladder:
    """A ladder without any search: every optimum lies in an interval."""
    shapes = [(4, 9), (2, 8), (6, 7), (1, 6), (3, 9, 5)]
    return climb(instance_of(shapes, kv_blocks=16, max_batch_tokens=5), Objective.LATENCY, limits=NO_SEARCH)


# Lifting


@pytest.mark.parametrize("restriction", Restriction)
@check_briefly
@given(feasible_runs())
def test_lifting_keeps_every_schedule_feasible(restriction, run):
    """Whatever was feasible is feasible without a restriction, whichever it is."""
    instance, schedule = run

    assert find_violations(lift(instance, restriction), schedule) == []


@check_briefly
@given(instances())
def test_lifted_limits_bind_nobody(instance):
    """Without M, C and R all fit at their peaks, with all their tokens in one batch."""
    for restriction in (Restriction.MEMORY, Restriction.BUDGET, Restriction.REQUESTS):
        instance = lift(instance, restriction)
    peaks = [request.peak_kv_tokens for request in instance.requests]

    assert sum(map(instance.limits.blocks_of, peaks)) <= instance.limits.kv_blocks
    assert sum(peaks) <= instance.limits.max_batch_tokens
    assert len(peaks) <= instance.limits.max_batch_requests


@pytest.mark.parametrize("restriction", Restriction)
def test_what_is_not_there_is_not_lifted(restriction):
    """An instance with room and freedom for everything has nothing to relax; the refusal says why."""
    ample = instance_of([(2, 3), (4, 1)], kv_blocks=100)

    assert lift(ample, restriction) is ample
    with pytest.raises(UsageError, match=f"there is no limit on {restriction} to lift: .*leave it out"):
        lift_all(ample, [restriction])


# The climb


def test_e2_and_e3_are_two_rungs(equal):
    """The table of the problem's section 7: 0.166918 s without preemption, 0.140135 s with recompute."""
    values = {rung.name: rung.interval_ns for rung in equal.solved}

    for name, expected_ns in (("no preemption", 166_918_000), ("recompute", 140_135_000)):
        assert abs(values[name][1] - expected_ns) <= TWO_MICROSECONDS
        assert abs(values[name][0] - expected_ns) <= TWO_MICROSECONDS
    assert values["reservation"][1] >= values["no preemption"][1]


def test_every_rung_is_there_in_order_and_swap_says_why_it_is_not_solved(equal):
    """Six rungs; the fourth is skipped with a sentence where there is no host memory."""
    names = [rung.name for rung in equal.rungs]

    assert names == [
        "reservation",
        "no preemption",
        "recompute",
        "recompute or swap",
        "without C",
        "without M",
    ]
    assert [rung.name for rung in equal.rungs if rung.result is None] == ["recompute or swap"]
    assert "Skipped 'recompute or swap': there is no host memory to swap to." in sentences(equal)


def test_with_host_memory_the_rung_of_swap_is_climbed():
    """Swap is a rung of its own between recompute and no C, and the wider ones keep it."""
    instance = instance_of([(3, 4)] * 2, kv_blocks=9, max_batch_tokens=16)
    instance = replace(instance, limits=replace(instance.limits, host_kv_blocks=9))
    climbed = climb(instance, limits=EXACT)
    values = {rung.name: rung.interval_ns for rung in climbed.rungs}

    assert [rung.skipped for rung in climbed.rungs] == [None] * 6
    assert values["recompute or swap"][1] < values["recompute"][0]
    assert climbed.rungs[2].result.instance.limits.host_kv_blocks == 0
    assert climbed.rungs[4].policy_class == "recompute or swap, without budget"
    assert climbed.preemption.to_rung == "recompute or swap"


@pytest.mark.parametrize("text", ["max-itl", "latency+2*max-itl", "weighted-latency"])
def test_mixtures_climb_too(text):
    """Any objective that is a time has its ladder; one that counts requests is refused with a way out."""
    instance = instance_of([(2, 2), (3, 1)], kv_blocks=4)
    climbed = climb(instance, read_objectives(text, instance)[0], limits=EXACT)

    assert climbed.to_json()["objective"] == text
    for narrow, wide in itertools.pairwise(climbed.solved):
        assert wide.interval_ns[1] <= narrow.interval_ns[1]


def test_counts_are_not_climbed():
    """Rungs are compared in time."""
    instance = instance_of([(2, 2), (3, 1)], kv_blocks=4)
    limited = replace(instance, requests=tuple(replace(one, ttft_limit_ns=10) for one in instance.requests))
    with pytest.raises(UsageError, match="objective misses counts requests, and rungs are compared in time"):
        climb(limited, read_objectives("misses", limited)[0])


def test_policy_classes_name_what_is_forbidden_and_what_is_gone(equal):
    """No restricted optimum is called the optimum, and no unlimited one that of the instance."""
    classes = [rung.policy_class for rung in equal.solved]

    assert classes == [
        "no preemption, reservation",
        "no preemption",
        "full",
        "full, without budget",
        "full, without budget, without memory",
    ]


@pytest.mark.parametrize("objective", [Objective.MAKESPAN, Objective.LATENCY])
def test_rungs_agree_with_exhaustive_search(objective):
    """Each rung's optimum is the one found by trying every schedule of its class."""
    instance = instance_of([(2, 3), (1, 3)], kv_blocks=5, max_batch_tokens=2)
    climbed = climb(instance, objective, limits=EXACT)

    for step, rung in zip(ladder_steps(instance), climbed.rungs, strict=True):
        if step.skipped is None:
            optimum = exhaustive_optimum(step.instance, objective)
            bound, value = rung.interval_ns
            assert bound <= optimum <= value
            assert rung.result.verdict.startswith("optimal")
            assert value - bound <= 20


@check_briefly
@given(instances(), st.sampled_from(Objective))
def test_values_and_bounds_fall_from_rung_to_rung(instance, objective):
    """A wider class is never worse, its bound never higher, and nothing is below anybody's bound."""
    assume(not any(map(instance.rejection_of, instance.requests)))
    climbed = climb(instance, objective, limits=NO_SEARCH, heuristics=())
    intervals = [rung.interval_ns for rung in climbed.solved]

    for narrow, wide in itertools.pairwise(intervals):
        assert wide[0] <= narrow[0]
        assert wide[1] <= narrow[1]
    assert all(bound <= value for bound, value in intervals)
    assert all(rung.result.violations() == [] for rung in climbed.solved)


def test_a_schedule_is_handed_up_with_its_origin():
    """What only the search found with recompute is the schedule of the next rung, named after its origin."""
    climbed = climb(three_equal(), limits=EXACT, heuristics=())
    by_name = {rung.name: rung.result for rung in climbed.solved}

    assert by_name["recompute"].found_by == "state search"
    assert by_name["without C"].found_by == "state search (recompute)"
    assert by_name["without C"].schedule == by_name["recompute"].schedule


def test_rejected_requests_are_left_out_of_every_rung():
    """A request that never fits stays out also where memory is lifted, so that rungs are comparable."""
    instance = instance_of([(2, 2), (9, 9)], kv_blocks=8)

    with pytest.raises(InfeasibleError, match="request 'r0' alone needs 17 KV blocks"):
        climb(instance_of([(9, 9)], kv_blocks=8), limits=NO_SEARCH)
    climbed = climb(instance, limits=NO_SEARCH)
    assert {len(rung.result.instance.requests) for rung in climbed.solved} == {1}
    assert "1 request is left out of every rung; the first: request 'r1'" in " ".join(sentences(climbed))


def test_interrupt_keeps_the_rungs_that_were_climbed(monkeypatch):
    """After Ctrl-C in the second rung the first two have their intervals and the others say why not."""
    calls = itertools.count()

    def interrupted(*arguments, **options):
        solution = solve(*arguments, **options)
        if next(calls) == 1:
            result = replace(solution.result, stop_reason=StopReason.INTERRUPTED)
            return replace(solution, result=result)
        return solution

    monkeypatch.setattr(ladder_module, "solve", interrupted)
    climbed = climb(three_equal(), limits=NO_SEARCH)

    assert climbed.is_interrupted
    assert [rung.name for rung in climbed.solved] == ["reservation", "no preemption"]
    assert climbed.rungs[-1].skipped == "interrupted before its turn"
    assert climbed.preemption is None


def test_time_is_shared_among_the_rungs(monkeypatch):
    """Every rung gets an equal share of what is left, together not more than the limit."""
    shares = []

    def noted(*arguments, limits, **options):
        shares.append(limits.time_limit_s)
        return solve(*arguments, limits=NO_SEARCH, **options)

    monkeypatch.setattr(ladder_module, "solve", noted)
    monkeypatch.setattr("cspsched.studies.ladder.time.monotonic", lambda: 0.0)
    climb(three_equal(), limits=SearchLimits(time_limit_s=100))

    assert shares == [20, 25, pytest.approx(100 / 3), 50, 100]


# Bounds and savings


def rung_of(name: str, bound_ns: int, value_ns: int) -> Rung:
    """A rung with a made-up interval."""
    result = Result(
        instance=three_equal(), objective=Objective.MAKESPAN, schedule=None, primal_ns=value_ns,
        dual_ns=bound_ns, status=Status.FEASIBLE, stop_reason=StopReason.TIME_LIMIT, certificate="c",
    )  # fmt: skip
    return Rung(name=name, policy_class=name, result=result)


def test_bounds_are_handed_down_and_may_close_a_gap():
    """A bound of a wider class holds in a narrower one, keeps its name, and can prove the optimum there."""
    narrow, middle, wide = hand_down_bounds(
        [rung_of("narrow", 5, 10), rung_of("middle", 9, 9), rung_of("wide", 7, 8)]
    )
    closed = hand_down_bounds([rung_of("narrow", 5, 9), rung_of("wide", 9, 9)])[0]

    assert wide.interval_ns == (7, 8)
    assert middle.interval_ns == (9, 9)
    assert (narrow.interval_ns, narrow.result.certificate) == ((9, 10), "c (middle)")
    assert narrow.result.status is Status.FEASIBLE
    assert (closed.result.status, closed.result.stop_reason) == (Status.OPTIMAL, StopReason.PROVEN)


@pytest.mark.parametrize(("narrow", "wide"), [((1, 6), (7, 8)), ((1, 6), (1, 7))])
def test_a_contradiction_between_rungs_is_said(narrow, wide):
    """A narrower class below a wider one's bound, or better than it, is a bug and not a result."""
    with pytest.raises(InternalError, match="rung 'narrow' has a schedule of 6 ns"):
        hand_down_bounds([rung_of("narrow", *narrow), rung_of("wide", *wide)])


@given(st.lists(st.integers(1, 10**12), min_size=6, max_size=6))
def test_saving_holds_whatever_the_optima_are(numbers):
    """For all optima in the intervals, the wider one not worse, the difference is in the stated interval."""
    one, two, *others = sorted(numbers)
    narrow_bound, narrow_value = sorted(others[:2])
    wide_bound, wide_value = one, two
    stated = saving(rung_of("narrow", narrow_bound, narrow_value), rung_of("wide", wide_bound, wide_value))

    for narrow, wide in itertools.product((narrow_bound, narrow_value), (wide_bound, wide_value)):
        if wide <= narrow:
            assert stated.least_ns <= narrow - wide <= stated.most_ns
            assert stated.least_share - 1e-12 <= 1 - wide / narrow <= stated.most_share + 1e-12


@pytest.mark.parametrize(
    ("narrow", "wide", "verdict"),
    [
        ((10, 10), (8, 8), "yes"),
        ((10, 12), (8, 9), "yes"),
        ((10, 10), (10, 10), "no"),
        ((8, 12), (7, 9), "open"),
    ],
)
def test_verdict_is_proven_or_open(narrow, wide, verdict):
    """Yes and no need disjoint or equal intervals; whatever overlaps is open."""
    assert saving(rung_of("narrow", *narrow), rung_of("wide", *wide)).verdict == verdict


# Relaxing


def test_what_memory_costs_is_the_difference_of_two_optima():
    """E3 with and without its memory limit: both proven, and their difference is what memory costs."""
    instance = three_equal(NO_PREEMPTION)
    climbed = climb(instance, relax=[Restriction.MEMORY], limits=EXACT)
    given_ns, lifted_ns = (solve(one, limits=EXACT).result.primal_ns
                           for one in (instance, lift(instance, Restriction.MEMORY)))  # fmt: skip
    (cost,) = climbed.savings

    assert [rung.name for rung in climbed.rungs] == ["as given", "without memory"]
    assert cost.least_ns <= given_ns - lifted_ns <= cost.most_ns
    assert cost.least_ns > 0
    assert sentences(climbed)[0].startswith("What memory costs: ")
    assert climbed.preemption is None


def test_several_restrictions_are_lifted_together():
    """Chunking, holding and preemption at once turn run to completion into the full class."""
    instance = three_equal(RUN_TO_COMPLETION)
    together = [Restriction.CHUNKING, Restriction.HOLDING, Restriction.PREEMPTION]
    climbed = climb(instance, relax=together, limits=NO_SEARCH)

    assert climbed.rungs[1].name == "without chunking, holding, preemption"
    assert climbed.rungs[1].policy_class == "full"


def test_a_limit_that_does_not_bind_costs_nothing():
    """A budget that two requests at once would exceed, but never do: proven, lifting it saves nothing."""
    instance = instance_of([(2, 2)] * 2, kv_blocks=6, max_batch_tokens=5)
    climbed = climb(instance, relax=[Restriction.BUDGET], limits=EXACT)

    assert sentences(climbed)[0].startswith("What budget costs: nothing, proven")


# What people see


def test_the_answer_is_yes_with_its_proof(equal):
    """Preemption saves 16.05 % of E3's makespan, and both ends of the proof are named."""
    first = sentences(equal)[0]

    assert first.startswith(
        "Is preemption worth it here? Yes: it saves 16.05 % (26.78 ms) of the optimal makespan"
    )
    assert "Proven: without it no schedule has less than 0.16691" in first
    assert "with it one has 0.14013" in first
    assert equal.preemption.verdict == "yes"


def test_the_answer_is_no_where_memory_is_ample():
    """Two requests with room for both: proven, preemption saves nothing."""
    climbed = climb(instance_of([(2, 3), (3, 2)], kv_blocks=50), limits=EXACT)

    assert sentences(climbed)[0].startswith("Is preemption worth it here? No: proven, ")


def test_the_answer_is_open_where_intervals_overlap(open_ladder):
    """Without a search nothing is decided, and the sentence says how much it may be at most."""
    assert open_ladder.preemption.verdict == "open"
    assert "Not decided: it saves at most" in sentences(open_ladder)[0]
    assert "perhaps nothing" in sentences(open_ladder)[0]


def test_table_has_a_row_a_rung_and_a_column_a_fact(equal, open_ladder):
    """Skipped rungs have dashes; the saving of each solved rung is against the solved one before."""
    for climbed in (equal, open_ladder):
        table = rows(climbed)
        assert {len(row) for row in table} == {len(HEADER)}
        assert [row[0] for row in table] == [rung.name for rung in climbed.rungs]
        assert table[3][5] == "skipped"
        assert markdown(climbed).count("\n| ") == len(climbed.rungs) + 1
    assert rows(equal)[2][6] == "16.05 %"
    assert " to " in rows(open_ladder)[2][6]


def test_json_repeats_what_the_rungs_know(equal):
    """Values, bounds and savings in the JSON are those of the rungs; a skipped rung has nulls."""
    data = json.loads(json.dumps(equal.to_json()))

    assert data["schema"] == "cspsched/ladder/1"
    for rung, row in zip(equal.rungs, data["rungs"], strict=True):
        if rung.result is None:
            assert (row["value_ns"], row["bound_s"], row["status"]) == (None, None, None)
        else:
            assert (row["bound_ns"], row["value_ns"]) == rung.interval_ns
            assert row["fingerprint"] == rung.result.instance.fingerprint()
    assert data["preemption"]["saving_at_least_ns"] == equal.preemption.least_ns > 0
    assert len(data["savings"]) == len(equal.solved) - 1


def test_picture_has_a_bar_to_the_bound_and_one_to_the_value(open_ladder):
    """For each solved rung the dark bar ends at the bound and the pale one at the best schedule."""
    (axes,) = ladder_figure(open_ladder).axes
    dark = [bar for bar in axes.patches if bar.get_alpha() is None and to_hex(bar.get_facecolor()) == PROVEN]
    pale = [bar for bar in axes.patches if bar.get_alpha() is not None]
    ends = [rung.interval_ns for rung in open_ladder.solved]
    ratio = dark[0].get_width() / ends[0][0]

    assert len(dark) == len(pale) == len(ends)
    for first, second, (bound, value) in zip(dark, pale, ends, strict=True):
        assert first.get_width() == pytest.approx(bound * ratio)
        assert second.get_x() + second.get_width() == pytest.approx(value * ratio)


def test_files_hold_every_rung_and_the_referee_accepts_them(equal, tmp_path):
    """Table, JSON, picture and one result a solved rung, each without violations."""
    written = write_ladder(equal, tmp_path / "new")
    results = [path for path in written if path.name[0].isdigit()]

    assert {path.name for path in written} >= {"ladder.html", "ladder.md", "ladder.json", "ladder.png"}
    assert [path.name for path in results] == [
        "1-reservation.json",
        "2-no-preemption.json",
        "3-recompute.json",
        "5-without-C.json",
        "6-without-M.json",
    ]
    for path in results:
        result = Result.from_json(json.loads(Path(path).read_text()), path.name)
        assert result.violations() == []


def test_a_rung_without_a_result_has_no_interval():
    """Asking a skipped rung for its interval is a bug of the caller, and said so."""
    with pytest.raises(InternalError, match="rung 'x' has no result"):
        _ = Rung(name="x", policy_class="full", result=None, skipped="why").interval_ns


def test_savings_are_plain_values():
    """A saving survives JSON with its verdict."""
    stated = Saving(from_rung="a", to_rung="b", least_ns=0, most_ns=3, least_share=0.0, most_share=0.5)

    assert json.loads(json.dumps(stated.to_json()))["verdict"] == "open"
