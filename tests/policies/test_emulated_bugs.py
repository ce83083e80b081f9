"""Known bugs of real engines, only where they are asked for."""

from __future__ import annotations

import pytest

from cspsched.errors import UsageError
from cspsched.policies.base import add_setting, make_policy
from cspsched.problem.instance import Instance
from cspsched.recording.cases import RecordedCase, find_cases
from cspsched.recording.engines import Engine, with_bugs
from cspsched.recording.setup import make_setup
from cspsched.referee.rules import find_violations
from cspsched.simulate import PolicyError, Simulation, simulate
from cspsched.simulate.served import as_served
from cspsched.studies.compare import compare_policies
from tests.support.places import DATA
from tests.support.strategies import make_instance

RECORDINGS = DATA / "vllm_conformance"
PREEMPTING = ("sarathi", "sarathi-vllm", "simple-chunking")


def outputs(instance: Instance, simulation: Simulation) -> dict[str, int]:
    """Tokens that every request generates, by the schedule that the referee accepts."""
    served, schedule = as_served(instance, simulation)
    assert find_violations(served, schedule) == []
    return {request.request_id: request.output_tokens for request in served.requests}


@pytest.mark.parametrize("policy", PREEMPTING)
def test_a_preempted_request_forgets_what_it_has_generated(policy):
    """Two requests in 8 tokens: the second is evicted with 3 of its 4 tokens and makes 4 more."""
    instance = make_instance((2, 5), (2, 4), kv_blocks=8)

    assert outputs(instance, simulate(instance, make_policy(policy))) == {"r0": 5, "r1": 4}
    assert outputs(instance, simulate(instance, make_policy(f"{policy}:emulate_bugs=true"))) == {
        "r0": 5,
        "r1": 7,
    }


def test_a_request_of_vllm_v0_vanishes_when_its_refill_outgrows_the_budget():
    """A prompt of the budget's 3 tokens, evicted after 3 of 4 tokens, has 6 to refill: dropped."""
    instance = make_instance((2, 5), (3, 4), kv_blocks=9)
    policy = "vllm-v0:max_num_batched_tokens=3,watermark=0"

    assert outputs(instance, simulate(instance, make_policy(f"{policy},emulate_bugs=true"))) == {
        "r0": 5,
        "r1": 3,
    }
    with pytest.raises(PolicyError, match="to prefill in one batch"):
        simulate(instance, make_policy(policy))


def test_a_request_that_the_watermark_keeps_out_for_ever_is_dropped_with_nothing():
    """10 blocks with 1 kept free never admit a prompt of 10; it is left out, and the other one is served."""
    instance = make_instance((10, 1), (2, 3), kv_blocks=10)
    policy = make_policy("vllm-v0:watermark=0.1,emulate_bugs=true")

    assert outputs(instance, simulate(instance, policy)) == {"r1": 3}


@pytest.mark.parametrize("policy", [*PREEMPTING, "vllm-v0"])
def test_where_no_bug_strikes_nothing_changes(policy):
    """With room for all requests the schedules with and without bugs are the same."""
    instance = make_instance((2, 5), (3, 4), (1, 1), kv_blocks=40)
    plain = simulate(instance, make_policy(policy))
    emulated = simulate(instance, make_policy(f"{policy}:emulate_bugs=true"))

    assert plain.schedule == emulated.schedule
    assert dict(emulated.output_changes) == {}
    assert as_served(instance, emulated) == (instance, emulated.schedule)


def test_a_comparison_refuses_other_outputs():
    """Who generates other tokens than were asked for has no excess."""
    instance = make_instance((2, 5), (2, 4), kv_blocks=8)

    with pytest.raises(UsageError, match="gives other numbers of tokens than were asked for to 1 requests"):
        compare_policies(instance, ["sarathi:emulate_bugs=true"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sarathi", "sarathi:x=1"),
        ("sarathi:chunk=5", "sarathi:chunk=5,x=1"),
        ("my.py:Mine", "my.py:Mine:x=1"),
        ("my.py:Mine:a=2", "my.py:Mine:a=2,x=1"),
    ],
)
def test_a_setting_is_added_to_a_policy(text, expected):
    """Whatever settings there are, and for a policy in a file too."""
    assert expected == add_setting(text, "x=1")


@pytest.mark.parametrize(
    ("engine", "config", "expected"),
    [
        (Engine.SARATHI_SERVE, {"scheduler": "sarathi", "fix_max_tokens": True}, False),
        (Engine.SARATHI_SERVE, {"scheduler": "sarathi", "fix_max_tokens": False}, True),
        (Engine.SARATHI_SERVE, {"scheduler": "vllm"}, True),
        (Engine.SARATHI_SERVE, {"scheduler": "orca"}, False),
        (Engine.VLLM_V0, {}, True),
        (Engine.VLLM_V1, {}, False),
    ],
)
def test_a_recording_is_replayed_with_the_bugs_it_had(engine, config, expected):
    """Recorded programs have theirs, unless the recording says that it mended them."""
    assert expected == with_bugs(engine, config).get("emulate_bugs", False)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded schedules are not at {RECORDINGS}")
def test_sarathi_serve_makes_as_many_tokens_too_many_as_were_measured():
    """On the recorded trace under pressure the real one made 1,075 tokens more, over 39 of 80 requests."""
    (case,) = find_cases(RECORDINGS, ["sarathi/s02_press_sarathi"])
    assert isinstance(case, RecordedCase)
    recording = case.read_recording()
    requests = case.read_requests(recording)
    setup = make_setup(recording, recording.source, case.read_config(recording), requests, case.name)
    policy = make_policy(f"{setup.policy.label},emulate_bugs=true")
    changes = simulate(setup.instance, policy).output_changes
    more = [tokens - requests[i].output_tokens for i, tokens in changes.items()]

    assert (len(requests), len(more), sum(more)) == (80, 39, 1075)
