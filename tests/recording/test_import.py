"""The log of a real engine becomes a schedule that is checked and compared like a policy's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cspsched.errors import InputError, UsageError
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result
from cspsched.problem.schedule import Schedule
from cspsched.recording.imported import ImportedSchedule, Times, import_recording
from cspsched.recording.log import read_recording
from cspsched.referee.rules import find_violations
from cspsched.simulate import Simulation
from cspsched.studies.compare import compare_policies
from cspsched.studies.reference import ReferenceLimits
from tests.support.command_line import invoke
from tests.support.pages import undocumented
from tests.support.recordings import TIGHT, log_lines, requests_of, simulated, write_log, write_trace

V0_SWAP = {
    "num_kv_blocks": 4, "num_cpu_blocks": 4, "block_size": 2, "max_num_seqs": 4, "preemption_mode": "swap",
    "cost": {"a": 1, "b": 0, "c": 0, "swap_block": 0.25},
}  # fmt: skip


def imported(
    tmp_path: Path, lines: list[dict[str, Any]], config: dict[str, Any] = TIGHT, **options: Any
) -> ImportedSchedule:
    write_log(tmp_path / "log.jsonl", lines)
    recording = read_recording(tmp_path / "log.jsonl")
    return import_recording(recording, options.pop("requests", requests_of()), config, **options)


def schedule_of(made: ImportedSchedule) -> Schedule:
    assert made.result.schedule is not None
    return made.result.schedule


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    """A schedule with preemptions."""
    _, made = simulated()
    assert made.schedule.num_preemptions
    return made


@pytest.fixture
def lines(simulation: Simulation) -> list[dict[str, Any]]:
    """Its log."""
    return log_lines(simulated()[0], simulation)


@pytest.mark.parametrize("times", Times)
@pytest.mark.parametrize("policy", ["vllm", "vllm:async_scheduling=true", "sarathi:chunk=8", "vllm-v0"])
def test_import_gives_back_the_schedule_that_was_logged(tmp_path: Path, policy: str, times: Times) -> None:
    """Every column, also the times: the log's own cost prices it, and it left no pause."""
    instance, simulation = simulated(policy)
    made = imported(tmp_path, log_lines(instance, simulation), times=times)

    assert schedule_of(made) == simulation.schedule
    assert made.result.instance.requests == instance.requests
    assert made.result.violations() == []


def test_the_first_arrival_is_time_zero(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """An engine's clock starts anywhere; a schedule's starts with the first request."""
    shift_s = 3.5
    for line in lines:
        line["t_start"] += shift_s
        line["t_end"] += shift_s
    requests = tuple(replace(one, arrival_ns=one.arrival_ns + 3_500_000_000) for one in requests_of())
    made = imported(tmp_path, lines, requests=requests)

    assert schedule_of(made).start_ns[0] == 0
    assert [one.arrival_ns for one in made.result.instance.requests] == [
        one.arrival_ns for one in requests_of()
    ]


def test_measured_times_are_kept_beside_the_models(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """A slow engine is priced as the model does; its own times are in the provenance."""
    for j, line in enumerate(lines):
        line["t_start"], line["t_end"] = 1.0 * j, 1.0 * j + 0.5
    model, recorded = (imported(tmp_path, lines, times=times) for times in Times)
    ends = [1_000_000_000 * j + 500_000_000 for j in range(len(lines))]

    assert model.result.provenance["recorded"]["end_ns"] == ends
    assert schedule_of(model) == simulated()[1].schedule
    starts = schedule_of(recorded).start_ns.tolist()
    assert starts == [1_000_000_000 * j for j in range(len(lines))]
    durations = schedule_of(recorded).end_ns - schedule_of(recorded).start_ns
    assert durations.tolist() == (schedule_of(model).end_ns - schedule_of(model).start_ns).tolist()


def test_recorded_starts_wait_for_the_batch_before(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """A model slower than the engine pushes batches back; the schedule stays feasible."""
    for j, line in enumerate(lines):
        line["t_start"], line["t_end"] = 1e-6 * j, 1e-6 * (j + 1)
    made = imported(tmp_path, lines, times=Times.RECORDED)

    assert schedule_of(made) == simulated()[1].schedule


def test_unfinished_requests_are_left_out_and_told(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Of a log that is cut off, those that finished before make a feasible schedule."""
    shorter = lines[: len(lines) - 4]
    finished = {name for line in shorter for name in line["finished"]}
    made = imported(tmp_path, shorter)

    assert 0 < len(finished) < len(requests_of())
    assert {one.request_id for one in made.result.instance.requests} == finished
    assert made.result.violations() == []
    assert f"{len(requests_of()) - len(finished)} of 5 requests never finish" in made.notes[0]


def test_output_lengths_are_those_that_the_engine_made(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """A request that stopped early counts with what it got."""
    wished = tuple(replace(one, output_tokens=50) for one in requests_of())
    made = imported(tmp_path, lines, requests=wished)

    assert made.result.instance.requests == requests_of()
    assert "5 requests got another number of output tokens" in made.notes[0]


def test_tokens_of_a_finished_request_are_left_out(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """An engine that decides ahead may process a request once more after its end token: no part of it."""
    at = next(j for j, line in enumerate(lines) if line["finished"])
    name = lines[at]["finished"][0]
    lines[at + 1]["sched"] = [[name, 1, 99], *lines[at + 1]["sched"]]
    made = imported(tmp_path, lines)

    assert schedule_of(made) == simulated()[1].schedule
    assert any("1 tokens that the engine processed for finished requests" in note for note in made.notes)


def test_swapped_requests_come_back_from_host_memory(tmp_path: Path) -> None:
    """Out and in are read from the log, and their time delays the batch, whose end is the recorded one."""
    lines: list[dict[str, Any]] = [
        {"sched": [["a", 4, 0], ["b", 3, 0]], "preempted": [], "emitted": ["a", "b"], "t_end": 1.0},
        {"sched": [["a", 1, 4]], "preempted": [["b", "SWAP"]], "swapped_out_blocks": 2, "emitted": ["a"],
         "finished": ["a"], "t_end": 2.5},
        {"sched": [["b", 1, 3]], "swapped_in_blocks": 2, "emitted": ["b"], "finished": ["b"], "t_end": 4.0},
    ]  # fmt: skip
    for it, line in enumerate(lines):
        line |= {"it": it, "t_start": [0.0, 1.0, 2.5][it], "waiting": 0, "kv_used": 4}
    requests = tuple(replace(one, arrival_ns=0) for one in requests_of(((4, 2, 0.0), (3, 2, 0.0))))
    named = tuple(replace(one, request_id=name) for one, name in zip(requests, "ab", strict=True))
    made = imported(tmp_path, lines, V0_SWAP, requests=named)
    schedule = schedule_of(made)

    assert (schedule.evicted_to_host.tolist(), schedule.restored_batch.tolist()) == ([1], [2])
    assert schedule.end_ns.tolist() == [1_000_000_000, 2_500_000_000, 4_000_000_000]
    assert schedule.start_ns.tolist() == [0, 1_500_000_000, 3_000_000_000]
    assert find_violations(made.result.instance, schedule) == []


def test_cached_tokens_become_hits(tmp_path: Path) -> None:
    """A request that starts with computed tokens has them from the prefix cache, as bounds allow for.

    Only a trace says who shares a prefix with whom; without, the referee cannot know, and the import says so.
    """
    lines = [
        {"sched": [["r0", 4, 0]], "emitted": ["r0"], "finished": ["r0"]},
        {"sched": [["r1", 2, 4]], "emitted": ["r1"], "finished": ["r1"]},
    ]
    for it, line in enumerate(lines):
        line |= {"it": it, "t_start": float(it), "t_end": it + 0.5, "waiting": 0, "kv_used": 2}  # type: ignore[operator]
    alone = requests_of(((4, 1, 0.0), (6, 1, 0.0)))
    with pytest.raises(InputError, match=r"prefix_id, prefix_tokens.*prefix caching off"):
        imported(tmp_path, lines, requests=alone)
    shared = tuple(replace(one, prefix=(("stream", 4),)) for one in alone)
    made = imported(tmp_path, lines, requests=shared)
    schedule = schedule_of(made)

    assert (schedule.hit_request.tolist(), schedule.hit_tokens.tolist()) == ([1], [4])
    assert any("prefix cache" in note for note in made.notes)
    compared = compare_policies(made.result.instance, ["vllm"], schedules={"real": schedule})
    assert compared.instance.switches.prefix_caching
    assert compared.cache is not None
    assert compared.cache.findable_tokens == 4


def test_a_log_that_contradicts_itself_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """A missing line shows in the tokens computed before."""
    at = next(j for j, line in enumerate(lines) if j and line["sched"][0][2] and not line["finished"])

    with pytest.raises(InputError, match=r"line \d+: request 'r\d' has \d+ tokens computed before"):
        imported(tmp_path, lines[:at] + lines[at + 1 :])


def test_a_log_that_breaks_a_rule_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Under another configuration than the recorded one the referee objects."""
    with pytest.raises(InputError, match="breaks a rule of the problem"):
        imported(tmp_path, lines, {**TIGHT, "max_num_seqs": 1})


def test_a_request_that_no_trace_has_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """The wrong trace is told at once."""
    with pytest.raises(InputError, match="schedules request 'r4', which the trace does not have"):
        imported(tmp_path, lines, requests=requests_of()[:4])


def test_measured_times_need_a_cost_model(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Without one there are no prices; with one given it is used before the log's own."""
    config = {key: value for key, value in TIGHT.items() if key != "cost"}
    with pytest.raises(UsageError, match="name a cost model"):
        imported(tmp_path, lines, config)
    cost = replace(simulated()[0].cost, name="mine")

    assert imported(tmp_path, lines, config, cost=cost).result.instance.cost.name == "mine"


def test_nothing_finished_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """There is nothing to score."""
    with pytest.raises(InputError, match="none of the 5 requests finishes"):
        imported(tmp_path, lines[:1])


# Comparison


def test_a_schedule_stands_beside_the_policies(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Its row has the value of the policy that made it, and both are measured against one reference."""
    result = imported(tmp_path, lines).result
    comparison = compare_policies(
        result.instance,
        ["vllm", "sarathi:chunk=8"],
        Objective.LATENCY,
        schedules={"real": schedule_of(imported(tmp_path, lines))},
        limits=ReferenceLimits(work_s=0, steps=0),
    )
    real, vllm, _ = comparison.rows

    assert [row.policy for row in comparison.rows] == ["real", "vllm", "sarathi:chunk=8"]
    assert (real.value_ns, real.excess) == (vllm.value_ns, vllm.excess)


def test_a_schedule_is_compared_alone_and_never_twice(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """No policy is needed beside it; two rows of one name would be a riddle."""
    result = imported(tmp_path, lines).result
    given = {"vllm": schedule_of(imported(tmp_path, lines))}
    limits = ReferenceLimits(work_s=0, steps=0)

    assert len(compare_policies(result.instance, [], schedules=given, limits=limits).rows) == 1
    with pytest.raises(UsageError, match="'vllm' is named twice"):
        compare_policies(result.instance, ["vllm"], schedules=given, limits=limits)


def test_a_broken_schedule_is_bad_input(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """It is the user's file, not our bug."""
    made = imported(tmp_path, lines)
    broken = replace(schedule_of(made), end_ns=schedule_of(made).end_ns + 1)

    with pytest.raises(InputError, match="schedule 'real' breaks a rule"):
        compare_policies(made.result.instance, ["vllm"], schedules={"real": broken})


# Command line


@pytest.fixture
def files(tmp_path: Path, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with log, trace and configuration, to work in."""
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.jsonl", lines)
    write_trace(tmp_path / "trace.csv", requests_of())
    (tmp_path / "config.json").write_text(json.dumps(TIGHT))
    return tmp_path


IMPORT = (
    "import-schedule", "log.jsonl", "--trace", "trace.csv", "--config", "config.json", "--save", "real.json",
)  # fmt: skip


def test_commands_import_check_and_compare(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way of the manual: the file is accepted by `check` and is a row of `compare`."""
    assert invoke(capsys, *IMPORT).code == 0
    assert invoke(capsys, "check", "real.json").code == 0
    beside = ("--heuristics", "vllm", "--time-limit", "0s", "--json")
    outcome = invoke(capsys, "compare", "--schedule", "real=real.json", *beside)
    data = json.loads(outcome.out)

    assert outcome.code == 0
    assert [row["policy"] for row in data["policies"]] == ["real", "vllm"]
    assert data["policies"][0]["value_ns"] == data["policies"][1]["value_ns"]


def test_import_prints_metrics_as_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the schedule is worth, with a schema."""
    data = json.loads(invoke(capsys, *IMPORT, "--json").out)

    assert data["schema"] == "cspsched/import/1"
    assert (data["num_requests"], data["num_batches"]) == (5, simulated()[1].schedule.num_batches)


def test_stated_objective_is_the_one_asked_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The saved file states the value of the objective, so that `check` can judge it."""
    invoke(capsys, *IMPORT, "--objective", "ttft")
    result = Result.from_json(json.loads(Path("real.json").read_text()))

    assert (result.objective, result.violations()) == (Objective.TTFT, [])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("compare", "--schedule", "real.json"), 2, "expected NAME=FILE"),
        (("compare", "--schedule", "a=real.json", "--schedule", "a=real.json"), 2, "a name of its own"),
        (("compare", "--schedule", "a=none.json"), 1, "none.json does not exist"),
        (("compare", "tiny-12", "--schedule", "a=real.json"), 2, "TRACE is given with --schedule"),
        (("compare", "--kv-blocks", "3", "--schedule", "a=real.json"), 2, "--kv-blocks is given with"),
        (("compare", "--schedule", "a=real.json", "--schedule", "b=other.json"), 1, "of another instance"),
        (("import-schedule", "log.jsonl", "--save", "x.json"), 2, "name a cost model"),
        (("import-schedule", "none.jsonl", "--save", "x.json"), 1, "none.jsonl does not exist"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    """One sentence, the documented exit code."""
    invoke(capsys, *IMPORT)
    invoke(capsys, "simulate", "tiny-12", "--save", "other.json")
    outcome = invoke(capsys, *arguments)

    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_every_field_is_in_the_formats_page(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those of a conformance run that finds a difference, and of the provenance."""
    (files / "log.jsonl").rename(files / "log.log.jsonl")
    (files / "log.config.json").write_text(json.dumps({**TIGHT, "watermark": 0.3}))
    (files / "trace.csv").rename(files / "log.trace.csv")
    conformance = json.loads(invoke(capsys, "conformance", files, "--json").out)
    arguments = (
        "log.log.jsonl",
        "--trace",
        "log.trace.csv",
        "--config",
        "config.json",
        "--save",
        "real.json",
    )
    made = json.loads(invoke(capsys, "import-schedule", *arguments, "--json").out)
    recorded = json.loads((files / "real.json").read_text())["provenance"]["recorded"]

    assert conformance["cases"][0]["difference"] is not None
    assert list(undocumented(conformance)) == []
    assert list(undocumented(made)) == []
    assert list(undocumented({"schema": made["schema"], "recorded": recorded})) == []
