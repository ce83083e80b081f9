"""Schedules recorded from the real vLLM (V1 and V0) and sarathi-serve are reproduced, batch by batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cspsched.policies.vllm_v1 import VllmV1
from cspsched.recording.cases import RecordedCase, find_cases
from cspsched.recording.imported import import_recording
from cspsched.recording.log import hash_of
from cspsched.recording.replay import Verdict, replay_case, simulated_rows
from cspsched.recording.setup import make_setup
from cspsched.referee.rules import find_violations
from cspsched.simulate.kernel import Engine, simulate
from tests.support.places import DATA

RECORDINGS = DATA / "vllm_conformance"
FOLDERS = [RECORDINGS, RECORDINGS.with_name("vllm_conformance_more")]
CASES = [case for folder in FOLDERS if folder.is_dir() for case in find_cases(folder)]
pytestmark = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"the recorded schedules are not at {RECORDINGS}"
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recorded_schedule_is_reproduced(case: RecordedCase) -> None:
    """Tokens, order, preemptions, blocks, queue and times of every iteration, and the recorded hash."""
    replay = replay_case(case)

    assert (replay.verdict, replay.reason, replay.difference) == (Verdict.EQUAL, None, None)
    assert replay.sha256 == case.entry["schedule_sha256"]
    assert replay.num_iterations == case.entry["iterations"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recorded_schedule_is_reproduced_by_compiled_code(case: RecordedCase) -> None:
    """The same, batch by batch, of every policy and setting that was recorded."""
    replay = replay_case(case, Engine.COMPILED)

    assert (replay.verdict, replay.reason, replay.difference) == (Verdict.EQUAL, None, None)
    assert replay.sha256 == case.entry["schedule_sha256"]


@pytest.mark.parametrize("name", ["n05_adaptive_without_threshold", "n16_interval5_first_prompt_one_token"])
def test_a_recording_without_hits_is_reproduced_without_the_cache(name: str) -> None:
    """By the recorded hash, prefix caching left out: the settings beside it, in the loop that has none."""
    case = next((case for case in CASES if case.name == name), None)
    if case is None:
        pytest.skip(f"the recorded schedules are not at {FOLDERS[1]}")
    recording = case.read_recording()
    config, requests = case.read_config(recording), case.read_requests(recording)
    setup = make_setup(recording, str(case.entry["source"]), config, requests, name)
    assert isinstance(setup.policy, VllmV1)
    policy = VllmV1(replace(setup.policy.settings, enable_prefix_caching=False))
    rows = simulated_rows(setup.instance, simulate(setup.instance, policy, Engine.COMPILED))

    assert hash_of((row.sched, row.preempted) for row in rows) == case.entry["schedule_sha256"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_cases_are_those_of_the_manifest(folder: Path) -> None:
    """No recorded case is passed over in silence."""
    if not folder.is_dir():
        pytest.skip(f"the recorded schedules are not at {folder}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))

    assert [case.name for case in find_cases(folder)] == list(manifest)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recorded_schedule_is_imported_with_its_own_times(case: RecordedCase) -> None:
    """Priced by the recording's cost, every batch ends when it ended: the real decisions, our clock."""
    recording = case.read_recording()
    requests = case.read_requests(recording)
    result = import_recording(recording, requests, case.read_config(recording)).result
    first_ns = min(request.arrival_ns for request in requests)

    assert result.schedule is not None
    assert find_violations(result.instance, result.schedule) == []
    ends = [iteration.end_ns - first_ns for iteration in recording.iterations]
    assert result.schedule.end_ns.tolist() == ends
