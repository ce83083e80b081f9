"""The recorder for vLLM, against a stub of its scheduler's interface that our own simulation drives."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cspsched.errors import UsageError
from cspsched.problem.instance import Instance
from cspsched.recording import vllm_scheduler
from cspsched.recording.cases import find_cases
from cspsched.recording.imported import import_recording
from cspsched.recording.log import read_recording
from cspsched.recording.recorder import recording_class
from cspsched.recording.replay import Verdict, replay_case
from cspsched.referee.history import follow
from cspsched.simulate import Simulation
from cspsched.units import ns_to_seconds
from tests.support.recordings import TIGHT, log_lines, simulated


class Clock:
    """Time of the test, in seconds; an engine's clock does not start at zero."""

    def __init__(self) -> None:
        self.origin_s = 1000.0
        self.now_s = self.origin_s

    def __call__(self) -> float:
        return self.now_s


@dataclass
class StubRequest:
    """What the recorder reads of a request."""

    request_id: str
    arrival_time: float
    num_prompt_tokens: int
    max_tokens: int
    priority: int = 0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0

    def is_finished(self) -> bool:
        return self.num_output_tokens == self.max_tokens


class StubScheduler:
    """The interface of vLLM's scheduler; its decisions are those of a simulation, one a call."""

    def __init__(self, instance: Instance, simulation: Simulation, origin_s: float) -> None:
        self.simulation, self.schedule_ = simulation, simulation.schedule
        self.history = follow(instance, simulation.schedule)
        self.all = [
            StubRequest(
                one.request_id,
                origin_s + ns_to_seconds(one.arrival_ns),
                one.prompt_tokens,
                one.output_tokens,
                one.priority,
            )
            for one in instance.requests
        ]
        self.requests = {one.request_id: one for one in self.all}
        self.scheduler_config = SimpleNamespace(
            max_num_seqs=TIGHT["max_num_seqs"],
            max_num_batched_tokens=TIGHT["max_num_batched_tokens"],
            policy="fcfs",
        )
        self.cache_config = SimpleNamespace(
            num_gpu_blocks=TIGHT["num_kv_blocks"], enable_prefix_caching=False
        )
        self.block_size, self.max_model_len = TIGHT["block_size"], TIGHT["max_model_len"]
        self.pool = SimpleNamespace(num_gpu_blocks=TIGHT["num_kv_blocks"], free=0)
        self.pool.get_num_free_blocks = lambda: self.pool.free
        self.kv_cache_manager = SimpleNamespace(block_pool=self.pool)
        self.running: list[StubRequest] = []
        self.waiting: list[StubRequest] = []
        self.skipped_waiting: list[StubRequest] = []
        self.num_calls = 0
        self.started: set[str] = set()
        self.is_shut_down = False

    def _preempt_request(self, request: StubRequest, timestamp: float) -> None:
        request.num_computed_tokens = 0

    def schedule(self, throttle_prefills: bool = False) -> SimpleNamespace:  # noqa: FBT001, FBT002 - vLLM's
        j = self.num_calls
        self.num_calls += 1
        for batch, i in self.simulation.preempted:
            if batch == j:
                self._preempt_request(self.all[i], 0.0)
        entries = range(self.schedule_.first_entry[j], self.schedule_.first_entry[j + 1])
        chosen = [(self.all[self.schedule_.request[e]], int(self.schedule_.tokens[e])) for e in entries]
        before = [int(self.history.kv_before[e]) for e in entries]
        names = [one.request_id for one, _ in chosen]
        rows = list(zip(names, before, strict=True))
        new = [SimpleNamespace(req_id=n, num_computed_tokens=b) for n, b in rows if n not in self.started]
        old = [(n, b) for n, b in rows if n in self.started]
        self.started.update(names)
        self.running = [one for one, _ in chosen]
        self.waiting = self.all[: int(self.simulation.num_waiting[j])]
        self.pool.free = TIGHT["num_kv_blocks"] - 1 - int(self.simulation.held_blocks[j])
        for (one, tokens), held in zip(chosen, before, strict=True):
            one.num_computed_tokens = held + tokens
        cached = SimpleNamespace(req_ids=[n for n, _ in old], num_computed_tokens=[b for _, b in old])
        return SimpleNamespace(
            number=j,
            num_scheduled_tokens={one.request_id: tokens for one, tokens in chosen},
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
        )

    def update_from_output(self, output: SimpleNamespace, model_runner_output: object) -> str:
        j = output.number
        for e in range(self.schedule_.first_entry[j], self.schedule_.first_entry[j + 1]):
            one = self.all[self.schedule_.request[e]]
            one.num_output_tokens += bool(self.history.generates[e])
            if self.history.finishes[e]:
                del self.requests[one.request_id]
        return f"outputs of {j}"

    def shutdown(self) -> None:
        self.is_shut_down = True


def drive(scheduler: Any, clock: Clock) -> None:
    """Call the scheduler as an engine does: decisions when they were made, outputs when batches end."""
    schedule, decided = scheduler.schedule_, scheduler.simulation.decided_ns
    events = [(int(decided[j]), 1, j) for j in range(schedule.num_batches)]
    events += [(int(schedule.end_ns[j]), 0, j) for j in range(schedule.num_batches)]
    outputs = {}
    for time_ns, is_decision, j in sorted(events):
        clock.now_s = clock.origin_s + ns_to_seconds(time_ns)
        if is_decision:
            outputs[j] = scheduler.schedule(throttle_prefills=False)
        else:
            assert scheduler.update_from_output(outputs.pop(j), object()) == f"outputs of {j}"
    scheduler.shutdown()
    assert scheduler.is_shut_down


def recorded(path: Path | str | None, policy: str = "vllm") -> tuple[Instance, Simulation]:
    """A whole run under the recorder."""
    instance, simulation = simulated(policy)
    clock = Clock()
    made = recording_class(StubScheduler, lambda: None if path is None else str(path), clock)
    drive(made(instance, simulation, clock.origin_s), clock)
    return instance, simulation


POLICIES = ("vllm", "vllm:async_scheduling=true")


@pytest.mark.parametrize("policy", POLICIES)
def test_recorded_log_is_the_log_of_the_schedule(tmp_path: Path, policy: str) -> None:
    """Every iteration, with all that conformance compares, and what was emitted and finished."""
    instance, simulation = recorded(tmp_path / "run.jsonl", policy)
    iterations = read_recording(tmp_path / "run.jsonl").iterations
    expected = log_lines(instance, simulation)

    assert simulation.schedule.num_preemptions
    assert len(iterations) == len(expected)
    for found, line in zip(iterations, expected, strict=True):
        assert [list(entry) for entry in found.scheduled] == line["sched"]
        assert list(found.preempted) == [name for name, *_ in line["preempted"]]
        assert (found.waiting, found.kv_used) == (line["waiting"], line["kv_used"])
        assert (list(found.emitted), list(found.finished)) == (line["emitted"], line["finished"])


@pytest.mark.parametrize("policy", POLICIES)
def test_recorded_log_is_equal_in_conformance(tmp_path: Path, policy: str) -> None:
    """The recorder's file replays as equal, with the requests that it noted itself."""
    recorded(tmp_path / "run.log.jsonl", policy)
    more = {"cost": TIGHT["cost"], "async_scheduling": "async" in policy}
    (tmp_path / "run.config.json").write_text(json.dumps(more))
    (case,) = find_cases(tmp_path)
    replay = replay_case(case)

    assert (replay.verdict, replay.reason, replay.difference) == (Verdict.EQUAL, None, None)
    assert replay.num_iterations


@pytest.mark.parametrize("policy", POLICIES)
def test_recorded_log_is_imported_without_a_trace(tmp_path: Path, policy: str) -> None:
    """The log alone, with a cost model, gives back the schedule."""
    instance, simulation = recorded(tmp_path / "run.jsonl", policy)
    recording = read_recording(tmp_path / "run.jsonl")
    result = import_recording(recording, recording.requests, recording.config, cost=instance.cost).result

    assert result.schedule == simulation.schedule
    assert result.violations() == []


def test_one_line_for_a_decision_and_one_for_its_output(tmp_path: Path) -> None:
    """After the line of the engine's configuration there are two lines an iteration."""
    _, simulation = recorded(tmp_path / "run.jsonl")
    lines = [json.loads(text) for text in (tmp_path / "run.jsonl").read_text().splitlines()]
    config = lines[0]["meta"]["config"]

    assert len(lines) == 1 + 2 * simulation.schedule.num_batches
    assert (config["num_kv_blocks"], config["max_num_seqs"], config["block_size"]) == (13, 4, 2)
    assert lines[0]["meta"]["scheduler"] == "StubScheduler"


def test_an_abort_between_batches_leaves_the_log_readable(tmp_path: Path) -> None:
    """A request that a client aborts vanishes; an import leaves it out."""
    instance, simulation = simulated()
    clock = Clock()
    scheduler = recording_class(StubScheduler, lambda: str(tmp_path / "run.jsonl"), clock)(
        instance, simulation, clock.origin_s
    )
    output = scheduler.schedule()
    del scheduler.requests["r0"]
    scheduler.update_from_output(output, object())
    scheduler.shutdown()
    (iteration,) = read_recording(tmp_path / "run.jsonl").iterations

    assert "r0" in [entry.name for entry in iteration.scheduled]
    assert "r0" not in [*iteration.emitted, *iteration.finished]


# Serving goes on


def assert_said_once(caplog: pytest.LogCaptureFixture, *parts: str) -> None:
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("records no schedule from here on", *parts):
        assert part in record.message


def test_without_a_path_nothing_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """The scheduler works as ever, and it is said once that it writes nothing."""
    recorded(None)

    assert_said_once(caplog, "no file is named")


def test_an_existing_file_is_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second engine with the same path records nothing."""
    (tmp_path / "run.jsonl").write_text("mine")
    recorded(tmp_path / "run.jsonl")

    assert (tmp_path / "run.jsonl").read_text() == "mine"
    assert_said_once(caplog, "File exists")


def test_a_path_may_hold_the_number_of_the_process(tmp_path: Path) -> None:
    """Data-parallel engines write a file each."""
    recorded(tmp_path / "run-{pid}.jsonl")

    assert len(list(tmp_path.glob("run-[0-9]*.jsonl"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to fill")
def test_a_full_disk_stops_the_recording_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first failed line is said, the others are not tried."""
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode, **more: real_open(path, "w", **more))
    recorded("/dev/full")

    assert_said_once(caplog, "No space left on device")


@pytest.mark.parametrize("missing", ["scheduled_cached_reqs", "num_scheduled_tokens"])
def test_another_interface_stops_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """An engine whose objects are built otherwise than known is served on."""

    class Other(StubScheduler):
        def schedule(self, throttle_prefills: bool = False) -> SimpleNamespace:  # noqa: FBT001, FBT002 - vLLM's
            output = super().schedule(throttle_prefills)
            delattr(output, missing)
            return output

    instance, simulation = simulated()
    clock = Clock()
    path = str(tmp_path / "run.jsonl")
    drive(recording_class(Other, lambda: path, clock)(instance, simulation, clock.origin_s), clock)

    assert_said_once(caplog, "built otherwise", missing)


def test_an_error_of_the_engine_is_not_swallowed(tmp_path: Path) -> None:
    """What the scheduler itself raises goes up as it would without the recorder."""

    class Broken(StubScheduler):
        def schedule(self, throttle_prefills: bool = False) -> SimpleNamespace:  # noqa: FBT001, FBT002 - vLLM's
            raise KeyError("the engine's own")

    instance, simulation = simulated()
    made = recording_class(Broken, lambda: str(tmp_path / "run.jsonl"), Clock())
    scheduler = made(instance, simulation, 0.0)
    with pytest.raises(KeyError, match="the engine's own"):
        scheduler.schedule()
    scheduler.shutdown()


def test_a_scheduler_without_its_preemption_method_is_refused() -> None:
    """Else preemptions would be missing without a word."""
    with pytest.raises(UsageError, match="object has no _preempt_request"):
        recording_class(object, lambda: None)


# Classes for --scheduler-cls


def test_the_module_is_there_without_vllm_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only asking for the class needs vLLM."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    vllm_scheduler.scheduler_class.cache_clear()
    with pytest.raises(UsageError, match="RecordingScheduler needs AsyncScheduler"):
        vllm_scheduler.RecordingScheduler  # noqa: B018 - asking for it is the test
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        vllm_scheduler.Other  # noqa: B018 - asking for it is the test


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Modules of vLLM's name with the stub in them."""
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, attribute in vllm_scheduler.BASES.values():
        module = ModuleType(name)
        setattr(module, attribute, type(attribute, (StubScheduler,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    vllm_scheduler.scheduler_class.cache_clear()
    return sys.modules["vllm.v1.core.sched.async_scheduler"]


@pytest.mark.parametrize("name", vllm_scheduler.BASES)
def test_classes_stand_on_vllms_and_write_where_the_environment_says(
    fake_vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A subclass of the right base, the same one each time, with its own name."""
    made: Any = getattr(vllm_scheduler, name)
    module, attribute = vllm_scheduler.BASES[name]

    assert issubclass(made, getattr(sys.modules[module], attribute))
    assert made is getattr(vllm_scheduler, name)
    assert (made.__module__, made.__qualname__) == (vllm_scheduler.__name__, name)

    monkeypatch.setenv(vllm_scheduler.ENVIRONMENT_VARIABLE, str(tmp_path / "run.jsonl"))
    made(*simulated(), 0.0).shutdown()
    meta = json.loads((tmp_path / "run.jsonl").read_text())["meta"]
    assert meta["scheduler"] == attribute
    vllm_scheduler.scheduler_class.cache_clear()


def test_the_recorder_loads_nothing_else_of_cspsched() -> None:
    """Inside a serving engine there is neither a solver nor a simulator, nor numpy for our sake."""
    code = (
        "import cspsched.recording.vllm_scheduler, sys, json; "
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] in ('cspsched', 'numpy', 'ortools')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    allowed = {"cspsched", "cspsched.errors", "cspsched.recording", "cspsched.recording.recorder"}
    allowed |= {"cspsched.recording.writer", "cspsched.recording.vllm_scheduler"}
    assert set(json.loads(done.stdout)) == allowed
