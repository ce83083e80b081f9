"""Exact windows: the state they start from, the machine beside them, and how they are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.presets import load_cost
from cspsched.errors import UsageError
from cspsched.executors import Pool
from cspsched.policies.base import make_policy
from cspsched.problem.cost import BatchFeatures, PiecewiseLinear
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from cspsched.studies.windows import WindowSample, WindowShape, sample_windows, study_windows
from cspsched.studies.windows.background import Background, beyond
from cspsched.studies.windows.sample import moment_before
from cspsched.studies.windows.study import bootstrap_means
from tests.support.command_line import invoke
from tests.support.instances import instance_of
from tests.support.pages import undocumented
from tests.support.strategies import check

CROWD = [(5, 9), (3, 12), (8, 4), (2, 15, 3), (6, 7, 4), (4, 1, 9), (7, 3, 20), (5, 5, 24)]
SMALL = WindowShape(size=3, output_tokens=2, ahead=4)


def crowded(kv_blocks=24):
    """Requests that wait, decode, are evicted and arrive, and the history of a policy on them."""
    instance = instance_of(CROWD, kv_blocks=kv_blocks, cost=load_cost("unit"))
    return measure(instance, simulate(instance, make_policy("vllm")).schedule).history


# The machine beside a window


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 3))
@check
def test_beyond_is_the_rest_of_the_function(origin, x, which):
    """f(origin + x) - f(origin), before, at and after knots."""
    knots = (0, 10, 100, 250)[: which + 1]
    function = PiecewiseLinear(knots, tuple(map(Fraction, ("3", "1/2", "7", "0")))[: which + 1])

    assert beyond(function, origin).exact(x) == function.exact(origin + x) - function.exact(origin)


@given(st.integers(1, 200), st.integers(0, 50_000), st.lists(st.integers(0, 3000), min_size=3, max_size=3))
@check
@pytest.mark.parametrize("name", ["h100-llama-3.1-8b", "infermax-70b", "unit"])
def test_background_costs_what_the_whole_batch_costs(name, decodes, context, sizes):
    """The batch time beside a background is that of the whole batch, to the rounding of its terms."""
    cost = load_cost(name)
    prefill, reads, own = sizes
    mine = BatchFeatures(
        tokens=prefill + own, prefill_attention=prefill**2, prefill_tokens=prefill,
        prefill_context=0, decode_context=reads, num_generating=own + 1,
        num_prefills=int(prefill > 0), num_decodes=own,
    )  # fmt: skip
    whole = mine._replace(
        tokens=mine.tokens + decodes, decode_context=reads + context,
        num_generating=mine.num_generating + decodes, num_decodes=own + decodes,
    )  # fmt: skip
    background = Background(num_decodes=decodes, context_tokens=context, held_blocks=0)

    assert abs(background.cost(cost).batch_time_ns(mine) - cost.batch_time_ns(whole)) <= 12


def test_nobody_beside_changes_nothing():
    """Without a background the cost model is the same."""
    cost = load_cost("h100-llama-3.1-8b")

    assert Background(num_decodes=0, context_tokens=0, held_blocks=0).cost(cost) is cost


# The state


@pytest.mark.parametrize("kv_blocks", [24, 200])
def test_the_state_is_what_the_batches_before_left(kv_blocks):
    """At every boundary: KV entries, tokens, residents, who waits and who arrives, by a plain count."""
    history = crowded(kv_blocks)
    schedule, requests = history.schedule, history.instance.requests
    kv, generated = [0] * len(requests), [0] * len(requests)
    assert kv_blocks > 24 or schedule.num_preemptions
    for j in range(schedule.num_batches):
        moment = moment_before(history, j, 4)
        done = [count == request.output_tokens for count, request in zip(generated, requests, strict=True)]
        start_ns, soon_ns = schedule.start_ns[j], schedule.end_ns[min(j + 3, schedule.num_batches - 1)]
        left = [i for i in range(len(requests)) if not done[i]]
        here = [i for i in left if requests[i].arrival_ns <= start_ns]

        assert [generated[i] for i in left] == moment.generated[left].tolist()
        assert [kv[i] for i in left] == moment.kv[left].tolist()
        assert sorted(moment.residents) == [i for i in here if kv[i]]
        assert sorted(moment.waiting) == [i for i in here if not kv[i]]
        assert sorted(moment.arriving) == [i for i in left if start_ns < requests[i].arrival_ns <= soon_ns]
        for i in schedule.evicted_request[schedule.evicted_batch == j]:
            kv[i] = 0
        for entry in range(schedule.first_entry[j], schedule.first_entry[j + 1]):
            i = schedule.request[entry]
            kv[i] = history.kv_after[entry]
            generated[i] += history.generates[entry]


def test_a_window_holds_what_is_left_of_its_requests():
    """Tokens to process and to generate, arrivals from the window's start, memory that is never free."""
    history = crowded(200)
    for window in sample_windows(history, SMALL, num=20, seed=1):
        moment = moment_before(history, window.batch, SMALL.ahead)
        assert window.instance is not None
        kinds = (window.num_residents, window.num_waiting, window.num_arriving)
        assert sum(kinds) == len(window.instance.requests) <= SMALL.size
        assert window.num_residents + window.background.num_decodes == len(moment.residents)
        assert window.background.held_blocks == moment.kv[moment.residents].sum()
        names = [request.request_id for request in history.instance.requests]
        for request in window.instance.requests:
            i = names.index(request.request_id)
            whole = history.instance.requests[i]
            assert request.prompt_tokens == whole.prompt_tokens + moment.generated[i] - moment.kv[i]
            assert request.output_tokens == min(2, whole.output_tokens - moment.generated[i])
            assert request.arrival_ns == max(whole.arrival_ns - window.start_ns, 0)


def test_windows_repeat_by_seed():
    """The same seed gives the same windows, another one others."""
    history = crowded()
    first, same, other = (
        [(window.batch, window.instance) for window in sample_windows(history, SMALL, num=10, seed=seed)]
        for seed in (3, 3, 4)
    )

    assert first == same
    assert first != other


def test_who_leaves_no_room_is_told():
    """Where memory is full of other residents there is a window without an instance."""
    history = crowded(16)
    windows = sample_windows(history, replace(SMALL, size=1), num=40, seed=0)

    assert any(window.instance is None for window in windows)


# The verdict


def study(**options):
    instance = instance_of(CROWD, kv_blocks=60, cost=load_cost("unit"))
    return study_windows(
        instance, "vllm", Objective.LATENCY, WindowSample(shape=SMALL, num=6, seed=2), **options
    )


def test_every_small_window_is_proven():
    """Bound <= best <= policy, and the ends meet."""
    found = study()

    assert found.num_unproven == 0
    assert len(found.judged) + found.num_without_room == 6
    for verdict in found.judged:
        assert 0 < verdict.bound_ns <= verdict.best_ns <= verdict.policy_ns
    told = [window for window in found.to_json()["windows"] if "status" in window]
    assert [(window["status"], window["gap_ns"] == 0) for window in told] == [
        (verdict.status.value, verdict.status is Status.OPTIMAL) for verdict in found.judged
    ]
    low, high = found.mean_excess
    assert low == pytest.approx(high, abs=1e-5)
    assert found.confidence[0] <= low <= high <= found.confidence[1]


def test_an_unproven_window_keeps_both_ends():
    """Without time to solve, the interval is reported and the mean has two ends."""
    instance = instance_of(CROWD, kv_blocks=60, cost=load_cost("h100-llama-3.1-8b"))
    found = study_windows(
        instance, "vllm", Objective.LATENCY, WindowSample(shape=SMALL, num=6, seed=2), window_limit_s=0
    )

    assert found.num_unproven > 0
    assert found.mean_excess[0] < found.mean_excess[1]


def test_processes_give_the_same_verdicts():
    """Where windows are solved changes nothing."""
    assert study(pool=Pool(executor="processes", workers=2)).to_json() == study().to_json()


def test_bootstrap_is_around_the_mean():
    """Means of resamples scatter around the mean of the sample by its standard error."""
    values = np.arange(100.0).reshape(-1, 1)
    means = bootstrap_means(values, seed=0)

    assert means.mean() == pytest.approx(values.mean(), abs=0.2)
    assert means.std() == pytest.approx(values.std() / 10, rel=0.1)


def test_a_policy_that_caches_prefixes_is_refused():
    """Windows know no shared blocks."""
    instance = instance_of(CROWD, kv_blocks=60, cost=load_cost("unit"))
    with pytest.raises(UsageError, match="caches prefixes"):
        study_windows(
            instance, "vllm:enable_prefix_caching=true", Objective.LATENCY, WindowSample(shape=SMALL, num=2)
        )


# The command

COMMAND = ("windows", "chat-2000", "--limit", "60", "--scale-rate", "8", "--num", "3", "--size", "2")


def test_windows_are_told_and_drawn(capsys, tmp_path):
    """Mean, confidence, proofs and the warning stand in the text; the picture is a PNG."""
    outcome = invoke(capsys, *COMMAND, "--out", tmp_path / "report")

    assert outcome.code == 0
    for word in ("mean local excess", "95 % confidence", "optimum proven in", "A sample, not a bound"):
        assert word in outcome.out
    assert (tmp_path / "report" / "windows.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report" / "windows.json").read_text())["num_windows"] == 3


def test_every_field_of_windows_is_documented(capsys):
    """The JSON has a section, and every field is in it."""
    data = json.loads(invoke(capsys, *COMMAND, "--json").out)

    assert data["schema"] == "cspsched/windows/1"
    assert list(undocumented(data)) == []
