"""Schedules recorded from the real vLLM (V1 and V0) and sarathi-serve are reproduced, batch by batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.problem.referee import find_violations
from cspsched.recording.cases import RecordedCase, find_cases
from cspsched.recording.imported import import_recording
from cspsched.recording.replay import Verdict, replay_case

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "vllm_conformance"
CASES = find_cases(RECORDINGS) if RECORDINGS.is_dir() else []
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


def test_the_cases_are_those_of_the_manifest() -> None:
    """No recorded case is passed over in silence."""
    manifest = json.loads((RECORDINGS / "manifest.json").read_text(encoding="utf-8"))

    assert [case.name for case in CASES] == list(manifest)


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
