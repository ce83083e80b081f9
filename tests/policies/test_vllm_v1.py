"""vLLM V1 with every switch: equal to a naive engine, and each switch by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from cspsched.errors import UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.vllm_v1 import QueueOrder, VllmSettings, VllmV1
from cspsched.problem.instance import Instance
from cspsched.referee.rules import find_violations
from cspsched.simulate import PolicyError, Simulation, simulate
from tests.oracles.naive_vllm import NaiveVllmV1
from tests.support.places import DATA
from tests.support.strategies import EXAMPLES, make_instance
from tests.support.vllm_cases import policy_of, random_case, rows_of

RECORDINGS = DATA / "vllm_conformance"


@pytest.mark.parametrize("part", range(8))
def test_every_configuration_agrees_with_the_naive_engine(part: int) -> None:
    """Batches, order, computed before, preemptions, hits, blocks and times; or neither comes to an end."""
    reached: set[str] = set()
    for seed in range(part * EXAMPLES, (part + 1) * EXAMPLES):
        instance, arguments = random_case(random.Random(seed))
        try:
            naive = NaiveVllmV1(instance=instance, **arguments).run(max_steps=3000)
        except TimeoutError:
            with pytest.raises(PolicyError):
                simulate(instance, policy_of(arguments))
            continue
        simulation = simulate(instance, policy_of(arguments))
        assert rows_of(simulation) == [decision.row() for decision in naive], f"seed {seed}: {arguments}"
        reached |= {"hits"} if len(simulation.schedule.hit_batch) else set()
        reached |= {"preemptions"} if simulation.preempted else set()

    assert reached == {"hits", "preemptions"}


def test_schedules_are_feasible_unless_a_withdrawn_chunk_was_cached() -> None:
    """The referee accepts all first come, first served schedules; by priority it names only such hits."""
    accepted = 0
    for seed in range(2 * EXAMPLES):
        instance, arguments = random_case(random.Random(seed))
        try:
            simulation = simulate(instance, policy_of(arguments))
        except PolicyError:
            continue
        rules = {violation.rule for violation in find_violations(instance, simulation.schedule)}
        assert rules <= ({"prefix cache"} if arguments["policy"] == "priority" else set()), f"seed {seed}"
        accepted += not rules

    assert accepted > EXAMPLES


def batches(instance: Instance, **settings: Any) -> list[list[tuple[int, int]]]:
    """(request, tokens) of every batch."""
    return [
        [(request, tokens) for request, tokens, _ in row[0]]  # type: ignore[attr-defined]
        for row in rows_of(simulate(instance, VllmV1(VllmSettings(**settings))))
    ]


def test_active_sequences_take_the_place_of_sequences() -> None:
    """With at most one active the second request waits, though two may run."""
    instance = make_instance((2, 2), (2, 1))

    assert batches(instance, max_num_seqs=2)[0] == [(0, 2), (1, 2)]
    assert batches(instance, max_num_seqs=2, max_num_active_seqs=1) == [[(0, 2)], [(0, 1)], [(1, 2)]]


def test_the_adaptive_threshold_shares_the_budget_out() -> None:
    """Eight tokens for two requests are four each; for the last one alone there is no limit."""
    instance = make_instance((9, 1), (3, 1), max_batch_tokens=8)
    settings = {"long_prefill_token_threshold": 1, "long_prefill_token_threshold_adaptive": True}

    assert batches(instance)[0] == [(0, 8)]
    assert batches(instance, **settings) == [[(0, 4), (1, 3)], [(0, 5)]]


def test_the_adaptive_switch_does_nothing_without_a_threshold() -> None:
    """There is no limit that could be raised: prompts of 9 and 3 share 8 tokens as they come."""
    instance = make_instance((9, 1), (3, 1), max_batch_tokens=8)

    assert batches(instance, long_prefill_token_threshold_adaptive=True) == batches(instance)


def test_the_adaptive_threshold_is_no_less_than_the_fixed_one() -> None:
    """Six tokens were asked for, four would be the share."""
    instance = make_instance((9, 1), (3, 1), max_batch_tokens=8)
    settings = {"long_prefill_token_threshold": 6, "long_prefill_token_threshold_adaptive": True}

    assert batches(instance, **settings)[0] == [(0, 6), (1, 2)]


def test_prefills_wait_for_their_interval_while_somebody_decodes() -> None:
    """The prefill of step 1 is followed by the next in step 4; the arrival at 1 ns waits for it."""
    instance = make_instance((2, 6), (3, 1), arrivals_ns=[0, 1])

    assert batches(instance)[1] == [(0, 1), (1, 3)]
    spaced = batches(instance, prefill_schedule_interval=3)
    assert spaced[:4] == [[(0, 2)], [(0, 1)], [(0, 1)], [(0, 1), (1, 3)]]


def test_the_first_step_counts_as_long_after_a_prefill() -> None:
    """A first prompt of one token is no prefill work, so that the next prefill need not wait for it."""
    instance = make_instance((1, 9), (3, 1), arrivals_ns=[0, 1])

    assert batches(instance, prefill_schedule_interval=5)[:2] == [[(0, 1)], [(0, 1), (1, 3)]]


def test_prefills_do_not_wait_where_some_had_to_stay_out() -> None:
    """The step that released prefills left one waiting, for want of budget: the next step goes on."""
    instance = make_instance((4, 4), (4, 1), max_batch_tokens=4)

    assert batches(instance, prefill_schedule_interval=5)[1] == [(0, 1), (1, 3)]


def test_started_prefills_wait_too() -> None:
    """The second chunk of a prompt is deferred as long as another request decodes."""
    instance = make_instance((1, 3), (6, 1), max_batch_tokens=5)

    assert batches(instance)[:2] == [[(0, 1), (1, 4)], [(0, 1), (1, 2)]]
    spaced = batches(instance, prefill_schedule_interval=9)
    assert spaced == [[(0, 1), (1, 4)], [(0, 1)], [(0, 1)], [(1, 2)]]


@pytest.mark.parametrize(("lookahead", "blocks"), [(0, [2, 3]), (1, [3, 3]), (2, [3, 4]), (3, [4, 4])])
def test_blocks_are_given_ahead(lookahead: int, blocks: list[int]) -> None:
    """Four tokens, then five, and those to come, in blocks of two; never beyond the longest sequence, 7."""
    instance = make_instance((4, 2), block_tokens=2, max_model_len=7)
    simulation = simulate(instance, VllmV1(VllmSettings(num_lookahead_tokens=lookahead)))

    assert simulation.held_blocks.tolist() == blocks


def test_without_chunks_a_prompt_waits_for_a_batch_that_holds_it() -> None:
    """Four tokens are left beside the first prompt, five are needed."""
    instance = make_instance((4, 1), (5, 1), max_batch_tokens=8)

    assert batches(instance)[0] == [(0, 4), (1, 4)]
    assert batches(instance, enable_chunked_prefill=False) == [[(0, 4)], [(1, 5)]]


@pytest.mark.parametrize(("watermark", "together"), [(0.0, True), (0.3, True), (0.4, False)])
def test_the_watermark_counts_the_null_block(watermark: float, together: bool) -> None:  # noqa: FBT001
    """Of nine blocks six are taken and three wanted; int(0.3 * 10) = 3 more have to stay free."""
    instance = make_instance((3, 1), (3, 1), kv_blocks=9)

    assert (len(batches(instance, watermark=watermark)[0]) == 2) is together


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("--scheduling-policy=priority", VllmSettings(policy=QueueOrder.PRIORITY)),
        ("--enable-prefix-caching=true", VllmSettings(enable_prefix_caching=True)),
        ("--prefill-schedule-interval=4", VllmSettings(prefill_schedule_interval=4)),
        ("max_num_active_seqs=3", VllmSettings(max_num_active_seqs=3)),
        ("num-lookahead-tokens=1", VllmSettings(num_lookahead_tokens=1)),
        (
            "long-prefill-token-threshold-adaptive=on",
            VllmSettings(long_prefill_token_threshold_adaptive=True),
        ),
    ],
)
def test_the_engines_own_spellings_are_read(text: str, settings: VllmSettings) -> None:
    """Arguments as they are written for `vllm serve`."""
    assert make_policy(f"vllm:{text}") == VllmV1(settings)


@pytest.mark.parametrize(
    "text", ["prefill_schedule_interval=0", "max_num_active_seqs=0", "num_lookahead_tokens=-1"]
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    """One below what makes sense."""
    with pytest.raises(UsageError, match="expected at least"):
        make_policy(f"vllm:{text}")


def test_a_request_preempted_with_its_last_token_in_flight_loses_nothing() -> None:
    """Ahead of the token it is told as preempted; the token still comes, and nothing is computed again."""
    found = 0
    for seed in range(EXAMPLES):
        instance, arguments = random_case(random.Random(seed))
        arguments |= {"async_scheduling": True, "enable_prefix_caching": False, "watermark": 0.0}
        try:
            simulation = simulate(instance, policy_of(arguments))
        except PolicyError:
            continue
        schedule = simulation.schedule
        found += len(simulation.preempted) - schedule.num_preemptions
        assert find_violations(instance, schedule) == []

    assert found > 0


def recorded(case: str, **settings: Any) -> tuple[Instance, Simulation]:
    """A recorded case, simulated with other settings."""
    from cspsched.recording.cases import find_cases
    from cspsched.recording.setup import make_setup

    (found,) = find_cases(RECORDINGS, [case])
    recording = found.read_recording()
    config, requests = found.read_config(recording), found.read_requests(recording)
    setup = make_setup(recording, recording.source, config, requests, case)
    assert isinstance(setup.policy, VllmV1)
    policy = VllmV1(replace(setup.policy.settings, **settings))
    return setup.instance, simulate(setup.instance, policy)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded schedules are not at {RECORDINGS}")
@pytest.mark.parametrize(("caching", "recomputed"), [(False, 0.365), (True, 0.253)])
def test_a_preempted_request_recovers_what_was_measured(caching: bool, recomputed: float) -> None:  # noqa: FBT001
    """The real engine preempts 60 times, with and without cache, and recomputes 36.5 % and 25.3 % more."""
    instance, simulation = recorded("c03_pressure_noapc", enable_prefix_caching=caching)
    needed = sum(request.peak_kv_tokens for request in instance.requests)

    assert len(simulation.preempted) == 60
    assert float(simulation.schedule.tokens.sum()) / needed - 1 == pytest.approx(recomputed, abs=0.0005)
    assert find_violations(instance, simulation.schedule) == []
