"""Plain and compiled the kernel makes the same schedule, and the one that is recorded in `golden_runs.json`.

The digests were made by the step engine that the kernel replaced, which had its own text of each policy. They
change only where a policy is meant to: set CSPSCHED_REFRESH_GOLDEN=1, and say why in the changelog.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cspsched.compiled.jit import compiled
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.recording.cases import find_cases
from cspsched.recording.log import hash_of
from cspsched.recording.replay import simulated_rows
from cspsched.recording.setup import make_setup
from cspsched.simulate import Policy, simulate_fast
from cspsched.simulate.kernel import Workload, layout
from cspsched.simulate.kernel.cost import flatten_cost
from cspsched.simulate.kernel.memory import new_kernel
from cspsched.simulate.kernel.support import kernel_rules
from tests.support.kernel_cases import (
    BY_REQUEST,
    IN_LOCKSTEP,
    PRESSED,
    REST,
    SETTINGS,
    busy_instance,
    digest,
    draw_case,
    outcome,
    short,
)
from tests.support.places import DATA
from tests.support.strategies import make_instance

EXAMPLES = int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "60"))
"""Configurations of each policy, of which the first 60 are recorded; a long run sets thousands."""
GOLDEN = Path(__file__).with_name("golden_runs.json")
REFRESHES = bool(os.environ.get("CSPSCHED_REFRESH_GOLDEN"))
RECORDINGS = DATA / "vllm_conformance"


def require_golden(name: str, found: list[str]) -> None:
    """Compare outcomes with the recorded ones of that name, or record them if that is asked for."""
    golden = json.loads(GOLDEN.read_text())
    if REFRESHES:
        GOLDEN.write_text(json.dumps(golden | {name: " ".join(found[:60])}, indent=1) + "\n")
        return
    recorded = golden[name].split()

    assert [k for k, (one, other) in enumerate(zip(recorded, found, strict=False)) if one != other] == []


def both_ways(instance: Instance, policy: Policy) -> str:
    """The outcome of a run, which is the same plain and compiled."""
    plain = outcome(lambda: simulate_fast(instance, policy, plain=True).to_simulation())

    assert plain == outcome(lambda: simulate_fast(instance, policy).to_simulation())
    return short(plain)


@pytest.mark.parametrize("name", [*SETTINGS, *BY_REQUEST, *REST])
def test_runs_are_as_recorded_plain_and_compiled(name: str) -> None:
    """Same schedule, blocks, queue, evictions by SHA-256, or the same error by word."""
    cases = [draw_case(name, seed) for seed in range(EXAMPLES)]

    require_golden(name, ["-" if case is None else both_ways(*case) for case in cases])


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


@pytest.mark.parametrize("seed", [436, 578, 245, 261, 491])
def test_niyama_ranks_evicted_prefills_anew_and_cuts_none_where_chunks_are_off(seed: int) -> None:
    """Rare among random configurations: of the first 700 two need the one, eight the other."""
    case = draw_case("niyama", seed)

    assert case is not None
    require_golden(f"niyama {seed}", [both_ways(*case)])


@pytest.mark.parametrize(("text", "kv_blocks"), PRESSED)
def test_hundreds_of_requests_under_pressure(text: str, kv_blocks: int) -> None:
    """Also over long runs, where lists are closed up and logs grow."""
    instance, policy = busy_instance(400, kv_blocks), make_policy(text)
    schedule = simulate_fast(instance, policy).to_simulation().schedule

    require_golden(f"busy 400 {kv_blocks} {text}", [both_ways(instance, policy)])
    assert schedule.num_batches > 500
    assert (
        schedule.num_preemptions > 10
        or text.startswith(("mc-sf", "sorted-f", "sglang"))
        or "equal_progress" in text
    )


@pytest.mark.parametrize("kv_blocks", [130, 400, 4000])
@pytest.mark.parametrize("text", IN_LOCKSTEP)
def test_decodes_in_lockstep_make_the_same_schedule(text: str, kv_blocks: int) -> None:
    """Over long runs with little memory, with enough at most times, and with more than enough."""
    name = f"busy 300 {kv_blocks} {text}"

    require_golden(name, [both_ways(busy_instance(300, kv_blocks), make_policy(text))])


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
        plain = simulate_fast(replace(instance, requests=requests), policy, plain=True).to_simulation()
        fast = simulate_fast(replace(instance, requests=requests), policy)
        assert digest(fast.to_simulation()) == digest(plain)
        num_retracted += len(plain.preempted)

    assert num_retracted >= 100


@pytest.mark.parametrize("text", ["sjf", "vllm:num_lookahead_tokens=1", "vidur-sarathi"])
def test_with_memory_enough_decodes_stay_in_lockstep(text: str) -> None:
    """No step looks at single decodes: each joins once, numbered one after the other."""
    instance, policy = busy_instance(300, 4000), make_policy(text)
    rules = kernel_rules(instance, policy)
    assert rules is not None
    workload = Workload.from_instance(instance)
    prices = flatten_cost(instance.cost, rules, workload.largest_peak)
    assert prices is not None
    kernel = new_kernel(workload, rules, prices)

    assert compiled(rules.run, CACHES=rules.caches_prefixes)(kernel) == layout.FINISHED
    assert kernel.now.is_locked
    runs = kernel.spans[: kernel.now.span_row]
    runs = runs[runs[:, layout.KIND] == layout.RUN_SPAN]
    assert len(runs) == (workload.output_tokens > 1).sum()
    assert sorted(runs[:, layout.SPAN_NUMBER]) == sorted(set(runs[:, layout.SPAN_NUMBER]))
