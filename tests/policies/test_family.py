"""vLLM V0 and the sarathi-serve schedulers: rules at the edge, slow twins, the referee on every policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.errors import CspschedError, UsageError
from cspsched.policies.base import make_policy, policy_names
from cspsched.policies.faster_transformer import FasterTransformer, FasterTransformerSettings
from cspsched.policies.orca import Orca, OrcaSettings
from cspsched.policies.reserving import Reservation
from cspsched.policies.sarathi import Sarathi, SarathiSettings
from cspsched.policies.sarathi_vllm import SarathiVllm, SarathiVllmSettings
from cspsched.policies.simple_chunking import SimpleChunking, SimpleChunkingSettings
from cspsched.policies.vllm_v0 import VllmV0, VllmV0Settings
from cspsched.policies.vllm_v1 import QueueOrder
from cspsched.problem.instance import Instance, Switches
from cspsched.referee.rules import find_violations
from cspsched.simulate import LivelockError, Policy, PolicyError, simulate
from tests.oracles.naive_family import (
    NaiveDynamicSarathi,
    NaiveReserving,
    NaiveSarathiVllm,
    NaiveSimpleChunking,
    NaiveV0,
    NaiveV0Chunked,
    RefusedError,
)
from tests.oracles.naive_simulator import NaivePolicy, NaiveRequest, naive_simulate
from tests.support.policy_runs import batches, evictions, instance_of, run, schedule_or_error
from tests.support.strategies import EXAMPLES
from tests.support.tight_instances import check, instances
from tests.support.v0_cases import budgets, limits_of, seqs, v0_chunked_settings, v0_settings, watermarks

NO_CHUNKS = Switches(chunked_prefill=False)
PREFILL_FIRST = ("vllm-v0:watermark=0", "sarathi-vllm:watermark=0")
CHUNKED = "vllm-v0:enable_chunked_prefill=true,watermark=0"
PRIORITY = "vllm-v0:policy=priority,watermark=0"


def with_model_len(instance: Instance, max_model_len: int) -> Instance:
    return replace(instance, limits=replace(instance.limits, max_model_len=max_model_len))


# Rules that several of them have in common.


@pytest.mark.parametrize("text", PREFILL_FIRST)
def test_prompts_come_first_and_alone(text: str) -> None:
    """The second request arrives while the first decodes; its prompt takes a batch of its own."""
    simulation = run(text, instance_of((2, 4), (3, 2, 1)))

    assert batches(simulation) == [[(0, 2)], [(1, 3)], [(0, 1), (1, 1)], [(0, 1)], [(0, 1)]]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("vllm-v0:max_num_batched_tokens=8", [(0, 5)]),
        ("vllm-v0:max_num_batched_tokens=9", [(0, 5), (1, 4)]),
        ("sarathi-vllm:max_batched_tokens=8", [(0, 5)]),
        ("sarathi-vllm:max_batched_tokens=9", [(0, 5), (1, 4)]),
    ],
)
def test_prompts_share_a_batch_up_to_the_budget(text: str, first: list[tuple[int, int]]) -> None:
    """5 + 4 tokens fit 9, not 8."""
    assert batches(run(text, instance_of((5, 1), (4, 1))))[0] == first


@pytest.mark.parametrize(
    ("text", "limit"), [("vllm-v0:max_num_batched_tokens=4", 4), ("sarathi-vllm:max_batched_tokens=4", 4)]
)
def test_a_prompt_beyond_the_policys_own_budget_is_an_error(text: str, limit: int) -> None:
    """The real scheduler drops it."""
    with pytest.raises(PolicyError, match=rf"'r1' has 5 tokens to prefill in one batch, which holds {limit}"):
        simulate(instance_of((4, 1), (5, 1)), make_policy(text))


@pytest.mark.parametrize("text", PREFILL_FIRST)
def test_a_refill_that_outgrows_the_batch_is_an_error_without_chunks(text: str) -> None:
    """r1, preempted with 4 + 2 tokens, fits no batch of 5 (the real V0: FINISHED_IGNORED)."""
    instance = instance_of((4, 5), (4, 5), kv_blocks=11, max_batch_tokens=5, switches=NO_CHUNKS)
    with pytest.raises(PolicyError, match="'r1' has 6 tokens to prefill in one batch, which holds 5"):
        simulate(instance, make_policy(text))


@pytest.mark.parametrize("text", [*PREFILL_FIRST, "orca:reservation=oracle"])
def test_a_prompt_beyond_the_instances_budget_goes_in_pieces(text: str) -> None:
    """It waits for a batch of its own, and leaves room for others only in its last piece."""
    simulation = run(text, instance_of((2, 1), (7, 1), (2, 1), max_batch_tokens=5))

    assert batches(simulation) == [[(0, 2)], [(1, 5)], [(1, 2), (2, 2)]]


@pytest.mark.parametrize("text", [*PREFILL_FIRST, CHUNKED])
def test_a_decode_wants_a_free_block_even_if_it_needs_none(text: str) -> None:
    """Two requests fill 2 blocks of 4 tokens; the later one is evicted though both have room."""
    simulation = run(text, instance_of((2, 2), (2, 2), kv_blocks=2, block_tokens=4))

    assert evictions(simulation) == [(1, 1)]
    assert batches(simulation)[1] == [(0, 1)]


@pytest.mark.parametrize("name", ["vllm-v0", "sarathi-vllm", "simple-chunking"])
@pytest.mark.parametrize(("watermark", "admitted"), [(0.1, 2), (0.2, 1)])
def test_the_watermark_is_kept_free(name: str, watermark: float, admitted: int) -> None:
    """5 + 4 of 10 blocks leave one."""
    simulation = run(f"{name}:watermark={watermark}", instance_of((5, 1), (4, 1), kv_blocks=10))

    assert len(batches(simulation)[0]) == admitted


@pytest.mark.parametrize("name", ["vllm-v0", "sarathi-vllm", "simple-chunking"])
def test_the_watermark_is_waived_while_nothing_runs(name: str) -> None:
    """A prompt that fits only below the watermark is served once the device is empty."""
    simulation = run(f"{name}:watermark=0.2", instance_of((3, 2), (10, 1), kv_blocks=10))

    assert batches(simulation) == [[(0, 3)], [(0, 1)], [(1, 10)]]


@pytest.mark.parametrize("name", ["vllm-v0", "sarathi-vllm", "simple-chunking", "orca", "faster-transformer"])
@pytest.mark.parametrize(("setting", "limit", "most"), [(2, 5, 2), (5, 2, 2), (9, 3, 3)])
def test_the_tighter_of_setting_and_instance_binds(name: str, setting: int, limit: int, most: int) -> None:
    """For the requests that run at a time; and C bounds them, too, since all may decode at once."""
    rows, text = [(1, 3)] * 5, f"{name}:max_num_seqs={setting}"
    by_requests = run(text, with_model_len(instance_of(*rows, max_batch_requests=limit), 3))
    by_tokens = run(text, with_model_len(instance_of(*rows, max_batch_tokens=limit), 3))

    assert max(map(len, batches(by_requests))) == most
    assert max(map(len, batches(by_tokens))) == most


# vLLM V0.


def test_v0_puts_victims_to_the_front_of_the_queue() -> None:
    """The victim is refilled before a request that waits since the beginning."""
    simulation = run("vllm-v0:watermark=0,max_num_seqs=2", instance_of((3, 4), (3, 4), (3, 1), kv_blocks=7))
    order = [request for batch in batches(simulation) for request, _ in batch]

    assert evictions(simulation)[0] == (1, 1)
    assert 1 in order[order.index(1) + 1 : order.index(2)]


@pytest.mark.parametrize(("factor", "starts"), [(0, [0, 1, 2]), (2.5, [0, 4, 5]), (4.5, [0, 6, 7])])
def test_v0_delays_prompts_by_the_latency_of_the_last_prompts(factor: float, starts: list[int]) -> None:
    """Batches take 1 ns; r1 and r2 arrive at 1 and 2, and each has to wait for longer than the factor."""
    simulation = run(f"vllm-v0:delay_factor={factor}", instance_of((2, 9), (2, 9, 1), (2, 9, 2)))
    prompts = [j for j, batch in enumerate(batches(simulation)) if batch[0][1] > 1]

    assert simulation.schedule.start_ns[prompts].tolist() == starts


def test_v0_waits_longer_than_the_delay_not_just_as_long() -> None:
    """r1 arrives at 1; with a prompt latency of 1 and a factor of 2 it is admitted at 4, not at 3."""
    simulation = run("vllm-v0:delay_factor=2", instance_of((2, 9), (2, 1, 1)))

    assert [len(batch) for batch in batches(simulation)][:5] == [1] * 5
    assert batches(simulation)[4] == [(1, 2)]


def test_v0_does_not_delay_while_nobody_runs() -> None:
    """Alone, r1 is admitted at once."""
    simulation = run("vllm-v0:delay_factor=100", instance_of((2, 1), (2, 1, 5)))

    assert simulation.schedule.start_ns.tolist() == [0, 5]


def test_v0_priority_preempts_for_a_more_important_request_and_admits_it_next() -> None:
    """r1 takes the place of r0, which decoded once; the step of the eviction has no batch."""
    simulation = run(PRIORITY, instance_of((4, 4, 0, 1), (5, 1, 1, 0), kv_blocks=8))

    assert evictions(simulation) == [(1, 0)]
    assert batches(simulation)[1] == [(1, 5)]


@pytest.mark.parametrize("rows", [[(4, 4, 0, 0), (5, 1, 1, 0)], [(4, 4, 0, 1), (4, 1, 1, 0)]])
def test_v0_priority_preempts_no_equal_and_nobody_in_vain(rows: list[tuple[int, ...]]) -> None:
    """An earlier arrival of the same priority stays, and so does all if there is room."""
    assert evictions(run(PRIORITY, instance_of(*rows, kv_blocks=8))) == []


def test_v0_priority_makes_room_in_the_number_of_requests() -> None:
    """With max_num_seqs = 1 the less important one goes."""
    simulation = run(PRIORITY + ",max_num_seqs=1", instance_of((2, 4, 0, 1), (2, 1, 1, 0)))

    assert evictions(simulation) == [(1, 0)]


def test_v0_sorts_the_queue_by_priority_only_in_steps_without_prompts() -> None:
    """At 0 the file's order decides: r0 and r1 are admitted; then r3 comes before r2."""
    rows = [(2, 3, 0, 5), (2, 3, 0, 5), (2, 3, 0, 9), (2, 3, 0, 8)]
    simulation = run(PRIORITY + ",max_num_seqs=2", instance_of(*rows))
    first_seen = list(dict.fromkeys(request for batch in batches(simulation) for request, _ in batch))

    assert first_seen == [0, 1, 3, 2]


def test_v0_chunked_keeps_decodes_and_fills_the_budget_with_prompts() -> None:
    """The decode takes its token first and stands last; the whole prompt's blocks are taken at once."""
    simulation = run(CHUNKED, instance_of((2, 3), (6, 1, 1), max_batch_tokens=4))

    assert batches(simulation) == [[(0, 2)], [(1, 3), (0, 1)], [(1, 3), (0, 1)]]
    assert simulation.held_blocks.tolist() == [2, 9, 10]


def test_v0_chunked_admits_after_a_preemption_but_not_the_victim() -> None:
    """r0 evicts r1; r2, behind the victim, takes the blocks in the same step."""
    instance = instance_of((3, 4), (3, 4), (1, 1, 1), kv_blocks=6)
    simulation = run(CHUNKED, instance)

    assert evictions(simulation)[0] == (1, 1)
    assert batches(simulation)[1] == [(2, 1), (0, 1)]


def test_v0_splits_the_budget_among_several_prefills() -> None:
    """Two prompts get 4 of 8 tokens each; of two long ones the second is passed over."""
    rows = [(9, 1), (9, 1), (3, 1)]
    instance = instance_of(*rows, max_batch_tokens=8)
    both = run(CHUNKED + ",max_num_partial_prefills=2,long_prefill_token_threshold=9", instance)
    one_long = run(CHUNKED + ",max_num_partial_prefills=2,long_prefill_token_threshold=5", instance)

    assert batches(both)[0] == [(0, 4), (1, 4)]
    assert batches(one_long)[0] == [(0, 4), (2, 3)]


def test_v0_serves_first_whom_the_budget_left_out() -> None:
    """Two prefills share 8 as 4 + 4: r5, which came last, is left out, and then stands before the rest."""
    rows = [(20, 1), (20, 1), (2, 9), (1, 9), (1, 9), (1, 9, 1)]
    text = CHUNKED + ",max_num_partial_prefills=3,long_prefill_token_threshold=30"
    simulation = run(text, instance_of(*rows, max_batch_tokens=8))

    assert batches(simulation)[:4] == [
        [(0, 2), (1, 2), (2, 2), (3, 1), (4, 1)],
        [(5, 1), (0, 2), (1, 2), (2, 1), (3, 1), (4, 1)],
        [(0, 4), (1, 1), (2, 1), (3, 1), (4, 1)],
        [(0, 4), (5, 1), (2, 1), (3, 1), (4, 1)],
    ]


@pytest.mark.parametrize(
    ("model_len", "chunked", "budget"),
    [(None, False, None), (4096, False, 4096), (512, False, 2048), (4096, True, 2048)],
)
def test_v0_budget_by_default(model_len: int | None, chunked: bool, budget: int | None) -> None:  # noqa: FBT001
    """max(max_model_len, 2048), or 2048 if chunked."""
    limits = replace(instance_of((1, 1)).limits, max_model_len=model_len)

    assert VllmV0Settings(enable_chunked_prefill=chunked).token_budget(limits) == budget


# Orca and FasterTransformer.


def test_orca_decodes_and_admits_in_one_batch_and_faster_transformer_waits() -> None:
    """r1 joins r0 while it decodes, or waits for its end; prompts stand first."""
    instance = with_model_len(instance_of((2, 3), (3, 1, 1)), 5)

    assert batches(run("orca", instance)) == [[(0, 2)], [(1, 3), (0, 1)], [(0, 1)]]
    assert batches(run("faster-transformer", instance)) == [[(0, 2)], [(0, 1)], [(0, 1)], [(1, 3)]]


def test_faster_transformer_does_not_fill_the_places_of_the_finished() -> None:
    """r2 waits until both of the first batch are done."""
    instance = with_model_len(instance_of((1, 1), (1, 3), (1, 1)), 3)

    assert batches(run("faster-transformer:max_num_seqs=2", instance))[-1] == [(2, 1)]


@pytest.mark.parametrize(("kv_blocks", "at_once"), [(11, 1), (12, 2)])
def test_reserving_policies_hold_the_longest_request_from_the_start(kv_blocks: int, at_once: int) -> None:
    """max_model_len = 21 tokens are 6 blocks of 4; two of these fit 12 blocks."""
    instance = with_model_len(instance_of((1, 1), (1, 1), kv_blocks=kv_blocks, block_tokens=4), 21)
    for name in ("orca", "faster-transformer"):
        assert run(name, instance).held_blocks[0] == 6 * at_once


@pytest.mark.parametrize(("reservation", "blocks"), [("max", 20), ("pow2", 3 + 8), ("oracle", 3 + 5 - 1)])
def test_orca_reserves_what_it_is_told(reservation: str, blocks: int) -> None:
    """Prompt 3, output 5: max_model_len, 3 + 8, or I + O - 1."""
    simulation = run(f"orca:reservation={reservation}", with_model_len(instance_of((3, 5)), 20))

    assert set(simulation.held_blocks.tolist()) == {blocks}


def test_orca_rounds_no_reservation_beyond_the_device() -> None:
    """3 + 8 tokens are reserved on a device of 7, which holds the request."""
    assert run("orca:reservation=pow2", instance_of((3, 5), kv_blocks=7)).held_blocks.max() == 7


@pytest.mark.parametrize("name", ["orca", "faster-transformer"])
@pytest.mark.parametrize(("longest", "blocks"), [(None, 10), (11, 10), (10, 10), (9, 9)])
def test_a_reservation_is_at_most_the_device(name: str, longest: int | None, blocks: int) -> None:
    """Longer requests are rejected; so a max_model_len that is unknown or never fits counts as the device."""
    instance = instance_of((1, 1), (1, 1), kv_blocks=10)
    if longest is not None:
        instance = with_model_len(instance, longest)
    simulation = run(name, instance)

    assert simulation.held_blocks.tolist() == [blocks, blocks]


# Simple chunking and dynamic chunks.


def test_simple_chunking_takes_turns() -> None:
    """Prefill, decode, prefill; a turn with nothing to do passes."""
    simulation = run("simple-chunking:chunk_size=4", instance_of((2, 3), (6, 2, 1)))

    assert batches(simulation) == [[(0, 2)], [(0, 1)], [(1, 4)], [(0, 1)], [(1, 2)], [(1, 1)]]


def test_simple_chunking_admits_nobody_beside_a_started_prefill() -> None:
    """The second turn has room for r1 and does not use it."""
    simulation = run("simple-chunking:chunk_size=4", instance_of((5, 1), (2, 1)))

    assert batches(simulation) == [[(0, 4)], [(0, 1)], [(1, 2)]]


DYNAMIC = SarathiSettings(
    enable_dynamic_chunking_schedule=True,
    low_chunk_size=64,
    high_chunk_size=256,
    chunk_schedule_max_tokens=1000,
    chunk_schedule_stages=4,
)


def test_dynamic_chunks_shrink_in_stages() -> None:
    """linspace(64, 256, 4) from the top, a stage every 250 tokens; the last goes on beyond 1000."""
    assert DYNAMIC.stages() == (250, [256, 192, 128, 64])

    instance = instance_of((1100, 1), kv_blocks=2000, max_batch_tokens=2000)
    simulation = simulate(instance, Sarathi(DYNAMIC))
    assert [batch[0][1] for batch in batches(simulation)] == [256, 192, 192, 128, 64, 64, 64, 64, 64, 12]


def test_a_dynamic_chunk_smaller_than_the_decodes_is_nothing() -> None:
    """Three decodes leave 5 of the first stage's 8 tokens, and none of the second's 2 until they are done."""
    settings = replace(
        DYNAMIC, low_chunk_size=2, high_chunk_size=8, chunk_schedule_max_tokens=10, chunk_schedule_stages=2
    )
    simulation = simulate(instance_of((1, 3), (1, 3), (1, 3), (9, 1)), Sarathi(settings))
    decodes = [(0, 1), (1, 1), (2, 1)]

    assert batches(simulation) == [[*decodes, (3, 5)], decodes, decodes, [(3, 2)], [(3, 2)]]


@pytest.mark.parametrize(
    ("low", "high", "stages", "sizes"),
    [(64, 256, 1, [64]), (64, 64, 2, [64, 64]), (32, 128, 3, [128, 64, 32]), (8, 24, 2, [24, 8])],
)
def test_dynamic_chunks_are_rounded(low: int, high: int, stages: int, sizes: list[int]) -> None:
    """To multiples of 32, where 80 is halfway and goes to the even one, or of a lowest chunk below 32."""
    settings = replace(DYNAMIC, low_chunk_size=low, high_chunk_size=high, chunk_schedule_stages=stages)

    assert settings.stages()[1] == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm-v0:delay_factor=-1", "delay_factor is -1.0, expected at least 0"),
        ("vllm-v0:delay_factor=nan", "delay_factor is nan, expected at least 0"),
        ("vllm-v0:max_num_partial_prefills=2", "needs enable_chunked_prefill=true"),
        ("vllm-v0:max_num_seqs=0", "policy 'vllm-v0': max_num_seqs is 0"),
        ("sarathi-vllm:max_batched_tokens=0", "policy 'sarathi-vllm': max_batched_tokens is 0"),
        ("orca:reservation=half", "reservation is 'half', expected one of max, pow2, oracle"),
        ("orca:max_num_seqs=0", "policy 'orca': max_num_seqs is 0"),
        ("faster-transformer:max_num_seqs=0", "policy 'faster-transformer': max_num_seqs is 0"),
        ("simple-chunking:chunk=0", "policy 'simple-chunking': chunk_size is 0"),
        (
            "sarathi:enable_dynamic_chunking_schedule=on",
            "need low_chunk_size, .*, chunk_schedule_stages, too",
        ),
        ("sarathi:low_chunk_size=32", "low_chunk_size needs enable_dynamic_chunking_schedule=true"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str) -> None:
    """What was got and what to do."""
    with pytest.raises(UsageError, match=message):
        make_policy(text)


# Slow twins.


def assert_same(instance: Instance, policy: Policy, twin: NaivePolicy) -> None:
    """Same schedule and blocks, without violation; refused where the twin refuses."""
    ours = schedule_or_error(instance, policy)
    if isinstance(ours, CspschedError):
        assert "to prefill in one batch" in str(ours)
        with pytest.raises(RefusedError):
            naive_simulate(instance, twin, max_batches=2000)
        return
    naive = naive_simulate(instance, twin, max_batches=2000)

    assert naive.schedule == ours.schedule
    assert naive.held_blocks == ours.held_blocks.tolist()
    assert find_violations(instance, ours.schedule) == []


@check
@given(instances(), v0_settings)
def test_v0_agrees_with_its_twin(instance: Instance, settings: VllmV0Settings) -> None:
    """Same batches, order, evictions, times and blocks; refused where the twin refuses."""
    budget = settings.max_num_batched_tokens
    limits = limits_of(instance, min(settings.max_num_seqs, budget or 10**9), budget)
    twin = NaiveV0(
        **limits,
        watermark=settings.watermark,
        delay_factor=settings.delay_factor,
        priority=settings.policy is QueueOrder.PRIORITY,
    )

    assert_same(instance, VllmV0(settings), twin)


@check
@given(instances(), v0_chunked_settings)
def test_v0_chunked_agrees_with_its_twin(instance: Instance, settings: VllmV0Settings) -> None:
    """Same batches, order, evictions, times and blocks."""
    budget = settings.max_num_batched_tokens
    assert budget is not None
    twin = NaiveV0Chunked(
        **limits_of(instance, min(settings.max_num_seqs, budget), budget),
        watermark=settings.watermark,
        max_partial=settings.max_num_partial_prefills,
        max_long=settings.max_long_partial_prefills,
        long_tokens=settings.long_prefill_token_threshold,
    )

    assert_same(instance, VllmV0(settings), twin)


@check
@given(instances(), seqs, budgets, watermarks, st.booleans())
def test_sarathi_vllm_agrees_with_its_twin(
    instance: Instance,
    max_num_seqs: int,
    budget: int | None,
    watermark: float,
    chunks: bool,  # noqa: FBT001
) -> None:
    """Same batches, order, evictions, times and blocks; refused where the twin refuses."""
    longest = max(request.prompt_tokens for request in instance.requests)
    limits = replace(instance.limits, max_batch_tokens=max(instance.limits.max_batch_tokens, longest))
    if not chunks:
        instance = replace(instance, limits=limits, switches=NO_CHUNKS)
    policy = SarathiVllm(
        SarathiVllmSettings(max_num_seqs=max_num_seqs, max_batched_tokens=budget, watermark=watermark)
    )

    twin = NaiveSarathiVllm(**limits_of(instance, max_num_seqs, budget), watermark=watermark)
    assert_same(instance, policy, twin)


@check
@given(instances(), seqs, watermarks)
def test_sarathi_vllm_is_v0_without_its_extras(
    instance: Instance, max_num_seqs: int, watermark: float
) -> None:
    """First come first served, who is admitted last has arrived last: both preempt the same requests."""
    v0 = VllmV0(VllmV0Settings(max_num_seqs=max_num_seqs, watermark=watermark))
    sarathi = SarathiVllm(SarathiVllmSettings(max_num_seqs=max_num_seqs, watermark=watermark))

    assert simulate(instance, v0).schedule == simulate(instance, sarathi).schedule


@check
@given(instances(), seqs, st.integers(1, 40), watermarks)
def test_simple_chunking_agrees_with_its_twin(
    instance: Instance, max_num_seqs: int, chunk: int, watermark: float
) -> None:
    """Same batches, order, evictions, times and blocks."""
    settings = SimpleChunkingSettings(chunk_size=chunk, max_num_seqs=max_num_seqs, watermark=watermark)
    twin = NaiveSimpleChunking(**limits_of(instance, max_num_seqs, chunk), watermark=watermark)

    assert_same(instance, SimpleChunking(settings), twin)


@check
@given(instances(), seqs, st.sampled_from(Reservation), st.booleans(), st.data())
def test_reserving_policies_agree_with_their_twin(
    instance: Instance,
    max_num_seqs: int,
    reservation: Reservation,
    request_level: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    """Same batches, order, times and blocks, and never an eviction."""
    longest = max(request.peak_kv_tokens for request in instance.requests)
    model_len = data.draw(st.integers(longest, instance.limits.kv_tokens))
    instance = with_model_len(instance, model_len)
    declared = [one.output_tokens + data.draw(st.integers(0, 9)) for one in instance.requests]
    told = zip(instance.requests, declared, strict=True)
    instance = replace(instance, requests=tuple(replace(one, max_tokens=most) for one, most in told))
    reservation = Reservation.MAX if request_level else reservation
    policy = (
        FasterTransformer(FasterTransformerSettings(max_num_seqs=max_num_seqs))
        if request_level
        else Orca(OrcaSettings(max_num_seqs=max_num_seqs, reservation=reservation))
    )

    def reserve(request: NaiveRequest) -> int:
        power = next(2**k for k in range(30) if 2**k >= request.output)
        return {
            Reservation.MAX: model_len,
            Reservation.POW2: request.prompt + power,
            Reservation.ORACLE: request.prompt + request.output - 1,
            Reservation.DECLARED: min(request.prompt + declared[request.index] - 1, model_len),
        }[reservation]

    twin = NaiveReserving(
        **limits_of(instance, max_num_seqs, None), reserve=reserve, only_when_empty=request_level
    )
    assert_same(instance, policy, twin)
    assert simulate(instance, policy).schedule.num_preemptions == 0


@check
@given(instances(), seqs, watermarks, st.integers(1, 12), st.integers(0, 20), st.integers(1, 60), seqs)
def test_dynamic_sarathi_agrees_with_its_twin(
    instance: Instance, max_num_seqs: int, watermark: float, low: int, more: int, span: int, stages: int
) -> None:
    """Same batches, order, evictions, times and blocks."""
    settings = SarathiSettings(
        max_num_seqs=max_num_seqs,
        watermark=watermark,
        enable_dynamic_chunking_schedule=True,
        low_chunk_size=low,
        high_chunk_size=low + more,
        chunk_schedule_max_tokens=span,
        chunk_schedule_stages=stages,
    )
    spaced = [low + (more * k) // (stages - 1) if stages > 1 else low for k in range(stages)]
    budget = instance.limits.max_batch_tokens
    twin = NaiveDynamicSarathi(
        **limits_of(instance, max_num_seqs, None),
        watermark=watermark,
        stage_tokens=-(-span // stages),
        sizes=[min(budget, round(size / low) * low) for size in reversed(spaced)],
    )

    assert_same(instance, Sarathi(settings), twin)


# Every policy.

check_each = settings(check, max_examples=EXAMPLES // 4)
"""Fewer examples, for there are many policies."""


@st.composite
def roomy_instances(draw: st.DrawFn) -> Instance:
    """Tight in memory, but every prompt and refill fits a batch, and max_model_len is known."""
    instance = draw(instances())
    longest = max(request.peak_kv_tokens for request in instance.requests)
    budget = max(longest, instance.limits.max_batch_tokens)
    limits = replace(instance.limits, max_batch_tokens=budget, max_model_len=longest)
    return replace(instance, limits=limits)


@pytest.mark.parametrize("name", policy_names())
@check_each
@given(instance=roomy_instances())
def test_every_policy_serves_what_fits_a_batch(name: str, instance: Instance) -> None:
    """Everything, and the referee has no objection."""
    assert find_violations(instance, simulate(instance, make_policy(name)).schedule) == []


@pytest.mark.parametrize("name", policy_names())
@check_each
@given(instance=instances())
def test_every_policy_serves_or_says_why_not(name: str, instance: Instance) -> None:
    """On the tightest instances: a schedule without violation, or one sentence; never an endless loop."""
    outcome = schedule_or_error(instance, make_policy(name))

    if isinstance(outcome, CspschedError):
        assert name in str(outcome)
        assert not isinstance(outcome, LivelockError)
    else:
        assert find_violations(instance, outcome.schedule) == []
