"""Members of the portfolio that fail: they cost their proofs, and never what is known without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.errors import InternalError, StuckError
from cspsched.exact import portfolio, race
from cspsched.exact.closed_form import closed_form_bound
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.lexicographic import solve_in_order
from cspsched.exact.members import Clock
from cspsched.exact.model import member as model_member
from cspsched.exact.model.member import ModelMember
from cspsched.exact.record import Proof, Record, best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits, Watch
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result, Status, StopReason
from cspsched.referee.timing import schedule_asap
from cspsched.simulate import simulate
from cspsched.studies.ladder import climb
from cspsched.studies.solving import solve
from tests.support.command_line import invoke
from tests.support.instances import RUN_TO_COMPLETION, hindsight, instance_of, late_mixed, three_equal

TINY_LATE = instance_of([(3, 3), (2, 4, 1), (3, 2)], kv_blocks=8)
"""Small, and not for the search of states without times."""
BURST = instance_of([(4 + i % 3, 6 + i % 5) for i in range(7)], kv_blocks=30)
"""All at 0, and not proven at once: the state search, and others beside it."""
LONG = instance_of([(4 + i % 5, 6 + i % 7, 10**7 * (i == 20)) for i in range(21)], kv_blocks=60)
"""Too long for either state search: local search, aggregated states and the model."""


def broken(*_, **__):
    """A member with a mistake in it."""
    raise KeyError((0, 11))


def solved(instance, objective, *, workers, seconds=1.0):
    """A short solve."""
    return solve_exactly(instance, objective, SearchLimits(time_limit_s=seconds, num_workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("instance", "objective"),
    [
        (BURST, Objective.LATENCY),
        (hindsight(1000), Objective.LATENCY),
        (instance_of([(3, 9)] * 9, kv_blocks=40, switches=RUN_TO_COMPLETION), Objective.MAKESPAN),
        (late_mixed(), Objective.LATENCY),
        (LONG, Objective.MAKESPAN),
    ],
    ids=["states", "completion", "counts", "timed", "model"],
)
def test_without_any_member_incumbent_and_closed_form_bound_remain(instance, objective, workers, monkeypatch):
    """Every member fails: the result is that of no search at all, and names them with line and message."""
    for row in portfolio.PORTFOLIO:
        monkeypatch.setattr(row.make, "run", broken)
    result = solved(instance, objective, workers=workers)
    bound = closed_form_bound(instance, objective)

    assert (result.dual_ns, result.certificate) == (bound.value_ns, bound.name)
    assert result.primal_ns == best_incumbent(instance, objective, list_schedules(instance)).value_ns
    assert (result.status, result.stop_reason) == (Status.FEASIBLE, StopReason.FAILED)
    failures = result.provenance["failures"]
    assert {"CP-SAT"} <= {failure["name"] for failure in failures}
    assert {failure["error"] for failure in failures} == {"KeyError"}
    assert {failure["message"] for failure in failures} == {"(0, 11)"}
    assert failures[0]["where"].startswith("exact/test_failures.py:")
    assert Result.from_json(result.to_json()).provenance == result.provenance


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("instance", "member", "name"),
    [
        (three_equal(), "states.member.search_states", "state search"),
        (three_equal(RUN_TO_COMPLETION), "packing.member.search_packing", "packing search"),
        (TINY_LATE, "timed.member.TimedSearch", "timed state search"),
    ],
    ids=["states", "packing", "timed"],
)
def test_the_model_proves_what_a_failed_search_would_have(instance, member, name, workers, monkeypatch):
    """A state search that fails leaves its time to the others, which close the gap here."""
    monkeypatch.setattr(f"cspsched.exact.{member}", broken)
    result = solved(instance, Objective.LATENCY, workers=workers, seconds=60)

    assert result.status is Status.OPTIMAL
    assert [failure["name"] for failure in result.provenance["failures"]] == [name]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_model_leaves_the_proof_of_the_timed_search(workers, monkeypatch):
    """What runs beside the model, or before it, still proves the optimum."""
    monkeypatch.setattr(race, "HEAD_START_S", 0.0)
    monkeypatch.setattr(model_member, "complete_hint", broken)
    result = solved(TINY_LATE, Objective.LATENCY, workers=workers, seconds=60)

    assert (result.status, result.certificate) == (Status.OPTIMAL, "timed state search")


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        ("states.member.state_space", "state search"),
        ("states.member.compile_states", "state search"),
        ("timed.member.build_timed_space", "timed state search"),
        ("heuristics.member.can_dispatch", "local search"),
        ("prices.member.can_bound_levels", "level walks"),
    ],
)
def test_what_prepares_a_search_may_fail_too(builder, name, monkeypatch):
    """Tables that cannot be built cost their search alone, which is named."""
    monkeypatch.setattr(f"cspsched.exact.{builder}", broken)
    instance = TINY_LATE if name == "timed state search" else BURST
    objective = Objective.MAKESPAN if name == "level walks" else Objective.LATENCY
    result = solved(instance, objective, workers=2, seconds=1.0)

    assert result.violations() == []
    assert {failure["name"] for failure in result.provenance["failures"]} == {name}


def test_ctrl_c_is_no_failure(monkeypatch):
    """A member that is interrupted interrupts the solve."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelMember, "run", interrupted)
    result = solved(LONG, Objective.MAKESPAN, workers=2)

    assert result.stop_reason is StopReason.INTERRUPTED
    assert result.provenance["failures"] == []


def test_nothing_fails_in_a_sound_solve():
    """The list of failures is there, and empty."""
    result = solved(TINY_LATE, Objective.LATENCY, workers=2, seconds=60)

    assert (result.status, result.provenance["failures"]) == (Status.OPTIMAL, [])


def record_of(instance, objective):
    """The record of a solve that has not begun."""
    incumbent = best_incumbent(instance, objective, list_schedules(instance))
    watch = Watch(SearchLimits(), incumbent.value_ns, 5, None)
    return Record(instance, objective, incumbent, Proof(dual_ns=5, certificate="closed form"), watch)


def test_a_refuted_bound_is_taken_back_alone():
    """A bound above the referee's value of a schedule is wrong: the best of the others counts."""
    record = record_of(late_mixed(), Objective.LATENCY)
    value_ns = record.incumbent.value_ns
    record.raise_bound("sound", 7, {"name": "sound"})
    record.raise_bound("unsound", value_ns + 1, {"name": "unsound"})
    record.check()

    assert (record.proof.dual_ns, record.proof.certificate) == (7, "sound")
    assert [(failure.name, failure.error) for failure in record.failures] == [("unsound", "InternalError")]
    assert f"unsound proves {value_ns + 1} ns" in record.failures[0].sentence


def test_without_any_sound_bound_nothing_is_reported():
    """If the closed form itself is above a schedule's value there is nothing left to rely on."""
    record = record_of(late_mixed(), Objective.LATENCY)
    record = Record(
        record.instance,
        record.objective,
        record.incumbent,
        Proof(dual_ns=record.incumbent.value_ns + 1, certificate="closed form"),
        record.watch,
    )
    with pytest.raises(InternalError, match="closed form proves"):
        record.check()


@pytest.mark.parametrize("moment", ["certified_horizon", "build_model"])
def test_the_model_is_of_one_incumbent(moment, monkeypatch):
    """A longer schedule that is found while the model is built is neither its hint nor its limit."""
    instance = instance_of([(12, 2), (3, 2, 5)], kv_blocks=20)
    record = record_of(instance, Objective.LATENCY)
    single = [[(0, 1)]] * 13 + [[(1, 1)]] * 4
    longer = replace(record.incumbent, schedule=schedule_asap(instance, single, [[] for _ in single]))
    assert longer.schedule.num_batches > record.incumbent.schedule.num_batches
    build_model = model_member.build_model

    def meanwhile(*args):
        monkeypatch.setattr(Record, "incumbent", longer)
        return 1 if moment == "certified_horizon" else build_model(*args)

    monkeypatch.setattr(model_member, "certified_horizon", lambda *_: 1)
    monkeypatch.setattr(model_member, moment, meanwhile)
    reason, details = ModelMember().run(record, Clock(record, SearchLimits(time_limit_s=1.0)))

    assert details["horizon_batches"] < longer.schedule.num_batches
    assert reason in (StopReason.PROVEN, StopReason.TIME_LIMIT)


def test_failures_are_told_in_one_line_each(monkeypatch, capsys, tmp_path):
    """The command says on stderr which search it did without, and prints its verdict as ever."""
    monkeypatch.setattr("cspsched.exact.states.member.search_states", broken)
    trace = tmp_path / "equal.csv"
    rows = ("request_id,arrival_s,prompt_tokens,output_tokens", "a,0,2,4", "b,0,2,4", "c,0,2,4")
    trace.write_text("\n".join(rows), encoding="utf-8")
    limits = ("--cost", "infermax-70b-linear", "--kv-tokens", "9", "--block-tokens", "1")
    outcome = invoke(capsys, "solve", trace, *limits, "--workers", "1", "--out", tmp_path / "out")
    told = [line for line in outcome.err.splitlines() if "passed over" in line]

    assert outcome.code == 0
    assert outcome.out.startswith("OPTIMAL")
    assert len(told) == 1
    assert told[0].startswith("state search is passed over: KeyError at exact/test_failures.py:")


def test_failures_of_every_stage_are_kept(monkeypatch):
    """Of objectives one after the other, those of the earlier ones count too."""
    monkeypatch.setattr(ModelMember, "run", broken)
    result = solve_in_order(
        TINY_LATE,
        [Objective.TTFT, Objective.MAKESPAN],
        SearchLimits(time_limit_s=2, num_workers=1),
    )

    assert result.violations() == []
    assert [failure.name for failure in result.failures] == ["CP-SAT"]


STUCK = instance_of([(1, 3)] * 3, kv_blocks=4, max_batch_tokens=2, switches=Switches(chunked_prefill=False))
"""vLLM preempts, and a refill of three tokens never fits into a batch of two."""


@pytest.mark.parametrize("heuristics", [("vllm",), ("vllm", "infermax")])
def test_a_stuck_heuristic_is_passed_over_and_named(heuristics):
    """It has no schedule to offer; the solve does without, be it one request after the other."""
    with pytest.raises(StuckError):
        simulate(STUCK, make_policy("vllm"))
    result = solve(STUCK, limits=SearchLimits(time_limit_s=60, num_workers=1), heuristics=heuristics).result

    assert (result.status, result.violations()) == (Status.OPTIMAL, [])
    assert result.failures[0].name == "vllm"
    assert result.failures[0].error == "StuckError"
    assert "schedules nothing" in result.failures[0].sentence


def test_the_ladder_passes_over_stuck_heuristics_rung_by_rung():
    """Where a policy gets stuck depends on the class; each result says so for its own."""
    ladder = climb(STUCK, limits=SearchLimits(time_limit_s=6, num_workers=1), heuristics=["vllm"])

    assert all(rung.result is not None and rung.result.schedule is not None for rung in ladder.solved)
    assert "vllm" in {failure.name for rung in ladder.solved for failure in rung.result.failures}
