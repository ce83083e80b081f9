"""Policies against the best possible schedule: the excess is certified, consistent, and the same for all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.costs.presets import load_cost
from cspsched.errors import InputError, UsageError
from cspsched.exact.watch import Listener, SearchLimits
from cspsched.improve.rivals import REFERENCE_SET
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.problem.result import StopReason
from cspsched.referee.judge import judge
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.report import table
from cspsched.studies.compare import COMPARISON_SCHEMA, Comparison, compare_policies
from cspsched.studies.reference import SMALL_CELLS, ReferenceLimits, default_steps
from cspsched.studies.solving import solve
from tests.support.strategies import UNIT, make_instance

NO_SEARCH = ReferenceLimits(work_s=0, steps=0)
BRIEF = SearchLimits(time_limit_s=0)
POLICIES = ("vllm", "sarathi:chunk=4")


MIXED = ((4, 4), (2, 8), (6, 3), (1, 6))


def crowded(shapes: tuple[tuple[int, int], ...] = MIXED, **limits: int) -> Instance:
    """Requests that arrive together in 16 tokens of KV cache; a batch costs a base time and its tokens."""
    requests = tuple(
        Request(request_id=f"r{i}", arrival_ns=0, prompt_tokens=prompt, output_tokens=output)
        for i, (prompt, output) in enumerate(shapes)
    )
    values = {"kv_blocks": 16, "block_tokens": 1, "max_batch_tokens": 32, "max_batch_requests": 8, **limits}
    return Instance(requests=requests, limits=Limits(**values), cost=load_cost("infermax-7b"))


@pytest.fixture(scope="module", params=list(Objective), ids=str)
def comparison(request: pytest.FixtureRequest) -> Comparison:
    """Both policies on the crowded instance without a search, by each objective."""
    return compare_policies(crowded(), POLICIES, request.param, limits=NO_SEARCH)


def test_rows_are_the_policies_in_the_order_of_the_call(comparison):
    """One row a policy, under its label."""
    assert [row.policy for row in comparison.rows] == list(POLICIES)


def test_value_of_a_row_is_that_of_its_metrics(comparison):
    """The excess is of the same number that the metrics give for the objective, in nanoseconds."""
    for row in comparison.rows:
        assert row.value_ns == row.metrics.objective_ns(comparison.objective)


def test_every_schedule_is_accepted_by_the_referee(comparison):
    """What is compared is feasible."""
    for row in comparison.rows:
        assert find_violations(comparison.instance, row.metrics.history.schedule) == []


def test_excess_is_an_interval_around_the_unknown_optimum(comparison):
    """Lower end over the best known schedule, upper end over the bound; all from the values in the report."""
    reference = comparison.reference

    assert 0 < reference.bound_ns <= reference.best_known_ns
    for row in comparison.rows:
        low, high = row.excess
        assert 0 <= low <= high
        assert low == (row.value_ns - reference.best_known_ns) / reference.best_known_ns
        assert high == (row.value_ns - reference.bound_ns) / reference.bound_ns


def test_best_known_is_at_least_as_good_as_every_policy(comparison):
    """No policy beats the reference that it is measured against."""
    assert comparison.reference.best_known_ns <= min(row.value_ns for row in comparison.rows)


def test_a_policy_that_is_the_best_known_has_no_certain_excess(comparison):
    """If the best known schedule is a policy's own, its interval starts at exactly 0."""
    for row in comparison.rows:
        if row.policy == comparison.reference.best_known_by:
            assert row.excess[0] == 0.0


def test_small_instance_is_solved_to_the_optimum():
    """On a small trace the reference is the exact optimum, and each excess is one number over it."""
    instance = crowded(shapes=((2, 4), (3, 3), (2, 2)), kv_blocks=9)
    instance = replace(instance, cost=load_cost("infermax-70b-linear"))
    comparison = compare_policies(instance, POLICIES, Objective.MAKESPAN)
    optimum = solve(instance, Objective.MAKESPAN).result

    assert comparison.reference.is_optimum
    assert comparison.reference.stop_reason is StopReason.PROVEN
    assert comparison.reference.best_known_ns == optimum.primal_ns == optimum.dual_ns
    for row in comparison.rows:
        assert row.excess[0] == row.excess[1] == (row.value_ns - optimum.primal_ns) / optimum.primal_ns


@pytest.mark.parametrize("policies", [["vllm"], ["sarathi", "smallest-volume"]])
@pytest.mark.parametrize("cells", [0, SMALL_CELLS])
def test_the_best_known_schedule_is_kept(monkeypatch, policies, cells):
    """It has the best known value by the referee, whether a policy, a search or the solver found it."""
    monkeypatch.setattr("cspsched.studies.reference.SMALL_CELLS", cells)
    comparison = compare_policies(crowded(), policies)
    judged = judge(comparison.instance, comparison.reference.schedule)

    assert judged.violations == ()
    assert judged.metrics.objective_ns(Objective.LATENCY) == comparison.reference.best_known_ns


def test_large_instance_is_bounded_without_a_search(monkeypatch):
    """Beyond the size for the exact solver a search and the best certificate make the reference."""
    monkeypatch.setattr("cspsched.studies.reference.SMALL_CELLS", 10)
    comparison = compare_policies(crowded(), POLICIES)
    best = min(comparison.rows, key=lambda row: row.value_ns)

    assert comparison.reference.stop_reason is StopReason.TOO_LARGE
    assert comparison.reference.best_known_ns <= best.value_ns
    assert SMALL_CELLS > 10


def test_rejections_are_the_same_for_all_policies():
    """A request that can never fit is left out once, before any policy sees it."""
    comparison = compare_policies(crowded(kv_blocks=8), POLICIES, limits=NO_SEARCH)

    assert [rejection.request.request_id for rejection in comparison.rejections] == ["r1"]
    assert [request.request_id for request in comparison.instance.requests] == ["r0", "r2", "r3"]
    for row in comparison.rows:
        assert row.metrics.to_json()["num_requests"] == 3


def test_one_policy_is_enough():
    """A comparison of one policy says how far it is from the best possible."""
    comparison = compare_policies(crowded(), ["sarathi"], limits=NO_SEARCH)

    assert [row.policy for row in comparison.rows] == ["sarathi"]


def test_settings_make_a_policy_another_one():
    """The same scheduler under two settings is two policies."""
    comparison = compare_policies(crowded(), ["vllm", "vllm:max_num_seqs=1"], limits=NO_SEARCH)
    free, alone = comparison.rows

    assert (free.policy, alone.policy) == ("vllm", "vllm:max_num_seqs=1")
    assert free.value_ns < alone.value_ns


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([], "name at least one policy, and each once; got: none"),
        (["vllm", "vllm"], "got: vllm, vllm"),
        (["vllm", "vllm:"], "got: vllm, vllm"),
        (["sarathi", "sarathi:chunk=512"], "got: sarathi, sarathi"),
        (["vlm"], "did you mean 'vllm'"),
    ],
)
def test_policies_that_make_no_comparison_are_refused(policies, message):
    """None, an unknown one, and the same one twice, also where only the spelling differs."""
    with pytest.raises(UsageError, match=message):
        compare_policies(crowded(), policies)


def test_nothing_to_serve_is_an_error():
    """If every request is too large, the first reason is given."""
    with pytest.raises(Exception, match="no request can be served; the first: request 'r0'") as caught:
        compare_policies(crowded(kv_blocks=1), POLICIES)

    assert isinstance(caught.value, InputError) or caught.value.exit_code == 4


def test_steps_are_told_in_order():
    """Each policy and the bound are announced."""
    steps: list[str] = []
    compare_policies(crowded(), POLICIES, limits=NO_SEARCH, listener=Listener(step=steps.append))

    assert [step.split()[:2] for step in steps] == [
        ["simulating", "vllm"],
        ["simulating", "sarathi:chunk=4"],
        ["bounding", "percentiles"],
        *(["simulating", name] for name in REFERENCE_SET),
        ["bounding", "mean"],
    ]


def test_json_has_values_units_and_the_caveat(comparison):
    """The JSON repeats the numbers of the objects, per request where the objective is a sum."""
    data = comparison.to_json()
    count = 1 if comparison.objective is Objective.MAKESPAN else 4

    assert data["schema"] == COMPARISON_SCHEMA
    assert data["num_requests"] == 4
    assert data["fingerprint"] == comparison.instance.fingerprint()
    assert "clairvoyant" in data["reference"]["note"]
    assert data["reference"]["bound_s"] == pytest.approx(comparison.reference.bound_ns / 1e9 / count)
    for shown, row in zip(data["policies"], comparison.rows, strict=True):
        assert (shown["policy"], shown["value_ns"]) == (row.policy, row.value_ns)
        assert [shown["excess_at_least"], shown["excess_at_most"]] == list(row.excess)
        again = measure(comparison.instance, row.metrics.history.schedule)
        assert shown["makespan_s"] == again.to_json()["makespan_s"]


def test_comparison_repeats_to_the_byte():
    """Twice the same instance and policies give the same JSON."""
    first, second = (compare_policies(crowded(), POLICIES, limits=NO_SEARCH).to_json() for _ in range(2))

    assert first == second


def test_a_band_of_batch_times_is_compared_at_both_ends():
    """With batches of half and of twice the time a burst's makespan halves and doubles; excess as before."""
    instance = make_instance((3, 4), (2, 5), (4, 2), kv_blocks=14)
    band = (replace(UNIT, step=UNIT.step * 50), replace(UNIT, step=UNIT.step * 200))
    middle = compare_policies(
        replace(instance, cost=replace(UNIT, step=UNIT.step * 100)), ["vllm"], Objective.MAKESPAN, band=band
    )
    ends = middle.ends

    assert list(ends) == ["fast", "slow"]
    assert ends["fast"].rows[0].value_ns * 2 == middle.rows[0].value_ns
    assert ends["slow"].rows[0].value_ns == middle.rows[0].value_ns * 2
    assert ends["fast"].rows[0].excess == middle.rows[0].excess == ends["slow"].rows[0].excess


@pytest.mark.parametrize(
    "switches", [{"reservation": True}, {"preemption": Preemption.NONE}, {"preemption": Preemption.SWAP}]
)
def test_the_reference_goes_without_those_who_cannot_run(switches):
    """A policy that the instance suits is compared, whatever others make of the rules."""
    instance = crowded(shapes=((5, 6),) * 5, kv_blocks=24)
    instance = replace(
        instance, switches=Switches(**switches), limits=replace(instance.limits, host_kv_blocks=10)
    )
    told: list[str] = []
    comparison = compare_policies(
        instance, ["tensorrt-llm"], limits=NO_SEARCH, listener=Listener(step=told.append)
    )

    assert any(step.startswith("the reference goes without") for step in told)
    assert find_violations(instance, comparison.rows[0].metrics.history.schedule) == []
    assert solve(instance, limits=BRIEF, heuristics=["fastserve", "vllm"]).result.schedule is not None


@pytest.mark.parametrize(
    ("count", "output_tokens", "steps"),
    [(2000, 205, 200), (2000, 412, 100), (20_000, 206, 20), (200, 2060, 200), (100_000, 400, 10)],
)
def test_steps_of_the_search_are_counted_in_output_tokens(count, output_tokens, steps):
    """A step takes as long as the trace has output tokens, however many requests they are of."""
    instance = make_instance(*[(1, output_tokens)] * count, kv_blocks=5000)

    assert default_steps(instance) == pytest.approx(steps, rel=0.01)
    assert ReferenceLimits().search(instance).max_steps == default_steps(instance)
    assert ReferenceLimits(steps=7).search(instance).max_steps == 7


def test_a_comparison_is_short_in_a_session_and_a_table_in_a_notebook(comparison):
    """Each policy with its interval in one line; in HTML every row and note, escaped."""
    text, html = repr(comparison), comparison._repr_html_()

    assert len(text) < 300
    for row in comparison.rows:
        assert row.policy in text
        assert f"<td>{row.policy}</td>" in html
    assert html.count("<tr>") == 1 + len(comparison.rows) + len(table.bounds_row(comparison))
    assert "clairvoyant" in html


def test_a_comparison_is_a_frame(comparison):
    """A row a policy, with the numbers of the JSON."""
    frame, data = comparison.to_frame(), comparison.to_json()["policies"]

    assert list(frame["policy"]) == [row["policy"] for row in data]
    assert list(frame["ttft_s.p99"]) == [row["ttft_s"]["p99"] for row in data]
    assert list(frame["value_ns"]) == [row.value_ns for row in comparison.rows]
