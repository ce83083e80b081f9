"""Improving on the policies: never worse, never below the optimum, repeatable, resumable, interruptible."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.errors import InputError, InternalError, UsageError
from cspsched.improve import Bracket, BracketTask, ImproveLimits, find_bracket, find_light_bracket, improve
from cspsched.improve import improvement as improvement_module
from cspsched.improve.list_scheduler import ListScheduler
from cspsched.improve.search import RESHAPINGS, WINDOW, WINDOW_STEPS, Search, new_state
from cspsched.improve.state import STATE_SCHEMA, read_state, write_state
from cspsched.problem.instance import Instance, Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Status, StopReason
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.instances import four_mixed, hindsight, instance_of, mixed, three_equal

RIVALS = ("vllm", "mc-sf")


def steps(number: int, seed: int = 0) -> ImproveLimits:
    return ImproveLimits(time_limit_s=None, max_steps=number, seed=seed)


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("arrivals", [False, True])
def test_never_worse_than_the_best_policy_and_accepted_by_the_referee(arrivals, objective):
    """The result is at most every policy's value, at least the bound, and its own check finds nothing."""
    found = improve(mixed(arrivals=arrivals), objective, heuristics=RIVALS, limits=steps(400))

    assert found.bound.value_ns <= found.value_ns <= min(rival.value_ns for rival in found.rivals)
    assert found.to_result().violations() == []


def test_the_best_policy_is_the_result_if_nothing_is_better():
    """Without a step the result is the best policy's own schedule, by its name."""
    found = improve(mixed(arrivals=True), heuristics=RIVALS, limits=steps(0))

    assert found.found_by == found.best_policy.policy
    assert found.schedule is found.best_policy.schedule


def test_contention_is_improved_on():
    """Where memory is short, the search beats vLLM and MC-SF on latency and makespan."""
    for objective in (Objective.LATENCY, Objective.MAKESPAN):
        found = improve(mixed(arrivals=False), objective, heuristics=RIVALS, limits=steps(400))

        assert found.gain > 0.01


@st.composite
def tiny(draw):
    """Two or three requests on a device that can hold any of them."""
    shapes = draw(
        st.lists(
            st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(0) | st.just(10**8)),
            min_size=2,
            max_size=3,
        )
    )
    return instance_of(shapes, kv_blocks=draw(st.integers(5, 9)), max_batch_tokens=draw(st.integers(3, 12)))


@settings(max_examples=8)
@given(tiny(), st.sampled_from(list(Objective)))
def test_never_below_the_optimum(instance, objective):
    """On tiny instances no result is below what trying everything finds."""
    found = improve(instance, objective, heuristics=["vllm"], limits=steps(RESHAPINGS + 150))

    assert exhaustive_optimum(instance, objective) <= found.value_ns


@pytest.mark.parametrize(("instance", "optimum_ns"), [(hindsight(1000), 426), (hindsight(1001), 395)])
def test_finds_the_published_optimum_of_run_to_completion(instance, optimum_ns):
    """E8: the class of list schedules holds these optima, and the search finds them (MC-SF: 426 and 413)."""
    found = improve(instance, heuristics=["mc-sf"], limits=steps(3000))

    assert found.value_ns == optimum_ns * instance.cost.step_ceil


def test_preemption_that_pays_is_kept():
    """E2: the optimum preempts; where a policy has it already, its own schedule is the result."""
    found = improve(three_equal(), Objective.MAKESPAN, heuristics=["vllm"], limits=steps(400))

    assert found.found_by == found.best_policy.policy
    assert abs(found.value_ns - 140_135_000) < 2_000


def test_preemption_that_pays_is_found(monkeypatch):
    """E2: the search finds the optimum with its two preemptions; its only rival, MC-SF, never preempts."""
    monkeypatch.setattr("cspsched.improve.rivals.REFERENCE_SET", ("mc-sf",))
    found = improve(three_equal(), Objective.MAKESPAN, heuristics=["mc-sf"], limits=steps(2000))

    assert abs(found.value_ns - 140_135_000) < 2_000
    assert found.found_by == "local search on order, delays, chunks and preemptions"
    assert found.schedule is not None
    assert len(found.schedule.evicted_batch) == 2
    assert found.to_result().violations() == []


def test_the_same_seed_repeats():
    """With a number of steps as the limit, value and schedule are the same twice; another seed may differ."""
    first, second = (improve(mixed(arrivals=True), heuristics=RIVALS, limits=steps(500)) for _ in range(2))

    assert first.value_ns == second.value_ns
    assert first.schedule == second.schedule


@pytest.mark.parametrize("stop", [0, 10, RESHAPINGS + 100])
def test_resuming_is_the_same_as_going_on(stop, tmp_path):
    """A search that was stopped and resumed ends where one that was not stopped ends."""
    instance, file = mixed(arrivals=True), tmp_path / "state.json"
    improve(instance, heuristics=RIVALS, limits=steps(stop), state_file=file)
    resumed = improve(instance, heuristics=RIVALS, limits=steps(RESHAPINGS + 250), state_file=file)
    whole = improve(instance, heuristics=RIVALS, limits=steps(RESHAPINGS + 250))

    assert (resumed.value_ns, resumed.steps) == (whole.value_ns, whole.steps)
    assert resumed.schedule == whole.schedule


def windowed_instance() -> Instance:
    """500 requests over time, which are improved in windows."""
    rng = np.random.default_rng(5)
    arrivals = np.sort(rng.integers(0, 10**11, 500))
    shapes = [
        (int(rng.integers(1, 60)), int(rng.integers(1, 40)), int(arrival)) for arrival in arrivals.tolist()
    ]
    return instance_of(shapes, kv_blocks=120)


def test_windows_only_improve_the_whole(tmp_path):
    """From window to window the best value never rises, it falls, and a written state goes on alike."""
    instance = windowed_instance()
    search = Search(instance, Objective.LATENCY, new_state(0))
    values = []
    for number in range(RESHAPINGS + 30 + 3 * WINDOW_STEPS):
        search.step()
        values.append(search.state.best_ns)
        if number == RESHAPINGS + 30 + WINDOW_STEPS + 7:
            write_state(tmp_path / "state.json", instance, Objective.LATENCY, search.state)
            middle = number
    resumed = read_state(tmp_path / "state.json", instance, Objective.LATENCY)
    second = Search(instance, Objective.LATENCY, resumed)
    for _ in range(len(values) - middle - 1):
        second.step()

    assert search.num_windows == 500 // WINDOW
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[RESHAPINGS + 30]
    assert second.state.best_ns == values[-1]
    assert search.scheduler.value_ns(search.state.best) == values[-1]


def test_ctrl_c_keeps_the_best(monkeypatch):
    """An interrupt in the middle of a step ends the search with what it had."""
    real, calls = Search.step, []

    def step(self: Search) -> None:
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Search, "step", step)
    found = improve(mixed(arrivals=False), heuristics=RIVALS, limits=steps(10**9))

    assert found.stop_reason is StopReason.INTERRUPTED
    assert found.steps == 49
    assert found.gain > 0


def test_a_false_value_of_the_search_is_not_believed(monkeypatch):
    """A value that the schedule does not have is an error, not a result."""
    real = ListScheduler.value_ns
    monkeypatch.setattr(ListScheduler, "value_ns", lambda self, *plan: real(self, *plan) // 2)
    with pytest.raises(InternalError, match=r"states .* ns, its schedule has"):
        improve(mixed(arrivals=False), heuristics=RIVALS, limits=steps(5))


def test_a_proven_value_is_called_optimal():
    """One request alone: the bound meets the schedule."""
    found = improve(instance_of([(4, 1)], kv_blocks=100), heuristics=["vllm"], limits=steps(3))

    assert found.gap == 0
    assert found.to_result().status is Status.OPTIMAL
    assert found.stop_reason is StopReason.PROVEN


def test_a_state_of_another_search_is_refused(tmp_path):
    """Another instance, another objective, and anything malformed is said in one sentence."""
    file = tmp_path / "state.json"
    improve(four_mixed(), heuristics=["vllm"], limits=steps(400), state_file=file)
    with pytest.raises(InputError, match="fingerprint is"):
        improve(three_equal(), heuristics=["vllm"], limits=steps(5), state_file=file)
    with pytest.raises(InputError, match="objective is 'latency'"):
        improve(four_mixed(), Objective.TTFT, heuristics=["vllm"], limits=steps(5), state_file=file)


def corrupted(data, path, value):
    *folders, last = path
    for key in folders:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "cspsched/improve-state/0"),
        (("steps",), -1),
        (("steps",), 2.5),
        (("best", "keys"), [1.0]),
        (("best", "keys", 0), "a"),
        (("best", "keys", 0), float("nan")),
        (("best", "delay_ns", 0), -5),
        (("best", "knobs", "seats"), 0),
        (("best", "chunk_doublings"), [0]),
        (("best", "chunk_doublings", 0), 3),
        (("best", "chunk_doublings", 0), 0.5),
        (("best", "pauses"), 7),
        (("best", "pauses"), [[0, 0, 0]]),
        (("best", "pauses"), [[0, 1, 0], [0, 2, 0]]),
        (("best", "pauses"), [[4, 1, 0]]),
        (("shape", "output_power"), None),
        (("shape", "knobs"), {}),
        (("random", "state"), 2**128),
        (("random", "has_uint32"), 7),
        (("local", "history_ns"), []),
        (("found_by",), 3),
    ],
)
def test_a_malformed_state_is_refused(path, value, tmp_path):
    """Every number of a state file is checked; nothing of it is believed or run."""
    file, instance = tmp_path / "state.json", four_mixed()
    improve(instance, heuristics=["vllm"], limits=steps(400), state_file=file)
    data = json.loads(file.read_text(encoding="utf-8"))
    corrupted(data, path, value)
    file.write_text(json.dumps(data), encoding="utf-8")

    assert data["schema"] == STATE_SCHEMA or path == ("schema",)
    with pytest.raises(InputError, match=r"state\.json"):
        read_state(file, instance, Objective.LATENCY)


def test_policies_that_cannot_be_compared_are_refused():
    """None at all, one that preempts where that is forbidden; no limit at all."""
    with pytest.raises(UsageError, match="at least one policy"):
        improve(four_mixed(), heuristics=[], limits=steps(1))
    forbidden = three_equal(Switches(preemption=Preemption.NONE))
    with pytest.raises(UsageError, match="does what the instance does not allow"):
        improve(forbidden, heuristics=["vllm"], limits=steps(1))
    with pytest.raises(UsageError, match="never ends"):
        ImproveLimits(time_limit_s=None)


def test_requests_that_fit_nowhere_are_left_out():
    """They are told with the reason, the others are served."""
    instance = instance_of([(4, 2), (200, 2)], kv_blocks=50)
    found = improve(instance, heuristics=["vllm"], limits=steps(5))

    assert [rejection.request.request_id for rejection in found.rejections] == ["r1"]
    assert len(found.instance.requests) == 1


def test_the_state_is_kept_now_and_then(monkeypatch, tmp_path):
    """A long search writes its state before its end, so that a crash costs little."""
    written = []
    monkeypatch.setattr(improvement_module, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(improvement_module, "write_state", lambda path, *_: written.append(path))
    improve(four_mixed(), heuristics=["vllm"], limits=steps(5), state_file=tmp_path / "s.json")

    assert len(written) == 6


def test_a_bracket_holds_the_optimum():
    """E4: L <= the published optimum <= U, and each policy's excess is taken over both."""
    instance, optimum_ns, tolerance_ns = four_mixed(), 181_583_000, 2_000
    bracket = Bracket(
        improvement=improve(instance, Objective.MAKESPAN, heuristics=["vllm"], limits=steps(300))
    )
    (rival,) = bracket.improvement.rivals
    low, high = bracket.excess(rival)

    assert bracket.low_ns - tolerance_ns <= optimum_ns <= bracket.high_ns + tolerance_ns
    assert (low, high) == pytest.approx(
        (rival.value_ns / bracket.high_ns - 1, rival.value_ns / bracket.low_ns - 1)
    )


def test_a_light_bracket_holds_no_schedules_of_policies():
    """Between processes the runs of the reference are as long as those of the rivals; values are there."""
    task = BracketTask(instance=mixed(arrivals=True), objective="latency", limits=steps(5))
    light, whole = find_light_bracket(task), find_bracket(task)

    assert all(one.run is None for one in (*light.improvement.rivals, *light.improvement.reference))
    assert light.to_json() == whole.to_json()
