"""`check` proves what a file states, names what it cannot, and refuses every forgery."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cspsched.errors import InputError
from cspsched.exact.model.batch_counts import BATCH_COUNTS
from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.model.start_model import StartModel
from cspsched.exact.packing.search import PACKING_SEARCH
from cspsched.exact.prices.aggregated_bound import LEVEL_WALKS
from cspsched.exact.states.search import STATE_SEARCH
from cspsched.exact.timed.search import TIMED_SEARCH
from cspsched.exact.watch import SearchLimits
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result, Status, StopReason
from cspsched.referee.metrics import measure
from cspsched.referee.timing import schedule_asap
from cspsched.studies import checking
from cspsched.studies.checking import Check, Claim, Verdict, check_result
from cspsched.studies.ladder import climb
from cspsched.studies.solving import solve
from tests.support.instances import instance_of, three_equal
from tests.support.strategies import instances, make_instance, one_after_another

NO_SEARCH = SearchLimits(time_limit_s=0)
SOME = SearchLimits(time_limit_s=5)
few = settings(max_examples=15, deadline=None, derandomize=True)
Data = dict[str, Any]
OPEN_SHAPES = [(4, 9), (2, 8), (6, 7), (1, 6), (3, 9, 5)]


def file_of(result: Result) -> Data:
    """What a reader of the file gets."""
    return json.loads(json.dumps(result.to_json()))


def open_file(objective: Objective = Objective.LATENCY) -> Data:
    """A result with a closed-form bound and an open gap."""
    instance = instance_of(OPEN_SHAPES, kv_blocks=16, max_batch_tokens=5)
    return file_of(solve(instance, objective, limits=NO_SEARCH).result)


def searched_file() -> Data:
    """A result that a search proved optimal; no closed-form bound reaches it."""
    return file_of(solve(three_equal(), limits=SearchLimits(time_limit_s=60)).result)


def test_the_searches_are_those_of_the_solver():
    """What is checked without loading the solver still knows its members by name."""
    models = {BatchModel.name, StartModel.name}
    members = {STATE_SEARCH, PACKING_SEARCH, TIMED_SEARCH, LEVEL_WALKS, BATCH_COUNTS}

    assert models | members == checking.SEARCHES
    assert {*checking.OF_MAKESPAN, *checking.OF_COMPLETION, *checking.OF_BURSTS, *checking.OF_SUMS} < (
        checking.SEARCHES
    )


def test_checking_loads_no_solver():
    """OR-Tools stays outside as long as nothing is searched again."""
    code = "import sys, cspsched.studies.checking; sys.exit('ortools' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def claim_of(checked: Check, name: str) -> Claim:
    """The last claim of a name."""
    return [claim for claim in checked.claims if claim.claim == name][-1]


def rules(data: Data) -> set[str]:
    """What a forged file is refused for."""
    return {fault.rule for fault in check_result(data).faults}


# What is true is accepted


@few
@given(instances(), st.sampled_from(Objective))
def test_what_solve_writes_is_accepted(instance, objective):
    """Schedule, value, class, bound and status of every result of the solver pass."""
    assume(not any(map(instance.rejection_of, instance.requests)))
    checked = check_result(file_of(solve(instance, objective, limits=SOME).result))

    assert checked.faults == ()
    assert {claim.claim for claim in checked.claims} == {"objective", "class", "gap", "bound", "status"}


@few
@given(instances(), st.sampled_from(["max-itl", "latency+2*max-itl", "makespan,latency", "mean-tpot"]))
def test_what_solve_writes_for_mixtures_and_orders_is_accepted(instance, objective):
    """Every stage has its own claim of value and bound."""
    assume(not any(map(instance.rejection_of, instance.requests)))
    assume(any(request.output_tokens > 1 for request in instance.requests))
    result = solve(instance, objective, limits=NO_SEARCH).result
    checked = check_result(file_of(result))

    assert checked.faults == ()
    bounds = [claim for claim in checked.claims if claim.claim == "bound"]
    assert len(bounds) == len(result.earlier) + 1
    assert {claim.verdict for claim in bounds} <= {Verdict.CONFIRMED, Verdict.REPEATED}


@pytest.mark.parametrize("objective", Objective)
def test_a_closed_form_bound_is_derived_again(objective):
    """By code that shares nothing with the solver, from the details in the file or without them."""
    data = open_file(objective)
    bare = {key: value for key, value in data.items() if key != "certificate_details"}

    for one in (data, bare):
        bound = claim_of(check_result(one), "bound")
        assert (bound.verdict, bound.rederived, bound.by) == (
            Verdict.CONFIRMED, data["dual_ns"], data["certificate"]
        )  # fmt: skip


def test_long_details_are_not_written(monkeypatch):
    """A certificate of more text than a file should hold is made anew when it is checked."""
    monkeypatch.setattr("cspsched.problem.result.MOST_DETAIL_LETTERS", 0)

    assert "certificate_details" not in open_file()


def test_a_large_instance_is_computed_again(monkeypatch):
    """Where separate code would take long the code that made the bound makes it again, and that is said."""
    monkeypatch.setattr(checking, "MOST_TOKENS", 1)
    data = open_file()
    bound = claim_of(check_result(data), "bound")

    assert bound.verdict is Verdict.REPEATED
    assert rules({**data, "dual_ns": data["dual_ns"] + 1}) == {"bound", "gap"}


def test_a_search_is_named_as_not_re_derived():
    """The bound of a search is believed, and the best bound that can be derived stands beside it."""
    data = searched_file()
    bound, status = (claim_of(check_result(data), name) for name in ("bound", "status"))

    assert data["status"] == "optimal"
    assert bound.verdict is status.verdict is Verdict.NOT_REDERIVED
    assert bound.stated == data["dual_ns"] > bound.rederived
    assert f"{data['dual_ns']} ns stated by {data['certificate']}, not re-derived; re-derived: at least" in (
        bound.sentence
    )


def test_a_search_is_repeated_on_demand():
    """With a search of its own `check` proves the bound again."""
    checked = check_result(searched_file(), prove=SearchLimits(time_limit_s=60))
    bound, status = (claim_of(checked, name) for name in ("bound", "status"))

    assert checked.faults == ()
    assert bound.verdict is status.verdict is Verdict.REPEATED
    assert bound.rederived == bound.stated


def test_a_search_without_time_proves_nothing_again():
    """What was not reached is said: the bound is neither confirmed nor refuted."""
    data = searched_file()
    bound = claim_of(check_result(data, prove=NO_SEARCH), "bound")

    assert (bound.verdict, bound.stated) == (Verdict.NOT_REDERIVED, data["dual_ns"])
    assert "not proven again in time: at least " in bound.sentence


@pytest.mark.parametrize("objective", [Objective.MAKESPAN, Objective.LATENCY])
def test_a_forged_search_is_found_out_by_another(objective):
    """A schedule that a search is said to have proven optimal is refuted by a better one."""
    instance = three_equal()
    batches = one_after_another(instance)
    schedule = schedule_asap(instance, batches, [[] for _ in batches])
    value_ns = measure(instance, schedule).objective_ns(objective)
    forged = file_of(
        Result(
            instance=instance,
            objective=objective,
            schedule=schedule,
            primal_ns=value_ns,
            dual_ns=value_ns,
            status=Status.OPTIMAL,
            stop_reason=StopReason.PROVEN,
            certificate="batch-indexed CP-SAT",
        )
    )
    believed = check_result(forged)
    checked = check_result(forged, prove=NO_SEARCH)

    assert believed.faults == ()
    assert {fault.rule for fault in checked.faults} == {"bound", "status"}
    assert f"{value_ns} ns stated, and " in claim_of(checked, "bound").sentence


def test_the_stages_of_an_order_are_proven_again_one_after_the_other():
    """A later stage is searched among the schedules that keep to the earlier values."""
    result = solve(make_instance((2, 2), (1, 3), kv_blocks=4), "makespan,max-itl", limits=SOME).result
    checked = check_result(file_of(result), prove=SOME)

    assert result.status is Status.OPTIMAL
    assert checked.faults == ()
    assert Verdict.NOT_REDERIVED not in {claim.verdict for claim in checked.claims}


def test_a_simulated_file_states_no_bound():
    """A feasible schedule without a bound is feasible, and nothing else."""
    data = {**open_file(), "dual_ns": None, "certificate": None, "gap": None, "gap_ns": None}
    checked = check_result(data)

    assert checked.faults == ()
    assert claim_of(checked, "bound").sentence == "none stated"


def test_rungs_of_a_ladder_are_accepted():
    """A bound that was handed down is not derived again; its rung is named."""
    ladder = climb(three_equal(), limits=SearchLimits(time_limit_s=60))
    checks = [check_result(file_of(rung.result)) for rung in ladder.solved]
    sentences = [claim_of(one, "bound").sentence for one in checks]

    assert [one.faults for one in checks] == [()] * len(checks)
    assert any("whose file has its proof" in sentence for sentence in sentences) == any(
        "(" in (rung.result.certificate or "") for rung in ladder.solved
    )


# What is false is refused


def forged(**changes: Any) -> Callable[[Data], Data]:
    return lambda data: {**data, **changes}


FORGERIES: dict[str, tuple[Callable[[Data], Data], set[str]]] = {
    "optimal": (forged(status="optimal"), {"status"}),
    "optimal and proven": (forged(status="optimal", stop_reason="proven"), {"status"}),
    "closed gap": (
        lambda data: {
            **data, "status": "optimal", "stop_reason": "proven", "dual_ns": data["primal_ns"], "gap": 0.0,
            "gap_ns": 0,
        },
        {"bound", "status"},
    ),
    "rounded": (
        forged(status="optimal_up_to_rounding", stop_reason="proven up to rounding"), {"status"}
    ),
    "proven": (forged(stop_reason="proven"), {"status"}),
    "infeasible": (forged(status="infeasible"), {"status"}),
    "dual by one": (lambda data: {**data, "dual_ns": data["dual_ns"] + 1}, {"bound", "gap"}),
    "dual above primal": (lambda data: {**data, "dual_ns": data["primal_ns"] + 1}, {"bound", "gap"}),
    "primal": (lambda data: {**data, "primal_ns": data["primal_ns"] - 1}, {"objective", "gap"}),
    "no certificate": (forged(certificate=None), {"bound"}),
    "unknown certificate": (forged(certificate="divination"), {"bound"}),
    "another objective's": (forged(certificate="kv-volume"), {"bound"}),
    "another member's": (
        forged(certificate="timed state search", provenance={"model": {"name": "state search"}}), {"bound"}
    ),
    "a search that cannot run": (forged(certificate="packing search"), {"bound"}),
    "a search of another objective": (forged(certificate="level walks"), {"bound"}),
    "class": (forged(policy_class="no preemption"), {"class"}),
    "gap": (forged(gap=0.0), {"gap"}),
    "gap_ns": (forged(gap_ns=0), {"gap"}),
    "unit": (forged(unit="1/2 ns"), {"unit"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_every_forgery_is_refused(name):
    """A file whose status, bound, certificate, value, class or gap is false is refused for just that."""
    data = open_file()
    forge, refused_for = FORGERIES[name]

    assert rules(data) == set()
    assert rules(forge(data)) == refused_for


@few
@given(instances(), st.sampled_from(Objective), st.sampled_from(sorted(FORGERIES)))
def test_forgeries_of_random_files_are_refused(instance, objective, name):
    """Whatever the instance and the objective, no open file can be made to look better."""
    assume(not any(map(instance.rejection_of, instance.requests)))
    data = file_of(solve(instance, objective, limits=NO_SEARCH).result)
    assume(data["status"] == "feasible" and data["gap_ns"] > 0)
    # These are true of some instances.
    assume(name not in ("rounded", "class", "another objective's", "a search that cannot run"))
    assume(name != "a search of another objective" or objective is not Objective.MAKESPAN)

    assert rules(FORGERIES[name][0](data))


@pytest.mark.parametrize("column", ["start_ns", "end_ns", "tokens", "kv_tokens", "request"])
def test_a_changed_schedule_is_refused(column):
    """One more in any entry of the schedule breaks a rule or the stated value."""
    data = open_file()
    for position in range(len(data["schedule"][column])):
        changed = copy.deepcopy(data)
        changed["schedule"][column][position] += 1
        assert rules(changed), (column, position)


def test_a_narrower_instance_is_another_claim():
    """A file whose switches forbid what its schedule does is refused, whatever it calls itself."""
    data = searched_file()
    data["instance"]["switches"]["preemption"] = "none"
    del data["fingerprint"]
    assert data["schedule"]["evicted_request"]

    assert rules(data) == {"preemption"}


def test_a_false_stage_is_refused():
    """The bound and the status of an earlier stage are checked like those of the last."""
    instance = make_instance((2, 2), (1, 3), kv_blocks=4)
    data = file_of(solve(instance, "max-itl,latency", limits=SOME).result)
    (stage,) = data["earlier"]

    assert rules(data) == set()
    assert rules({**data, "earlier": [{**stage, "certificate": "divination"}]}) == {"bound", "status"}
    assert "status" in rules({**data, "earlier": [{**stage, "dual_ns": stage["dual_ns"] - 1}]})
    assert rules({**data, "earlier": [{**stage, "status": "feasible"}]}) == {"status"}


DETAILS = st.sampled_from(["", "0", "-1", "1/0", "1/3", "x", "9" * 400, "1 2;3", 0, -1, 10**30, 1, 2])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(Objective), st.randoms(use_true_random=False), DETAILS)
def test_spoilt_details_raise_no_bound(objective, rng: random.Random, value):
    """Whatever the details of a certificate hold, a bound above what it proves is refused in a sentence."""
    data = open_file(objective)
    details = data["certificate_details"]
    details[rng.choice(sorted(details))] = value
    checked = check_result({**data, "dual_ns": data["primal_ns"]})

    assert claim_of(checked, "bound").verdict is Verdict.REFUTED


def test_details_are_a_table(monkeypatch):
    """Details that are none are refused when the file is read."""
    data = open_file()
    for details in ([], {"from_ns": None}, {"from_ns": 0.5}, {"from_ns": True}, 3):
        with pytest.raises(InputError, match="certificate_details is "):
            check_result({**data, "certificate_details": details})


def test_the_status_of_an_order_is_that_of_its_stages():
    """An order that is called optimal while a stage is open is refused."""
    instance = instance_of(OPEN_SHAPES, kv_blocks=16, max_batch_tokens=5)
    result = solve(instance, "latency,makespan", limits=NO_SEARCH).result
    assert result.status is Status.FEASIBLE

    assert "status" in rules(file_of(replace(result, status=Status.OPTIMAL)))
