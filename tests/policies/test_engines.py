"""SGLang, TensorRT-LLM, LightLLM and TGI: random instances, then single rules at the edge and beyond."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.lightllm import Lightllm, LightllmSettings
from cspsched.policies.sglang import RetractionPolicy, SchedulePolicy, Sglang, SglangSettings
from cspsched.policies.tensorrt_llm import CapacityPolicy, ChunkingPolicy, TensorrtLlm, TensorrtLlmSettings
from cspsched.policies.tgi import Tgi, TgiSettings
from cspsched.problem.instance import Instance, Preemption, Switches
from cspsched.referee.rules import find_violations
from cspsched.simulate import Policy, simulate
from tests.support.instances import schedule_unless_stuck
from tests.support.policy_runs import batches, evictions, instance_of, run
from tests.support.strategies import check, instances

sglang = st.builds(
    Sglang,
    st.builds(
        SglangSettings,
        chunked_prefill_size=st.sampled_from([-1, 4, 7, 8192]),
        max_prefill_tokens=st.sampled_from([3, 8, 16384]),
        max_running_requests=st.none() | st.integers(1, 4),
        schedule_conservativeness=st.sampled_from([0.0, 0.3, 1.0]),
        schedule_policy=st.sampled_from(SchedulePolicy),
        ignore_eos=st.booleans(),
        prefill_decode_interval=st.none() | st.integers(0, 3),
        enable_priority_scheduling=st.booleans(),
        priority_scheduling_preemption_threshold=st.integers(0, 2),
        retraction_policy=st.sampled_from(RetractionPolicy),
    ),
)
mixed_sglang = sglang.map(lambda policy: Sglang(replace(policy.settings, enable_mixed_chunk=True)))
tensorrt_llm = st.builds(
    TensorrtLlm,
    st.builds(
        TensorrtLlmSettings,
        capacity_scheduler_policy=st.sampled_from(CapacityPolicy),
        max_num_tokens=st.sampled_from([4, 6, 8192]),
        max_batch_size=st.integers(1, 4) | st.just(2048),
    ),
) | st.builds(
    TensorrtLlm,
    st.builds(
        TensorrtLlmSettings,
        context_chunking_policy=st.just(ChunkingPolicy.EQUAL_PROGRESS),
        max_num_tokens=st.sampled_from([4, 6, 8192]),
        max_batch_size=st.integers(1, 4) | st.just(2048),
    ),
)
lightllm = st.builds(
    Lightllm,
    st.builds(
        LightllmSettings,
        running_max_req_size=st.sampled_from([1, 2, 1000]),
        batch_max_tokens=st.none() | st.integers(1, 9),
        router_max_wait_tokens=st.integers(0, 3),
        router_token_ratio=st.sampled_from([0.0, 0.5, 0.99]),
        router_max_new_token_len=st.integers(0, 4),
    ),
)
tgi = st.builds(
    Tgi,
    st.builds(
        TgiSettings,
        max_batch_prefill_tokens=st.none() | st.integers(1, 9),
        max_batch_size=st.none() | st.integers(1, 4),
        max_batch_total_tokens=st.none() | st.integers(1, 30),
        waiting_served_ratio=st.sampled_from([0.0, 0.3, 1.2, 5.0]),
        max_waiting_tokens=st.integers(0, 3),
    ),
)
engines = sglang | mixed_sglang | tensorrt_llm | lightllm | tgi


def with_switches(instance: Instance, **switches: object) -> Instance:
    return replace(instance, switches=replace(Switches(), **switches))


# All of them


@check
@given(instances(), engines)
def test_the_referee_has_no_objection(instance: Instance, policy: Policy) -> None:
    """Where chunks are allowed and each may be a token, every engine serves everything by the rules."""
    instance = with_switches(instance, chunked_prefill=instance.switches.chunked_prefill)
    schedule = schedule_unless_stuck(instance, policy)

    if schedule is None:
        chunked = instance.switches.chunked_prefill and "chunked_prefill_size=-1" not in policy.label
        assert not chunked or instance.limits.block_tokens > 1
    else:
        assert find_violations(instance, schedule) == []


@check
@given(instances(), engines)
def test_every_engine_serves_prompts_that_fit_into_a_batch(instance: Instance, policy: Policy) -> None:
    """With C for the longest refill and the engine's default budgets, no request fails, chunks or not."""
    budget = max(request.peak_kv_tokens for request in instance.requests)
    policy = type(policy)()
    limits = replace(instance.limits, max_batch_tokens=max(budget, instance.limits.max_batch_tokens))
    instance = with_switches(replace(instance, limits=limits), chunked_prefill=False)

    assert find_violations(instance, simulate(instance, policy).schedule) == []


@check
@given(instances(), sglang | lightllm | tgi)
def test_prefills_run_alone(instance: Instance, policy: Policy) -> None:
    """SGLang, LightLLM and TGI keep the rules without hybrid batches."""
    instance = with_switches(instance, hybrid_batches=False)
    schedule = schedule_unless_stuck(instance, policy)

    assert schedule is None or find_violations(instance, schedule) == []


@check
@given(instances(), tgi | tensorrt_llm)
def test_who_reserves_to_the_end_never_evicts(instance: Instance, policy: Policy) -> None:
    """TGI, and TensorRT-LLM unless it maximises utilization, keep the rules of full reservation."""
    if "max_utilization" in policy.label:
        policy = TensorrtLlm()
    instance = with_switches(instance, reservation=True, preemption=Preemption.NONE)
    schedule = schedule_unless_stuck(instance, policy)

    assert schedule is None or find_violations(instance, schedule) == []


@check
@given(instances(), engines)
def test_a_policy_object_serves_many_runs(instance: Instance, policy: Policy) -> None:
    """Runs share no state: the second is the first again."""
    first, second = (schedule_unless_stuck(with_switches(instance), policy) for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sglang:chunked_prefill_size=0", "chunked_prefill_size is 0, expected at least 1, or -1"),
        ("sglang:max_running_requests=0", "max_running_requests is 0, expected at least 1"),
        ("sglang:schedule_conservativeness=-1", "schedule_conservativeness is -1.0, expected at least 0"),
        ("sglang:schedule_conservativeness=nan", "schedule_conservativeness is nan, expected"),
        (
            "sglang:schedule_policy=hrrn",
            "expected one of fcfs, lof, shortest-prefill-first, random, lpm, dfs",
        ),
        ("sglang:prefill_decode_interval=-1", "prefill_decode_interval is -1, expected at least 0"),
        ("sglang:retraction_policy=x", "retraction_policy is 'x', expected one of length, priority"),
        (
            "tensorrt-llm:context_chunking_policy=equal_progress,capacity_scheduler_policy=static_batch",
            "equal_progress is simulated with capacity_scheduler_policy=guaranteed_no_evict only",
        ),
        ("tensorrt-llm:max_num_tokens=0", "max_num_tokens is 0, expected at least 1"),
        ("tensorrt-llm:capacity_scheduler_policy=x", "expected one of guaranteed_no_evict, max_utilization"),
        ("lightllm:router_token_ratio=1", "router_token_ratio is 1.0, expected at least 0 and below 1"),
        ("lightllm:router_max_wait_tokens=-1", "router_max_wait_tokens is -1, expected at least 0"),
        ("tgi:waiting_served_ratio=-0.1", "waiting_served_ratio is -0.1, expected at least 0"),
        ("tgi:max_batch_size=0", "max_batch_size is 0, expected at least 1"),
        ("tgi:max_batch_total_tokens=0", "max_batch_total_tokens is 0, expected at least 1"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str) -> None:
    """By the engine's own names."""
    with pytest.raises(UsageError, match=message):
        make_policy(text)


# SGLang


def test_sglang_prefills_first_and_alone() -> None:
    """The decode of r0 waits for the prompt of r1."""
    simulation = run("sglang", instance_of((2, 3), (2, 2, 1)))

    assert batches(simulation) == [[(0, 2)], [(1, 2)], [(0, 1), (1, 1)], [(0, 1)]]


def test_sglang_has_a_single_request_in_chunks() -> None:
    """4 + 4 + 2 of r0; the 2 tokens left of the budget start the prompt of r1, which then is the one."""
    simulation = run("sglang:chunked_prefill_size=4", instance_of((10, 1), (3, 1), (1, 1)))

    assert batches(simulation) == [[(0, 4)], [(0, 4)], [(0, 2), (1, 2)], [(1, 1), (2, 1)]]


def test_sglang_cuts_prompts_at_whole_blocks() -> None:
    """6 tokens of budget are one block of 4, but the rest of a prompt needs no whole block."""
    simulation = run("sglang:chunked_prefill_size=6", instance_of((11, 1), block_tokens=4))

    assert batches(simulation) == [[(0, 4)], [(0, 4)], [(0, 3)]]


def test_sglang_counts_prompts_in_whole_blocks() -> None:
    """5 tokens take 8 of the budget of 12, so that 4 of the next 5 follow."""
    simulation = run("sglang:chunked_prefill_size=12", instance_of((5, 1), (5, 1), block_tokens=4))

    assert batches(simulation) == [[(0, 5), (1, 4)], [(1, 1)]]


def test_sglang_without_chunks_waits_for_room_in_the_batch() -> None:
    """-1 cuts no prompt; the instance's C = 8 binds."""
    instance = instance_of((5, 1), (5, 1), max_batch_tokens=8)

    assert batches(run("sglang:chunked_prefill_size=-1", instance)) == [[(0, 5)], [(1, 5)]]


@pytest.mark.parametrize(("limit", "first"), [(9, 1), (10, 2)])
def test_sglang_stops_at_max_prefill_tokens(limit: int, first: int) -> None:
    """5 + 5 tokens."""
    simulation = run(f"sglang:max_prefill_tokens={limit}", instance_of((5, 1), (5, 1)))

    assert len(batches(simulation)[0]) == first


@pytest.mark.parametrize(("output", "admitted"), [(5, True), (6, False)])
def test_sglang_sets_the_ratio_aside_for_running_requests(output: int, *, admitted: bool) -> None:
    """18 are free, 2 x 0.7 set aside: 10 + 5 + 1 is less than 16.6, and 10 + 6 + 1 is not."""
    simulation = run("sglang", instance_of((2, 3), (10, output, 1), kv_blocks=20))

    assert (batches(simulation)[1] == [(1, 10)]) == admitted


@pytest.mark.parametrize(("output", "admitted"), [(3, 2), (4, 1)])
def test_sglang_sets_the_whole_output_aside_within_a_batch(output: int, admitted: int) -> None:
    """18 are free, 3 set aside: 10 + 3 + 1 is less than 15, and 10 + 4 + 1 is not."""
    simulation = run("sglang", instance_of((2, 3), (10, output), kv_blocks=20))

    assert len(batches(simulation)[0]) == admitted


@pytest.mark.parametrize(("output", "admitted"), [(18, True), (19, False)])
def test_sglang_ratio_decays_with_every_decode_step(output: int, *, admitted: bool) -> None:
    """After 400 of 600 steps it is 0.7 - 400 x 0.602 / 600, so that 599 of r0 set 178.9 of 699 aside.

    501 + 18 + 1 is less than 520.1, and 501 + 19 + 1 is not.
    """
    instance = instance_of((1, 1000), (501, output, 401), kv_blocks=1100, max_batch_tokens=1000)
    simulation = run("sglang", instance)

    assert (batches(simulation)[401] == [(1, 501)]) == admitted


def test_sglang_ratio_is_reset_when_idle() -> None:
    """r0 takes the ratio down to 0.098; then, after idle time, 0.7 of the 2 tokens left to r1 are set aside.

    790 + 6 + 1 is less than 798 - 0.196 and not less than 798 - 1.4.
    """
    rows = [(1, 700, 0), (2, 3, 5000), (790, 6, 5001)]
    simulation = run("sglang", instance_of(*rows, kv_blocks=800, max_batch_tokens=1000))

    assert batches(simulation)[700:702] == [[(1, 2)], [(1, 1)]]


@pytest.mark.parametrize(
    ("rows", "kv_blocks"), [([(2, 8), (3, 8, 1)], 15), ([(5, 9), (1, 9, 3)], 19)], ids=["prompt", "generated"]
)
def test_sglang_retracts_the_fewest_generated_then_the_longest_prompt(
    rows: list[tuple[int, ...]], kv_blocks: int
) -> None:
    """Equal progress: the longer prompt. Else the one that has generated less, however short its prompt."""
    simulation = run("sglang:schedule_conservativeness=0", instance_of(*rows, kv_blocks=kv_blocks))

    assert evictions(simulation)[0][1] == 1


def test_sglang_queues_a_retracted_request_at_the_end() -> None:
    """r2, which came while all was full, is served before r1 is refilled."""
    rows = [(2, 8), (3, 8, 1), (1, 1, 4)]
    simulation = run(
        "sglang:schedule_conservativeness=0,max_running_requests=2", instance_of(*rows, kv_blocks=15)
    )
    j, victim = evictions(simulation)[0]
    later = [request for batch in batches(simulation)[j:] for request, _ in batch if request]

    assert (victim, later[0]) == (1, 2)


@pytest.mark.parametrize(
    ("policy", "order"), [("fcfs", [0, 1, 2]), ("lof", [2, 1, 0]), ("shortest-prefill-first", [1, 2, 0])]
)
def test_sglang_sorts_the_queue(policy: str, order: list[int]) -> None:
    """One at a time."""
    rows = [(5, 1), (2, 2), (3, 3)]
    simulation = run(f"sglang:schedule_policy={policy}", instance_of(*rows, max_batch_requests=1))

    assert list(dict.fromkeys(simulation.schedule.request.tolist())) == order


def test_sglang_draws_the_random_order_from_its_seed() -> None:
    """The same seed gives the same order; some other seed another one."""
    instance = instance_of(*[(2, 1)] * 8, max_batch_requests=1)
    orders = [
        run(f"sglang:schedule_policy=random,random_seed={seed}", instance).schedule.request.tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_sglang_mixes_decodes_into_prefills_if_told() -> None:
    """r1 comes when r0 decodes: one batch has both, and the decode counts in the budget of 4."""
    rows = [(2, 3), (4, 2, 1)]
    apart = batches(run("sglang:chunked_prefill_size=4", instance_of(*rows)))
    mixed = batches(run("sglang:chunked_prefill_size=4,enable_mixed_chunk=true", instance_of(*rows)))

    assert apart[1] == [(1, 4)]
    assert mixed[1:3] == [[(1, 3), (0, 1)], [(1, 1), (0, 1)]]


@pytest.mark.parametrize(("interval", "decodes"), [(0, 0), (1, 1), (2, 2)])
def test_sglang_decodes_between_prefills_if_told(interval: int, decodes: int) -> None:
    """r1 comes after the first prefill and waits for so many decode batches of r0."""
    text = f"sglang:prefill_decode_interval={interval}"
    simulation = run(text, instance_of((2, 5), (2, 2, 1)))

    assert batches(simulation)[1 : decodes + 2] == [*[[(0, 1)]] * decodes, [(1, 2)]]


@pytest.mark.parametrize(("priority", "second"), [(11, 1), (10, 0)])
def test_sglang_retracts_for_the_important_beyond_the_threshold(priority: int, second: int) -> None:
    """r1 of priority 0 needs the memory of r0; 11 is above the threshold of 10, and 10 is not."""
    instance = instance_of((6, 3, 0, priority), (6, 2, 1, 0), kv_blocks=12)
    simulation = run("sglang:enable_priority_scheduling=true", instance)

    assert batches(simulation)[1][0][0] == second
    assert len(evictions(simulation)) == second


@pytest.mark.parametrize(("priority", "retracted"), [(11, [0]), (10, [])])
def test_sglang_retracts_for_the_important_where_a_place_is_all_it_lacks(
    priority: int, retracted: list[int]
) -> None:
    """Memory is ample and one request may run: r1 takes its place by a priority of more than 10 less."""
    instance = instance_of((2, 9, 0, priority), (2, 2, 1, 0))
    text = "sglang:enable_priority_scheduling=true,max_running_requests=1"
    simulation = run(text, instance)

    assert [request for _, request in evictions(simulation)] == retracted
    assert batches(simulation)[1] == ([(1, 2)] if retracted else [(0, 1)])
    assert simulate(instance, make_policy(text), "compiled").schedule == simulation.schedule


def test_sglang_retracts_for_a_place_only_if_asked_to_mind_priorities() -> None:
    """Without priority scheduling r1 waits its turn."""
    instance = instance_of((2, 9, 0, 99), (2, 2, 1, 0))

    assert evictions(run("sglang:max_running_requests=1", instance)) == []


@pytest.mark.parametrize(("kv_blocks", "retracted"), [(100, [2]), (35, [2, 1])])
def test_sglang_retracts_one_for_a_place_and_more_for_memory(kv_blocks: int, retracted: list[int]) -> None:
    """Three run. The least important goes first, the last queued of equals; r3 needs 31 of 35 blocks."""
    rows = [(2, 9, 0, 20), (2, 9, 0, 30), (2, 9, 0, 30), (28, 2, 1, 0)]
    text = "sglang:enable_priority_scheduling=true,max_running_requests=3,schedule_conservativeness=0"
    simulation = run(text, instance_of(*rows, kv_blocks=kv_blocks))

    assert [request for batch, request in evictions(simulation) if batch == 1] == retracted
    assert batches(simulation)[1] == [(3, 28)]


def test_sglang_queues_who_lost_a_place_by_priority_then_at_the_end() -> None:
    """r1 is retracted for r2, goes before r3 of a larger priority value, and behind r4 of its own."""
    rows = [(1, 9, 0, 0), (1, 9, 0, 20), (1, 1, 1, 0), (1, 1, 1, 30), (1, 1, 1, 20)]
    text = "sglang:enable_priority_scheduling=true,max_running_requests=2"
    simulation = run(text, instance_of(*rows))
    prefills = [batch[0][0] for batch in batches(simulation)[1:] if batch[0][0] != 0]

    assert list(dict.fromkeys(prefills)) == [2, 4, 1, 3]


def test_sglang_priorities_order_the_queue_before_its_policy() -> None:
    """Smaller first; among equals the longest output."""
    rows = [(1, 2, 0, 1), (1, 3, 0, 1), (1, 1, 0, 0)]
    text = "sglang:schedule_policy=lof,enable_priority_scheduling=true"
    simulation = run(text, instance_of(*rows, max_batch_requests=1))

    assert list(dict.fromkeys(simulation.schedule.request.tolist())) == [2, 1, 0]


@pytest.mark.parametrize(("policy", "victim"), [("length", 1), ("priority", 0)])
def test_sglang_retracts_by_length_or_by_priority(policy: str, victim: int) -> None:
    """r1 has generated less; r0 has the larger priority value."""
    instance = instance_of((2, 9, 0, 5), (3, 9, 1, 1), kv_blocks=17)
    simulation = run(f"sglang:retraction_policy={policy},schedule_conservativeness=0", instance)

    assert evictions(simulation)[0] == (8, victim)


def naive_ignore_eos(states: list[tuple[int, int]], free_tokens: int) -> bool:
    """Walk from end to end: at each the tokens to come of all alive leave more than one for each."""
    states = sorted(states)
    while states:
        left, occupied = states[0]
        if not free_tokens - left * len(states) > len(states):
            return False
        free_tokens += occupied
        states = states[1:]
    return True


@check
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=2, max_size=4), st.integers(0, 40))
def test_sglang_simulates_requests_that_ignore_the_end(sizes: list[tuple[int, int]], spare: int) -> None:
    """In one prefill batch at 0: as many are admitted as the walk to the end allows (the first always)."""
    kv_tokens = max(prompt + output - 1 for prompt, output in sizes) + spare
    simulation = run("sglang:ignore_eos=true", instance_of(*sizes, kv_blocks=kv_tokens))
    admitted = [sizes[0]]
    for prompt, output in sizes[1:]:
        free = kv_tokens - sum(size[0] for size in admitted) - prompt
        # One admitted in this batch still has all of its output to come.
        if not naive_ignore_eos([(size[1], size[0]) for size in [*admitted, (prompt, output)]], free):
            break
        admitted.append((prompt, output))

    assert len(batches(simulation)[0]) == len(admitted)


# TensorRT-LLM


def test_tensorrt_llm_prefill_first_runs_contexts_alone() -> None:
    """r1 comes when r0 decodes; the default has both in a batch."""
    rows = [(2, 3), (2, 2, 1)]
    default = batches(run("tensorrt-llm", instance_of(*rows)))
    alone = batches(run("tensorrt-llm:capacity_scheduler_policy=prefill_first", instance_of(*rows)))

    assert default[1] == [(0, 1), (1, 2)]
    assert alone[1:3] == [[(1, 2)], [(0, 1), (1, 1)]]


def test_tensorrt_llm_equal_progress_shares_the_budget() -> None:
    """Contexts of 8, 2 and 8 tokens and 8 a batch, in blocks of 2: 4 + 2 + 2, not 8."""
    rows = [(8, 1), (2, 1), (8, 1)]
    instance = instance_of(*rows, block_tokens=2, max_batch_tokens=8)
    text = "tensorrt-llm:context_chunking_policy=equal_progress"

    assert batches(run("tensorrt-llm", instance))[0] == [(0, 8)]
    assert batches(run(text, instance)) == [[(0, 4), (1, 2), (2, 2)], [(0, 4), (2, 4)], [(2, 2)]]


@pytest.mark.parametrize(("kv_blocks", "together"), [(12, 2), (11, 1)])
def test_tensorrt_llm_reserves_prompt_and_output(kv_blocks: int, together: int) -> None:
    """2 + 4 tokens each."""
    simulation = run("tensorrt-llm", instance_of(*[(2, 4)] * 2, kv_blocks=kv_blocks))

    assert len(batches(simulation)[0]) == together
    assert evictions(simulation) == []


def test_tensorrt_llm_serves_a_request_that_fills_the_device() -> None:
    """The reservation of 6 is at most the device of 5."""
    assert run("tensorrt-llm", instance_of((2, 4), kv_blocks=5)).schedule.num_batches == 4


def test_tensorrt_llm_max_utilization_pauses_the_last_started() -> None:
    """Nine tokens are full after two batches; r2 is paused for the next of r0 and r1, then r1 for r0's."""
    text = "tensorrt-llm:capacity_scheduler_policy=max_utilization"
    simulation = run(text, instance_of(*[(2, 4)] * 3, kv_blocks=9))

    assert evictions(simulation)[0] == (2, 2)
    assert batches(simulation)[2] == [(0, 1), (1, 1)]


def test_tensorrt_llm_max_utilization_pauses_a_later_one_for_a_paused_earlier_one() -> None:
    """Order is that of arrival, not of start: r1, paused for r0, comes back before r2 may go on."""
    text = "tensorrt-llm:capacity_scheduler_policy=max_utilization"
    simulation = run(text, instance_of((3, 4), (3, 4), (1, 9, 4), kv_blocks=9))
    last_of = {request: j for j, batch in enumerate(batches(simulation)) for request, _ in batch}

    assert last_of[0] < last_of[1] < last_of[2]


def test_tensorrt_llm_static_batch_admits_nobody_until_all_have_finished() -> None:
    """4 + 6 of 12 are the first group; r0 leaves and r2 still waits for r1."""
    instance = instance_of((2, 2), (2, 4), (2, 2), kv_blocks=12)
    static = run("tensorrt-llm:capacity_scheduler_policy=static_batch", instance)
    default = run("tensorrt-llm", instance)

    assert batches(static)[2:] == [[(1, 1)], [(1, 1)], [(2, 2)], [(2, 1)]]
    assert batches(default)[2:] == [[(1, 1), (2, 2)], [(1, 1), (2, 1)]]


def test_tensorrt_llm_static_group_is_served_whole_over_several_batches() -> None:
    """max_num_tokens admits one prompt a batch; r1 belongs to the group though r0 has finished before it."""
    text = "tensorrt-llm:capacity_scheduler_policy=static_batch,max_num_tokens=2"
    simulation = run(text, instance_of((2, 1), (2, 1), (2, 1), kv_blocks=6))

    assert batches(simulation) == [[(0, 2)], [(1, 2)], [(2, 2)]]


def test_tensorrt_llm_runs_generation_first_and_cuts_contexts_at_whole_blocks() -> None:
    """A token of r0 leaves 6 of 7: one block of 4."""
    instance = instance_of((4, 4), (11, 1, 1), block_tokens=4)
    simulation = run("tensorrt-llm:max_num_tokens=7", instance)

    assert batches(simulation) == [[(0, 4)], [(0, 1), (1, 4)], [(0, 1), (1, 4)], [(0, 1), (1, 3)]]


# LightLLM


@pytest.mark.parametrize(("kv_blocks", "together"), [(13, 2), (12, 1)])
def test_lightllm_admits_while_the_peak_is_below_the_capacity(kv_blocks: int, together: int) -> None:
    """Two new requests with a = 3 and b = 3 need 2 x 3 + 6 = 12, which must be less than the capacity."""
    simulation = run("lightllm", instance_of(*[(2, 4)] * 2, kv_blocks=kv_blocks))

    assert len(batches(simulation)[0]) == together


@pytest.mark.parametrize("wait", [1, 3])
def test_lightllm_prefills_after_so_many_decode_steps(wait: int) -> None:
    """r1 arrives during the first batch."""
    simulation = run(f"lightllm:router_max_wait_tokens={wait}", instance_of((1, 9), (1, 1, 1)))

    assert batches(simulation).index([(1, 1)]) == 1 + wait


def test_lightllm_pauses_the_newest_and_refills_it_first() -> None:
    """Not busy and without an assumed length it admits too much; r1 is paused, and goes before r2."""
    text = "lightllm:router_token_ratio=0.99,router_max_new_token_len=0"
    simulation = run(text, instance_of((3, 6), (3, 6), (3, 6), kv_blocks=11))
    order = [request for batch in batches(simulation) for request, _ in batch]

    assert evictions(simulation)[0][1] == 1
    assert order.index(2) > max(k for k, request in enumerate(order) if request == 0)


def test_lightllm_assumes_the_full_output_once_busy() -> None:
    """The same requests: with a device that is always busy no request is paused."""
    assert evictions(run("lightllm", instance_of((3, 6), (3, 6), (3, 6), kv_blocks=11))) == []


@pytest.mark.parametrize(("most", "together"), [(1, 1), (2, 2)])
def test_lightllm_runs_so_many_requests_at_most(most: int, together: int) -> None:
    """running_max_req_size."""
    simulation = run(f"lightllm:running_max_req_size={most}", instance_of((1, 1), (1, 1)))

    assert len(batches(simulation)[0]) == together


def test_whole_prompts_are_cut_only_if_no_batch_holds_them() -> None:
    """C = 8: r1 of 6 waits for a batch of its own, r2 of 9 is cut."""
    for text in ("lightllm", "tgi"):
        simulation = run(text, instance_of((5, 1), (6, 1), (9, 1), max_batch_tokens=8))

        assert batches(simulation) == [[(0, 5)], [(1, 6), (2, 2)], [(2, 7)]]


# TGI


@pytest.mark.parametrize(("limit", "together"), [(12, 2), (11, 1)])
def test_tgi_keeps_to_its_total_tokens(limit: int, together: int) -> None:
    """2 + 4 tokens each."""
    text = f"tgi:max_batch_total_tokens={limit}"

    assert len(batches(run(text, instance_of((2, 4), (2, 4))))[0]) == together


@pytest.mark.parametrize(("kv_blocks", "together"), [(10, 2), (9, 1)])
def test_tgi_reserves_input_and_output_less_one(kv_blocks: int, together: int) -> None:
    """5 tokens each, held from the first batch on."""
    simulation = run("tgi", instance_of(*[(2, 4)] * 2, kv_blocks=kv_blocks))

    assert simulation.held_blocks[0] == 5 * together


@pytest.mark.parametrize(("ratio", "first"), [(0.5, 1), (0.51, 4)])
def test_tgi_prefills_if_enough_wait_or_after_so_many_decode_steps(ratio: float, first: int) -> None:
    """One waits for two that run: enough at 0.5; else it waits for 3 decode steps."""
    text = f"tgi:waiting_served_ratio={ratio},max_waiting_tokens=3"
    simulation = run(text, instance_of((1, 9), (1, 9), (1, 1, 1)))

    assert batches(simulation).index([(2, 1)]) == first


@pytest.mark.parametrize(("budget", "first"), [(8, 1), (9, 2)])
def test_tgi_rounds_the_prefill_budget_up_to_whole_blocks(budget: int, first: int) -> None:
    """8 tokens are two blocks of 4, 9 are three: 5 + 6 fit into 12."""
    simulation = run(f"tgi:max_batch_prefill_tokens={budget}", instance_of((5, 1), (6, 1), block_tokens=4))

    assert len(batches(simulation)[0]) == first


def test_tgi_is_strict_at_the_head_of_the_queue() -> None:
    """r1 needs 9 of the 8 slots that r0 leaves; r2 would fit and waits behind it."""
    simulation = run("tgi", instance_of((2, 1, 0), (9, 1), (1, 1), kv_blocks=10))

    assert batches(simulation) == [[(0, 2)], [(1, 9), (2, 1)]]
