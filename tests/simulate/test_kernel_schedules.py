"""The compiled kernel makes exactly the clear engine's schedule, whatever the configuration."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.recording.cases import find_cases
from cspsched.recording.log import hash_of
from cspsched.recording.replay import simulated_rows
from cspsched.recording.setup import make_setup
from cspsched.simulate import simulate
from cspsched.simulate.kernel import Workload, layout, simulate_fast
from cspsched.simulate.kernel.cost import flatten_cost
from cspsched.simulate.kernel.each.rules import EachRules
from cspsched.simulate.kernel.jit import compiled
from cspsched.simulate.kernel.memory import new_kernel
from cspsched.simulate.kernel.running import loop_for
from cspsched.simulate.kernel.support import kernel_rules
from tests.support.kernel_cases import BY_REQUEST, SETTINGS, digest, disagreements, draw_case
from tests.support.places import DATA
from tests.support.strategies import EVERY_TERM, make_instance

EXAMPLES = int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "200"))
"""Configurations of each policy; a long run sets thousands."""
RECORDINGS = DATA / "vllm_conformance"


@pytest.mark.parametrize("name", [*SETTINGS, *BY_REQUEST])
def test_kernel_and_clear_engine_agree(name: str) -> None:
    """Compiled and plain: same schedule, blocks, queue, evictions by SHA-256, or the same error by word."""
    tried, differing = disagreements(name, range(EXAMPLES))

    assert differing == []
    assert tried > EXAMPLES // 2


@pytest.mark.parametrize("seed", [9, 40, 49, 85, 139])
def test_a_request_preempted_with_its_last_token_in_flight_loses_nothing(seed: int) -> None:
    """Decided ahead it happens: the policy tells of it, the schedule and the request do not."""
    case = draw_case("vllm async", seed)
    assert case is not None
    run = simulate_fast(*case)
    simulation = run.to_simulation()
    schedule = simulation.schedule
    evicted = set(zip(schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True))
    lossless = set(simulation.preempted) - evicted

    assert lossless
    assert run.num_preemptions.sum() == len(evicted)
    for batch, request in lossless:
        last = schedule.batch_of_entry[schedule.request == request].max()
        assert (last, schedule.end_ns[last]) == (batch - 1, run.finish_ns[request])


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded schedules are not at {RECORDINGS}")
@pytest.mark.parametrize("name", ["c03_pressure_noapc", "c06_pressure_async", "c08_pressure_priority"])
def test_the_kernel_reproduces_recorded_schedules_under_pressure(name: str) -> None:
    """Of the real vLLM V1, with and without asynchronous scheduling, by the recorded hash."""
    (case,) = (case for case in find_cases(RECORDINGS) if case.name == name)
    recording = case.read_recording()
    requests, config = case.read_requests(recording), case.read_config(recording)
    setup = make_setup(recording, str(recording.source), config, requests, name)
    rows = simulated_rows(setup.instance, simulate_fast(setup.instance, setup.policy).to_simulation())

    assert hash_of((row.sched, row.preempted) for row in rows) == case.entry["schedule_sha256"]


def busy_instance(count: int, kv_blocks: int) -> Instance:
    """Requests of a few hundred tokens that arrive faster than a small device serves them at times."""
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.exponential(60, count)).astype(int).tolist()
    prompts = rng.integers(1, 200, count).tolist()
    outputs = np.minimum(rng.geometric(0.03, count), 150).tolist()
    requests = tuple(
        Request(
            request_id=f"r{i}", arrival_ns=arrivals[i], prompt_tokens=prompts[i], output_tokens=outputs[i],
            priority=i % 3,
        )
        for i in range(count)
    )  # fmt: skip
    limits = Limits(
        kv_blocks=kv_blocks, block_tokens=16, max_batch_tokens=512, max_batch_requests=64, max_model_len=400
    )
    return Instance(requests=requests, limits=limits, cost=EVERY_TERM)


@pytest.mark.parametrize("seed", [436, 578, 245, 261, 491])
def test_niyama_ranks_evicted_prefills_anew_and_cuts_none_where_chunks_are_off(seed: int) -> None:
    """Rare among random configurations: of the first 700 two need the one, eight the other."""
    assert disagreements("niyama", range(seed, seed + 1)) == (1, [])


@pytest.mark.parametrize(
    ("text", "kv_blocks"),
    [
        ("vllm", 120),
        ("vllm:policy=priority", 120),
        ("vllm:long_prefill_token_threshold=100,max_num_batched_tokens=128", 120),
        ("vllm:max_num_batched_tokens=24,scheduler_reserve_full_isl=false", 50),
        ("sarathi:chunk=64", 120),
        ("vllm-v0", 120),
        ("mc-sf", 120),
        ("sorted-f", 120),
        ("vllm:num_lookahead_tokens=3", 120),
        ("vllm:async_scheduling=true", 120),
        ("vllm:async_scheduling=true,policy=priority", 120),
        ("vllm-v0:policy=priority", 120),
        ("vllm-v0:enable_chunked_prefill=true", 120),
        ("infermax:eviction=shortest", 120),
        ("sglang:schedule_conservativeness=0.3", 120),
        ("sjf", 120),
        ("srpt", 120),
        ("fastserve:quantum_ms=0.001", 120),
        ("niyama:ttft_limit_ms=0.05,tpot_limit_ms=0.001", 120),
        ("niyama:alpha=0", 60),
        ("tensorrt-llm:capacity_scheduler_policy=max_utilization", 120),
        ("tensorrt-llm:context_chunking_policy=equal_progress", 120),
        ("vidur-vllm", 120),
        ("vidur-sarathi", 120),
    ],
)
def test_hundreds_of_requests_under_pressure(text: str, kv_blocks: int) -> None:
    """Also over long runs, where lists are closed up and logs grow."""
    instance, policy = busy_instance(400, kv_blocks), make_policy(text)
    clear = simulate(instance, policy)

    assert digest(simulate_fast(instance, policy).to_simulation()) == digest(clear)
    assert clear.schedule.num_batches > 500
    assert (
        clear.schedule.num_preemptions > 10
        or text.startswith(("mc-sf", "sorted-f", "sglang"))
        or "equal_progress" in text
    )


@pytest.mark.parametrize("kv_blocks", [130, 400, 4000])
@pytest.mark.parametrize(
    "text",
    [
        "vllm:num_lookahead_tokens=3,policy=priority",
        "vllm:async_scheduling=true,long_prefill_token_threshold=60",
        "vllm:prefill_schedule_interval=3",
        "vllm-v0:delay_factor=0.5",
        "vllm-v0:policy=priority",
        "vllm-v0:enable_chunked_prefill=true",
        "sarathi:enable_dynamic_chunking_schedule=true,low_chunk_size=32,high_chunk_size=200,"
        "chunk_schedule_max_tokens=150,chunk_schedule_stages=3",
        "infermax:eviction=histogram",
        "infermax:priority=prefill",
        "tensorrt-llm:capacity_scheduler_policy=static_batch",
        "tensorrt-llm:capacity_scheduler_policy=max_utilization",
        "tensorrt-llm:context_chunking_policy=equal_progress",
        "tgi:max_batch_total_tokens=3000",
        "lightllm:router_token_ratio=0.5",
        "sglang",
        "sglang:enable_mixed_chunk=true",
        "sglang:enable_priority_scheduling=true,priority_scheduling_preemption_threshold=0",
        "vtc:output_price=0.1",
        "vidur-vllm",
        "vidur-sarathi:chunk_size=100",
        "vidur-orca:max_batch_size=40",
        "vidur-faster-transformer:max_batch_size=40",
    ],
)
def test_decodes_in_lockstep_make_the_same_schedule(text: str, kv_blocks: int) -> None:
    """Over long runs with little memory, with enough at most times, and with more than enough."""
    instance, policy = busy_instance(300, kv_blocks), make_policy(text)
    clients = tuple(replace(request, client_id="abc"[i % 3]) for i, request in enumerate(instance.requests))
    instance = replace(instance, requests=clients)

    assert digest(simulate_fast(instance, policy).to_simulation()) == digest(simulate(instance, policy))


def test_retractions_by_priority_are_the_same() -> None:
    """By place and by memory, with mixed chunks and without: more than two on average in each of 40 runs."""
    num_retracted = 0
    for seed in range(40):
        rng = random.Random(seed)
        count, mixes = rng.choice([10, 40]), rng.choice(["true", "false"])
        instance = make_instance(
            *((rng.randint(1, 30), rng.randint(1, 40)) for _ in range(count)),
            arrivals_ns=[rng.randint(0, 20 * count) for _ in range(count)],
            kv_blocks=rng.choice([20, 60]), block_tokens=4, max_batch_tokens=64,
        )  # fmt: skip
        requests = tuple(replace(request, priority=rng.randint(0, 9)) for request in instance.requests)
        policy = make_policy(
            "sglang:enable_priority_scheduling=true,schedule_conservativeness=0.3,enable_mixed_chunk="
            f"{mixes},max_running_requests={rng.randint(1, 6)},"
            f"priority_scheduling_preemption_threshold={rng.randint(0, 4)}"
        )
        clear = simulate(replace(instance, requests=requests), policy)
        fast = simulate_fast(replace(instance, requests=requests), policy)
        assert digest(fast.to_simulation()) == digest(clear)
        num_retracted += len(clear.preempted)

    assert num_retracted >= 100


@pytest.mark.parametrize("text", ["sjf", "vllm:num_lookahead_tokens=1", "vidur-sarathi"])
def test_with_memory_enough_decodes_stay_in_lockstep(text: str) -> None:
    """No step looks at single decodes: each joins once, numbered one after the other."""
    instance, policy = busy_instance(300, 4000), make_policy(text)
    rules = kernel_rules(instance, policy)
    assert isinstance(rules, EachRules)
    workload = Workload.from_instance(instance)
    prices = flatten_cost(instance.cost, rules, workload.largest_peak)
    assert prices is not None
    kernel = new_kernel(workload, rules, prices)

    assert compiled(loop_for(rules))(kernel) == layout.FINISHED
    assert kernel.now.is_locked
    runs = kernel.spans[: kernel.now.span_row]
    runs = runs[runs[:, layout.KIND] == layout.RUN_SPAN]
    assert len(runs) == (workload.output_tokens > 1).sum()
    assert sorted(runs[:, layout.SPAN_NUMBER]) == sorted(set(runs[:, layout.SPAN_NUMBER]))


@pytest.mark.parametrize(
    "text",
    [
        "vllm:enable_prefix_caching=true",
        "vllm-v0:enable_chunked_prefill=true,max_num_partial_prefills=2",
        "vllm-v0:emulate_bugs=true",
        "sarathi:emulate_bugs=true",
        "sglang:ignore_eos=true",
        "sglang:schedule_policy=random",
        "sglang:retraction_policy=priority",
        "vidur-vllm:emulate_bugs=true",
        "vidur-vllm:num_pipeline_stages=2",
    ],
)
def test_what_the_kernel_does_not_know_is_left_to_the_clear_engine(text: str) -> None:
    """Rules are given only where they say everything."""
    assert kernel_rules(busy_instance(1, 120), make_policy(text)) is None
