"""Schedules recorded from the real vLLM (V1 and V0) and sarathi-serve are reproduced, batch by batch."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.referee import find_violations
from cspsched.problem.request import Request
from cspsched.simulate import Policy, Simulation, simulate
from cspsched.units import NS_PER_S, seconds_to_ns

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "vllm_conformance"
VLLM_CASES = (
    "c01_ample_memory", "c03_pressure_noapc", "c08_pressure_priority", "c09_long_chunk512",
    "t01_tiny_mem16", "t03_tiny5_mem20", "t05_tiny5_prio",
)  # fmt: skip
"""Recorded cases without preemption, or with the prefix cache off: there the cache changes nothing."""
V0_CASES = ("v0/v01_chat_default", "v0/v02_press_recompute")
"""All but the one with preemption by swap."""
SARATHI_CASES = (
    "sarathi/s01_chat_faster_transformer", "sarathi/s01_chat_sarathi", "sarathi/s01_chat_simple_chunking",
    "sarathi/s02_press_sarathi", "sarathi/s03_long_orca", "sarathi/s04_tiny_faster_transformer",
    "sarathi/s04_tiny_orca", "sarathi/s04_tiny_sarathi", "sarathi/s04_tiny_simple_chunking",
    "sarathi/s04_tiny_vllm",
)  # fmt: skip
SARATHI_NAMES = {
    "faster_transformer": "faster-transformer",
    "orca": "orca",
    "sarathi": "sarathi",
    "simple_chunking": "simple-chunking",
    "vllm": "sarathi-vllm",
}
"""Policy of each scheduler of sarathi-serve."""
NOT_SIMULATED = {
    "c06_pressure_async": "asynchronous scheduling",
    "c17_shared_prefix": "prefix caching",
    "v0/v03_press_swap": "preemption by swap",
}
"""Recorded cases, and what they need that is not there yet."""

pytestmark = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"the recorded schedules are not at {RECORDINGS}"
)


def recorded_cost(coefficients: dict[str, float]) -> CostModel:
    """The recorded a + b * tokens + c * (computed before + scheduled), exactly, in nanoseconds."""
    step, per_token, per_kv = (Fraction(str(coefficients[key])) * NS_PER_S for key in "abc")
    read = PiecewiseLinear.linear(per_kv)
    return CostModel(
        name="recorded",
        step=step,
        tokens=PiecewiseLinear.linear(per_token + per_kv),
        prefill_context=read,
        decode_context=read,
    )


def recorded_requests(path: Path) -> tuple[Request, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            Request(
                request_id=row["request_id"],
                arrival_ns=seconds_to_ns(row["arrival"]),
                prompt_tokens=int(row["prompt_tokens"]),
                output_tokens=int(row["output_tokens"]),
                priority=int(row["priority"] or 0),
            )
            for row in csv.DictReader(file)
        )


def recorded_instance(case: str, config: dict[str, Any], trace: str) -> Instance:
    is_vllm = case in VLLM_CASES
    limits = Limits(
        kv_blocks=config["num_kv_blocks"] - is_vllm,  # vLLM V1 counts its null block
        block_tokens=config.get("block_size", 16),
        max_batch_tokens=config["max_num_batched_tokens"] if is_vllm else 1_000_000,
        max_batch_requests=config["max_num_seqs"],
        max_model_len=config.get("max_model_len"),
    )
    requests = recorded_requests(RECORDINGS / trace)
    return Instance(requests=requests, limits=limits, cost=recorded_cost(config["cost"]))


def recorded_policy(case: str, config: dict[str, Any]) -> Policy:
    if case in VLLM_CASES:
        return make_policy(f"vllm:policy={config.get('policy', 'fcfs')}")
    if case in V0_CASES:
        names = ("max_num_seqs", "max_num_batched_tokens")
        return make_policy("vllm-v0:" + ",".join(f"{name}={config[name]}" for name in names))
    names = ("max_num_seqs", "chunk_size") if "chunk_size" in config else ("max_num_seqs",)
    settings = ",".join(f"{name}={config[name]}" for name in names)
    return make_policy(f"{SARATHI_NAMES[config['scheduler']]}:{settings}")


def read_recording(case: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Configuration, log lines of the iterations, entry of the manifest."""
    config = json.loads((RECORDINGS / f"{case}.config.json").read_text(encoding="utf-8"))
    with gzip.open(RECORDINGS / f"{case}.log.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    manifest = json.loads((RECORDINGS / "manifest.json").read_text(encoding="utf-8"))
    return config, [line for line in lines if "sched" in line], manifest[case]


def iterations(instance: Instance, simulation: Simulation) -> Iterator[dict[str, Any]]:
    """What the simulation did, in the words of the recording."""
    schedule = simulation.schedule
    names = [request.request_id for request in instance.requests]
    before = schedule.kv_tokens - schedule.tokens
    for j in range(schedule.num_batches):
        entries = slice(int(schedule.first_entry[j]), int(schedule.first_entry[j + 1]))
        columns = (schedule.request[entries], schedule.tokens[entries], before[entries])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        evicted = schedule.evicted_request[schedule.evicted_batch == j]
        yield {
            "sched": [[names[i], tokens, kv] for i, tokens, kv in rows],
            "preempted": [names[i] for i in evicted.tolist()],
            "kv_used": int(simulation.held_blocks[j]),
            "waiting": int(simulation.num_waiting[j]),
            "t_start": int(schedule.start_ns[j]),
            "t_end": int(schedule.end_ns[j]),
        }


def recorded_iteration(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "sched": line["sched"],
        "preempted": [item if isinstance(item, str) else item[0] for item in line["preempted"]],
        "kv_used": line["kv_used"],
        "waiting": line["waiting"],
        "t_start": seconds_to_ns(line["t_start"]),
        "t_end": seconds_to_ns(line["t_end"]),
    }


def canonical_line(iteration: dict[str, Any]) -> str:
    scheduled = ";".join(f"{name}:{tokens}@{before}" for name, tokens, before in iteration["sched"])
    return f"{scheduled}|{','.join(iteration['preempted'])}\n"


@pytest.mark.parametrize("case", [*VLLM_CASES, *V0_CASES, *SARATHI_CASES])
def test_recorded_schedule_is_reproduced(case: str) -> None:
    """Tokens, order, preemptions, blocks, queue and times of every iteration, and the recorded hash."""
    config, lines, entry = read_recording(case)
    instance = recorded_instance(case, config, entry["trace"])
    simulation = simulate(instance, recorded_policy(case, config))
    ours = list(iterations(instance, simulation))

    for j, (iteration, line) in enumerate(zip(ours, lines, strict=False)):
        assert recorded_iteration(line) == iteration, f"iteration {j}"
    assert len(lines) == len(ours)
    digest = hashlib.sha256("".join(map(canonical_line, ours)).encode()).hexdigest()
    assert entry["schedule_sha256"] == digest
    assert entry["kv_peak"] == int(np.max(simulation.held_blocks))
    assert find_violations(instance, simulation.schedule) == []


def test_every_recording_is_replayed_or_says_what_it_lacks() -> None:
    """No recorded case is passed over in silence."""
    manifest = json.loads((RECORDINGS / "manifest.json").read_text(encoding="utf-8"))

    assert sorted(manifest) == sorted([*VLLM_CASES, *V0_CASES, *SARATHI_CASES, *NOT_SIMULATED])
