"""The compiled kernel makes exactly the clear engine's schedule, whatever the configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate import simulate
from cspsched.simulate.kernel import simulate_fast
from cspsched.simulate.kernel.api import kernel_rules
from tests.kernel_cases import BY_REQUEST, SETTINGS, digest, disagreements
from tests.strategies import EVERY_TERM

EXAMPLES = int(os.environ.get("CSPSCHED_ORACLE_EXAMPLES", "200"))
"""Configurations of each policy; a long run sets thousands."""
ROOT = Path(__file__).parents[1]
UNCOMPILED = """
from numba import config
from tests.kernel_cases import BY_REQUEST, SETTINGS, disagreements
assert config.DISABLE_JIT
results = [disagreements(name, range(1000, 1015)) for name in SETTINGS]
results += [disagreements(name, range(1000, 1008)) for name in BY_REQUEST]
assert sum(tried for tried, _ in results) > 200, results
assert not any(differing for _, differing in results), results
"""


@pytest.mark.parametrize("name", [*SETTINGS, *BY_REQUEST])
def test_kernel_and_clear_engine_agree(name: str) -> None:
    """Same schedule, blocks, queue and evictions by SHA-256, or the same error word by word."""
    tried, differing = disagreements(name, range(EXAMPLES))

    assert differing == []
    assert tried > EXAMPLES // 2


def test_the_source_runs_uncompiled() -> None:
    """With NUMBA_DISABLE_JIT=1 the same source gives the same schedules."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", UNCOMPILED],
        cwd=ROOT, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True, timeout=300,
    )  # fmt: skip


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
        ("vllm:num_lookahead_tokens=3", 120),
        ("vllm-v0:policy=priority", 120),
        ("vllm-v0:enable_chunked_prefill=true", 120),
        ("infermax:eviction=shortest", 120),
        ("sglang:schedule_conservativeness=0.3", 120),
        ("sjf", 120),
        ("srpt", 120),
        ("fastserve:quantum_ms=0.001", 120),
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
    assert clear.schedule.num_preemptions > 10 or text.startswith(("mc-sf", "sglang"))


@pytest.mark.parametrize(
    "text",
    [
        "vllm:async_scheduling=true",
        "vllm:enable_prefix_caching=true",
        "vllm-v0:enable_chunked_prefill=true,max_num_partial_prefills=2",
        "vllm-v0:emulate_bugs=true",
        "sarathi:emulate_bugs=true",
        "tensorrt-llm:capacity_scheduler_policy=max_utilization",
        "tensorrt-llm:context_chunking_policy=equal_progress",
        "sglang:ignore_eos=true",
        "sglang:schedule_policy=random",
        "sglang:enable_priority_scheduling=true",
        "sorted-f",
        "niyama",
        "vidur-vllm:emulate_bugs=true",
        "vidur-vllm:num_pipeline_stages=2",
    ],
)
def test_what_the_kernel_does_not_know_is_left_to_the_clear_engine(text: str) -> None:
    """Rules are given only where they say everything."""
    assert kernel_rules(busy_instance(1, 120), make_policy(text)) is None
