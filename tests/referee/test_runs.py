"""The referee on runs: the verdict, the sentences and the metrics of the same schedule entry by entry."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import InputError, InternalError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.runs import Runs, RunSchedule
from cspsched.problem.schedule import COLUMNS, Schedule
from cspsched.referee import judge as judging
from cspsched.referee import runs as referee_runs
from cspsched.referee.history import History, follow
from cspsched.referee.judge import judge
from cspsched.referee.metrics import Gaps, measure, summary_s
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.simulate.kernel import simulate_fast
from tests.oracles.naive_referee import broken_rules
from tests.support.drafts import MUTATIONS, Draft
from tests.support.strategies import check, feasible_runs, make_instance

HISTORY = ("kv_before", "generated_before", "generates", "decodes", "kv_evicted", "kv_after", "finishes")


@pytest.fixture(autouse=True)
def _always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small schedules are walked by entries else."""
    monkeypatch.setattr(judging, "FEWEST_COMPILED", 0)


def in_runs(schedule: Schedule, rng: random.Random, joins: list[bool] | None = None) -> RunSchedule:
    """The same entries, those of one token joined with the next of their request here and there.

    `joins` says which entries may be part of a run; all of one token if it is left out.
    """
    joins = joins or (schedule.tokens == 1).tolist()
    columns = (getattr(schedule, name).tolist() for name in ENTRY_COLUMNS)
    entries = list(zip(*columns, joins, strict=True))
    steps = sorted({j for j, _, _, _, may_join in entries if may_join and rng.random() < 0.9})
    rows, growing = [], {}
    for j, i, c, m, may_join in entries:
        is_run = may_join and j in steps and rng.random() < 0.9
        first = steps.index(j) if is_run else j
        row = growing.get(i)
        if is_run and row and row["end"] == first and row["kv"] + row["length"] == m and rng.random() < 0.9:
            row["length"] += 1
            row["end"] += 1
            continue
        row = {"i": i, "run": is_run, "first": first, "end": first + 1, "length": 1, "c": c, "kv": m}
        rows.append(row)
        growing[i] = row if is_run else None
    return RunSchedule.of(
        Runs(
            request=column(rows, "i"),
            is_decode_run=column(rows, "run").astype(bool),
            first=column(rows, "first"),
            length=column(rows, "length"),
            tokens=column(rows, "c"),
            kv_tokens=column(rows, "kv"),
            rank=np.arange(len(rows)),
            step_batch=np.array(steps, dtype=np.intp),
        ),
        start_ns=schedule.start_ns,
        end_ns=schedule.end_ns,
        evicted_batch=schedule.evicted_batch,
        evicted_request=schedule.evicted_request,
    )


ENTRY_COLUMNS = ("batch_of_entry", "request", "tokens", "kv_tokens")


def column(rows, name):
    """One field of all rows."""
    return np.array([row[name] for row in rows], dtype=np.int32)


def of_entries(schedule: Schedule) -> Schedule:
    """A schedule without runs."""
    return Schedule(**{name: getattr(schedule, name) for name in COLUMNS})


def has_runs(schedule: Schedule) -> bool:
    """Whether runs can tell all of it: without swap and empty batches."""
    return (
        not len(schedule.restored_batch) and not schedule.evicted_to_host.any() and schedule.num_batches > 0
    )


@given(feasible_runs(), st.integers(0, 2**32))
@check
def test_a_feasible_schedule_is_measured_on_its_runs(drawn, seed):
    """Without a word from the walk along the entries: the same metrics, features and columns."""
    instance, schedule = drawn
    if not has_runs(schedule):
        return
    made = in_runs(schedule, random.Random(seed), follow(instance, schedule).decodes.tolist())
    entries = of_entries(made)

    metrics, expected = referee_runs.measure_runs(instance, made), measure(instance, entries)

    assert metrics is not None
    assert set() == broken_rules(instance, entries)
    assert expected.to_json() == metrics.to_json()
    assert expected.largest_itl_ns == metrics.largest_itl_ns
    for name in ("latency_ns", "ttft_ns", "itl_ns", "tpot_ns"):
        assert np.array_equal(getattr(expected, name), getattr(metrics, name))
    for found, right in zip(metrics.history.features, expected.history.features, strict=True):
        assert np.array_equal(found, right)
    for name in HISTORY:
        assert np.array_equal(getattr(metrics.history, name), getattr(expected.history, name))
    assert np.array_equal(occupied_blocks(metrics.history), occupied_blocks(expected.history))


@given(feasible_runs(), st.sampled_from(MUTATIONS), st.integers(0, 2**32), st.booleans())
@check
def test_a_mutated_schedule_gets_the_same_sentences(drawn, mutation, seed, restates):
    """Whatever is broken, memory and times stated anew or not: the same sentences in the same order."""
    draft, rng = Draft.of(*drawn), random.Random(seed)
    mutation(draft, rng)
    if restates:
        draft.restate()
    schedule = draft.schedule()
    if not has_runs(schedule) or not all(draft.batches):
        return
    made = in_runs(schedule, rng)
    entries = of_entries(made)
    said = judge(draft.instance, made)

    assert find_violations(draft.instance, entries) == list(said.violations)
    assert bool(broken_rules(draft.instance, entries)) == bool(said.violations)
    if not said.violations:
        assert measure(draft.instance, entries).to_json() == said.metrics.to_json()


RUN_COLUMNS = ("request", "first", "length", "tokens", "kv_tokens", "step_batch")


@given(
    feasible_runs(),
    st.sampled_from([*RUN_COLUMNS, "start_ns", "end_ns", "evicted_batch", "evicted_request"]),
    st.integers(-2, 2),
    st.integers(0, 2**32),
)
@check
def test_a_corrupted_run_is_found(drawn, name, by, seed):
    """A number of a run, a time or an eviction that is another one: refused, or judged as its entries are."""
    instance, schedule = drawn
    rng = random.Random(seed)
    if not has_runs(schedule):
        return
    made = in_runs(schedule, rng)
    columns = {
        "runs": made.runs,
        **{key: getattr(made, key) for key in ("start_ns", "end_ns", "evicted_batch", "evicted_request")},
    }
    old = getattr(made.runs, name) if name in RUN_COLUMNS else columns[name]
    if not len(old):
        return
    new = old.copy()
    new[rng.randrange(len(new))] += by
    columns |= {"runs": replace(made.runs, **{name: new})} if name in RUN_COLUMNS else {name: new}
    try:
        corrupted = RunSchedule.of(columns.pop("runs"), **columns)
    except InputError:
        return
    entries = of_entries(corrupted)
    said = judge(instance, corrupted)

    assert find_violations(instance, entries) == list(said.violations)
    if not said.violations:
        assert set() == broken_rules(instance, entries)
        assert measure(instance, entries).to_json() == said.metrics.to_json()


def decoding_together() -> tuple[Instance, Schedule]:
    """Two requests, prefilled one after the other and decoding together, by the kernel."""
    instance = make_instance((3, 9), (2, 5), kv_blocks=20)
    return instance, simulate_fast(instance, make_policy("vllm")).to_simulation().schedule


def test_the_runs_of_the_kernel_are_judged_as_runs():
    """No entry is made of a schedule that is right."""
    instance, schedule = decoding_together()

    judged = judge(instance, schedule)

    assert judged.violations == ()
    assert judged.schedule is schedule
    told = judged.metrics.to_json()
    assert not {"request", "_entries"} & set(schedule.__dict__)
    assert measure(instance, of_entries(schedule)).to_json() == told


def test_a_schedule_of_runs_is_equal_to_that_of_its_entries():
    """As it is, changed, and taken to another process."""
    _, schedule = decoding_together()

    assert isinstance(schedule, RunSchedule)
    assert schedule == of_entries(schedule) == pickle.loads(pickle.dumps(schedule))
    assert isinstance(pickle.loads(pickle.dumps(schedule)), RunSchedule)
    changed = replace(schedule, end_ns=schedule.end_ns + 1)
    assert type(changed) is Schedule
    assert np.array_equal(changed.request, schedule.request)


@pytest.mark.parametrize(
    ("name", "value"),
    [("first", 99), ("first", -1), ("length", 0), ("length", 99), ("step_batch", 99), ("step_batch", -1)],
)
def test_runs_lie_within_the_batches(name, value):
    """Steps and batches that there are not are refused before anything is made of them."""
    _, schedule = decoding_together()
    wrong = getattr(schedule.runs, name).copy()
    wrong[-1] = value

    with pytest.raises(InputError, match="a run covers steps or batches that do not exist"):
        RunSchedule.of(
            replace(schedule.runs, **{name: wrong}),
            start_ns=schedule.start_ns,
            end_ns=schedule.end_ns,
            evicted_batch=schedule.evicted_batch,
            evicted_request=schedule.evicted_request,
        )


def test_a_malformed_schedule_has_no_metrics():
    """Its violations are told, and asking for more is a bug."""
    instance, schedule = decoding_together()
    judged = judge(instance, replace(schedule, request=schedule.request + 5))

    assert {violation.rule for violation in judged.violations} == {"form"}
    with pytest.raises(InternalError, match="a malformed schedule was measured"):
        judged.history  # noqa: B018 - the question is what is asked


def test_the_history_of_a_broken_schedule_is_there():
    """What the decisions imply, whatever they break."""
    instance, schedule = decoding_together()
    judged = judge(instance, replace(schedule, kv_tokens=schedule.kv_tokens + 1))

    assert {violation.rule for violation in judged.violations} == {"memory"}
    assert isinstance(judged.history, History)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 9)), max_size=30))
@check
def test_the_summary_of_gaps_is_that_of_each_gap(drawn):
    """To the last bit: mean, percentiles, maximum."""
    gaps = np.array([gap for gap, _ in drawn], dtype=np.int64)
    times = np.array([count for _, count in drawn], dtype=np.int64)

    assert Gaps.of(gaps, times).summary_s() == summary_s(np.repeat(gaps, times))


SUMMARY = ("mean", "p50", "p90", "p95", "p99", "max")


def test_gaps_beyond_64_bits_together():
    """Their mean is what floats make of it."""
    gaps = Gaps.of(np.array([2**61, 2**61]), np.array([9, 1]))

    assert gaps.summary_s() == dict.fromkeys(
        ("mean", "p50", "p90", "p95", "p99", "max"), 2**61 / 1000000000.0
    )
