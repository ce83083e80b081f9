"""The replay of a recorded case says equal only if it is, and refuses what it would get wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cspsched.errors import InputError, UsageError
from cspsched.policies.base import make_policy
from cspsched.recording.cases import find_cases
from cspsched.recording.engines import Engine, engine_of
from cspsched.recording.replay import Replay, Verdict, replay_case
from cspsched.simulate import simulate
from tests.support.command_line import invoke
from tests.support.recordings import COST, TIGHT, instance_of, log_lines, requests_of, simulated, write_case

V0 = {
    "num_kv_blocks": 12, "num_cpu_blocks": 0, "block_size": 2, "max_num_seqs": 4, "max_model_len": 64,
    "max_num_batched_tokens": 64, "preemption_mode": None, "cost": TIGHT["cost"],
}  # fmt: skip
SARATHI = {
    "scheduler": "sarathi", "num_kv_blocks": 12, "block_size": 2, "max_num_seqs": 4, "max_model_len": 64,
    "chunk_size": 8, "cost": TIGHT["cost"],
}  # fmt: skip


def replayed(folder: Path, config: dict[str, Any], lines: list[dict[str, Any]], **more: Any) -> Replay:
    write_case(folder, "case", config, lines, **more)
    (case,) = find_cases(folder)
    return replay_case(case)


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """A log in which requests are preempted."""
    made = log_lines(*simulated())
    assert any(line["preempted"] for line in made)
    assert any(line["waiting"] for line in made)
    return made


def test_our_own_log_is_equal(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """The simulation's own log, written and read again, is reproduced to the nanosecond."""
    replay = replayed(tmp_path, TIGHT, lines)

    assert (replay.verdict, replay.difference, replay.reason) == (Verdict.EQUAL, None, None)
    assert replay.sha256 == replay.recorded_sha256
    assert replay.num_iterations == len(lines)


CHANGES: dict[str, Any] = {
    "sched": lambda old: [[old[0][0], old[0][1], old[0][2] + 1], *old[1:]],
    "preempted": lambda old: [*old, ["r4", 0, 0]],
    "waiting": lambda old: old + 1,
    "kv_used": lambda old: old - 1,
    "t_start": lambda old: old - 1e-9,
    "t_end": lambda old: old + 1e-9,
}


@pytest.mark.parametrize("key", CHANGES)
def test_any_single_other_value_is_found_in_its_iteration(
    tmp_path: Path, lines: list[dict[str, Any]], key: str
) -> None:
    """Tokens, order, victims, queue, blocks and times are all compared, exactly; both sides are shown."""
    at = len(lines) // 2
    lines[at] = {**lines[at], key: CHANGES[key](lines[at][key])}
    replay = replayed(tmp_path, TIGHT, lines)

    assert replay.verdict is Verdict.DIFFERS
    assert replay.difference is not None
    assert replay.difference.iteration == at
    assert replay.difference.fields == [{"t_start": "start_ns", "t_end": "end_ns"}.get(key, key)]
    assert (replay.sha256 == replay.recorded_sha256) == (key not in ("sched", "preempted"))


def test_another_order_in_a_batch_is_a_difference(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """The order of the scheduler is part of the schedule."""
    at = next(k for k, line in enumerate(lines) if len(line["sched"]) > 1)
    lines[at]["sched"] = lines[at]["sched"][::-1]
    replay = replayed(tmp_path, TIGHT, lines)

    assert replay.difference is not None
    assert (replay.difference.iteration, replay.difference.fields) == (at, ["sched"])


def test_an_iteration_more_is_a_difference(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """A recording that goes on where the simulation has ended is not equal."""
    extra = {**lines[-1], "it": len(lines), "emitted": [], "finished": []}
    replay = replayed(tmp_path, TIGHT, [*lines, extra])

    assert replay.difference is not None
    assert (replay.difference.simulated, replay.difference.fields) == (None, ["end"])


def test_an_empty_iteration_hands_its_victims_on(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """An engine may preempt without a batch; a schedule has that at the boundary before the next one."""
    at = next(k for k, line in enumerate(lines) if line["preempted"])
    empty = {**lines[at], "it": len(lines), "sched": [], "emitted": [], "finished": []}
    rest = {**lines[at], "preempted": []}
    replay = replayed(tmp_path, TIGHT, [*lines[:at], empty, rest, *lines[at + 1 :]])

    assert replay.verdict is Verdict.EQUAL


def test_an_incomplete_log_is_compared_as_far_as_it_goes(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Without the last lines the verdict holds for what is there, and says so."""
    write_case(tmp_path, "case", TIGHT, lines)
    log = tmp_path / "case.log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-5]))
    (case,) = find_cases(tmp_path)
    replay = replay_case(case)

    assert (replay.verdict, replay.num_iterations) == (Verdict.EQUAL, len(lines) - 4)
    assert "not complete" in replay.notes[0]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**TIGHT, "speculative_tokens": 3}, "speculative_tokens=3"),
        ({**TIGHT, "enable_something": True}, "enable_something=true"),
        ({**TIGHT, "policy": "lottery"}, "lottery"),
        ({**TIGHT, "cost": {**TIGHT["cost"], "d": 1}}, "cost.d"),
        ({**TIGHT, "cost": None}, "measured times"),
        ({**TIGHT, "max_model_len": 9}, "request 'r0' has a prompt of 9 tokens, and max_model_len is 9"),
        ({**V0, "enable_prefix_caching": True}, "enable_prefix_caching=true"),
        ({**V0, "num_scheduler_steps": 8}, "num_scheduler_steps=8"),
        ({**SARATHI, "scheduler": "rolling"}, "scheduler rolling"),
        ({**SARATHI, "max_model_len": 10}, "longer than max_model_len 10"),
        ({**SARATHI, "enable_dynamic_chunking_schedule": True}, "dynamic chunks need"),
    ],
)
def test_what_is_not_simulated_is_never_replayed(
    tmp_path: Path, lines: list[dict[str, Any]], config: dict[str, Any], reason: str
) -> None:
    """An unknown setting, or a value that means something else, ends in a reason."""
    replay = replayed(tmp_path, config, lines)

    assert (replay.verdict, replay.sha256) == (Verdict.NOT_SIMULATED, None)
    assert reason in str(replay.reason)


@pytest.mark.parametrize(
    "neutral",
    [
        {"num_lookahead_tokens": 0, "prefill_schedule_interval": 1, "max_num_active_seqs": None},
        {"long_prefill_token_threshold": 0, "long_prefill_token_threshold_adaptive": False},
        {"watermark": 0.0, "scheduler_reserve_full_isl": True, "max_iterations": 3},
    ],
)
def test_settings_at_their_neutral_value_change_nothing(
    tmp_path: Path, lines: list[dict[str, Any]], neutral: dict[str, Any]
) -> None:
    """The resolved configuration of a recording names everything, used or not."""
    assert replayed(tmp_path, {**TIGHT, **neutral}, lines).verdict is Verdict.EQUAL


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("long_prefill_token_threshold", 3),
        ("watermark", 0.3),
        ("enable_chunked_prefill", False),
        ("async_scheduling", True),
    ],
)
def test_a_setting_reaches_the_policy(tmp_path: Path, setting: str, value: object) -> None:
    """A log made with a setting is equal under it and differs without."""
    config = {**TIGHT, "max_num_batched_tokens": 10}
    lines = log_lines(*simulated(f"vllm:{setting}={str(value).lower()}", config))

    assert replayed(tmp_path, {**config, setting: value}, lines).verdict is Verdict.EQUAL
    assert replayed(tmp_path, config, lines).verdict is Verdict.DIFFERS


def test_a_request_that_reaches_max_model_len_ends_there(tmp_path: Path) -> None:
    """The engine ends it early: the replay does the same and says so."""
    requests = requests_of()
    cut = {**TIGHT, "max_model_len": 14}
    shorter = (replace(requests[0], output_tokens=5), *requests[1:])
    instance = instance_of(cut, shorter)
    lines = log_lines(instance, simulate(instance, make_policy("vllm")))
    replay = replayed(tmp_path, cut, lines, requests=requests)

    assert (replay.verdict, replay.reason) == (Verdict.EQUAL, None)
    assert replay.notes == ("requests that the engine ends early, at max_model_len 14: 1",)


def test_a_request_that_the_engine_dropped_is_told(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Another number of tokens than asked for is no scheduling difference, and no silent replay."""
    for line in lines:
        line["finished"] = [name for name in line["finished"] if name != "r1"]
    replay = replayed(tmp_path, TIGHT, lines)

    assert replay.verdict is Verdict.NOT_SIMULATED
    assert "request 'r1' never finishes (8 of 8 output tokens)" in str(replay.reason)


def test_another_watermark_than_the_policys_is_told(tmp_path: Path) -> None:
    """The log says how many blocks the engine kept free; a policy that keeps others is not replayed."""
    lines = log_lines(*simulated("sarathi:chunk=8"))
    write_case(tmp_path, "case", SARATHI, lines)
    log = tmp_path / "case.log.jsonl"
    log.write_text(log.read_text().replace('{"meta": {}}', '{"meta": {"watermark_blocks": 5}}'))
    (case,) = find_cases(tmp_path)

    assert "a watermark of 5 KV blocks" in str(replay_case(case).reason)


def test_costs_that_are_no_whole_nanoseconds_are_compared_with_their_rounding(tmp_path: Path) -> None:
    """Our batches are rounded up, at most 4 ns each; more than that is a difference."""
    config = {**TIGHT, "cost": {"a": 0.008, "b": 1.23e-8, "c": 1.7e-9}}
    lines = log_lines(*simulated(config=config))
    exact_s = 0.0
    for line in lines:
        tokens = sum(entry[1] for entry in line["sched"])
        read = sum(entry[1] + entry[2] for entry in line["sched"])
        exact_s = max(exact_s, 0.0) + 0.008 + 1.23e-8 * tokens + 1.7e-9 * read
        line["t_end"] = exact_s
        line["t_start"] = exact_s - 0.008 - 1.23e-8 * tokens - 1.7e-9 * read
    assert replayed(tmp_path, config, lines).verdict is Verdict.EQUAL

    lines[3]["t_end"] += 20e-9
    assert replayed(tmp_path, config, lines).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("source", "config", "engine"),
    [
        ("vllm 0.33.0 g4ba787ec9 AsyncScheduler", {}, Engine.VLLM_V1),
        ("vllm 0.9.2 V0 vllm/core/scheduler.py", {}, Engine.VLLM_V0),
        ("microsoft/sarathi-serve@96f9911", {}, Engine.SARATHI_SERVE),
        ("", TIGHT, Engine.VLLM_V1),
        ("", V0, Engine.VLLM_V0),
        ("", SARATHI, Engine.SARATHI_SERVE),
    ],
)
def test_the_engine_is_told_by_its_name_or_its_settings(
    source: str, config: dict[str, Any], engine: Engine
) -> None:
    """Name first, then keys that only one engine has."""
    assert engine_of(source, config) is engine


# Cases of a folder


def test_cases_are_found_below_a_folder_and_chosen_by_pattern(tmp_path: Path) -> None:
    """Without a manifest every log is a case; names are paths."""
    (tmp_path / "v0").mkdir()
    lines = log_lines(*simulated())
    for name in ("b", "a", "v0/c"):
        write_case(tmp_path, name, TIGHT, lines)

    assert [case.name for case in find_cases(tmp_path)] == ["a", "b", "v0/c"]
    assert [case.name for case in find_cases(tmp_path, ["v0/*", "a"])] == ["a", "v0/c"]
    with pytest.raises(UsageError, match="no recorded case 'x'"):
        find_cases(tmp_path, ["x"])


def test_a_trace_may_be_named_by_a_file(tmp_path: Path) -> None:
    """`NAME.trace.txt` holds its path, relative to itself: several cases share a trace."""
    (tmp_path / "v0").mkdir()
    write_case(tmp_path, "v0/a", TIGHT, log_lines(*simulated()))
    (tmp_path / "v0" / "a.trace.csv").rename(tmp_path / "shared.csv")
    (tmp_path / "v0" / "a.trace.txt").write_text("../shared.csv\n")
    (case,) = find_cases(tmp_path)

    assert replay_case(case).verdict is Verdict.EQUAL


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    """Also one that is no folder, and a manifest that names a log that is not there."""
    with pytest.raises(InputError, match="holds no recorded case"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        find_cases(tmp_path / "none")
    (tmp_path / "manifest.json").write_text('{"a": {}}')
    with pytest.raises(InputError, match="case 'a' has no log"):
        find_cases(tmp_path)


def test_a_log_that_is_not_the_manifests_is_unreadable(tmp_path: Path) -> None:
    """Its hash is checked before anything is compared."""
    write_case(tmp_path, "a", TIGHT, log_lines(*simulated()))
    (tmp_path / "manifest.json").write_text('{"a": {"schedule_sha256": "00"}}')
    (case,) = find_cases(tmp_path)
    replay = replay_case(case)

    assert replay.verdict is Verdict.UNREADABLE
    assert "the manifest says 00" in str(replay.reason)


# Command line


def test_command_prints_a_line_a_case_and_exits_0_if_all_are_equal(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A case that is not simulated does not fail the gate; progress goes to stderr."""
    write_case(tmp_path, "a", TIGHT, lines)
    write_case(tmp_path, "b", {**TIGHT, "colour": "red"}, lines)
    outcome = invoke(capsys, "conformance", tmp_path)

    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "2 cases: 1 equal, 1 not simulated"
    assert "not simulated: colour=red" in outcome.out
    assert "[2/2] replaying b" in outcome.err


def test_command_replays_with_either_engine(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal plain and compiled; what cannot be compiled is told, and fails no gate."""
    fine = {**TIGHT, "cost": {**COST, "c": 1e-30}}
    write_case(tmp_path, "a", TIGHT, lines)
    write_case(tmp_path, "b", fine, log_lines(*simulated(config=fine)))
    plain, compiled = (
        invoke(capsys, "conformance", tmp_path, "a", "--engine", e) for e in ("plain", "compiled")
    )
    all_plain, everything = (
        invoke(capsys, "conformance", tmp_path, "--engine", e) for e in ("plain", "compiled")
    )

    assert (plain.code, plain.out) == (compiled.code, compiled.out)
    assert (plain.code, plain.out.splitlines()[-1]) == (0, "1 case: 1 equal")
    assert (all_plain.code, all_plain.out.splitlines()[-1]) == (0, "2 cases: 2 equal")
    assert (everything.code, everything.out.splitlines()[-1]) == (0, "2 cases: 1 equal, 1 not simulated")
    assert "the numbers are too large for compiled code; run it plain" in everything.out


def test_a_case_with_a_prefix_cache_is_replayed(tmp_path: Path) -> None:
    """Preempted requests find what they left: another schedule than without."""
    config = {**TIGHT, "enable_prefix_caching": True}
    made = log_lines(*simulated("vllm:enable_prefix_caching=true", config))
    assert made != log_lines(*simulated())
    write_case(tmp_path, "a", config, made)
    (case,) = find_cases(tmp_path)

    replay = replay_case(case)
    assert (replay.verdict, replay.difference) == (Verdict.EQUAL, None)


def test_command_exits_3_and_shows_both_sides(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first iteration that differs, what the recording has and what we have."""
    lines[4]["kv_used"] += 1
    write_case(tmp_path, "a", TIGHT, lines)
    outcome = invoke(capsys, "conformance", tmp_path)
    blocks = lines[4]["kv_used"]

    assert outcome.code == 3
    assert "first in iteration 4: kv_used" in outcome.out
    assert f" {blocks} KV blocks" in next(x for x in outcome.out.splitlines() if "recorded   " in x)
    assert f" {blocks - 1} KV blocks" in next(x for x in outcome.out.splitlines() if "simulated  " in x)


def test_command_exits_1_if_a_case_cannot_be_read(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are replayed all the same."""
    write_case(tmp_path, "a", TIGHT, lines)
    write_case(tmp_path, "b", TIGHT, lines)
    (tmp_path / "a.log.jsonl").write_text("{}\n")
    outcome = invoke(capsys, "conformance", tmp_path)

    assert outcome.code == 1
    assert outcome.out.splitlines()[-1] == "2 cases: 1 equal, 1 unreadable"


def test_json_of_the_command_has_all_that_was_compared(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Schema, counts, and for a difference both sides in full."""
    lines[4]["kv_used"] += 1
    write_case(tmp_path, "a", TIGHT, lines)
    outcome = invoke(capsys, "conformance", tmp_path, "--json")
    data = json.loads(outcome.out)
    difference = data["cases"][0]["difference"]

    assert (outcome.code, data["schema"]) == (3, "cspsched/conformance/1")
    assert data["counts"] == {"equal": 0, "differs": 1, "not simulated": 0, "unreadable": 0}
    assert difference["recorded"] == {**difference["simulated"], "kv_used": lines[4]["kv_used"]}
    assert difference["recorded"]["sched"] == lines[4]["sched"]
