"""Random configurations for the compiled kernel: tight memory, tight budgets, every policy that it knows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from cspsched.errors import CspschedError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import Request
from cspsched.simulate import Policy, Simulation
from tests.support.strategies import EVERY_TERM

Settings = dict[str, Any]


def _vllm(rng: random.Random) -> Settings:
    order = rng.choice(["fcfs", "fcfs", "priority"])
    return {
        "max_num_seqs": rng.choice([None, rng.randint(1, 8)]),
        "max_num_batched_tokens": rng.choice([None, rng.randint(1, 40)]),
        "long_prefill_token_threshold": rng.choice([0, 0, 1, 3, 8]) if order == "fcfs" else 0,
        "scheduler_reserve_full_isl": rng.random() < 0.5,
        "watermark": rng.choice([0.0, 0.0, 0.1, 0.3]),
        "policy": order,
        "enable_chunked_prefill": rng.choice([None, None, False]),
    }


def _sarathi(rng: random.Random) -> Settings:
    return {"chunk": rng.randint(1, 40), **_family(rng)}


def _family(rng: random.Random) -> Settings:
    return {"max_num_seqs": rng.randint(1, 8), "watermark": rng.choice([0.0, 0.01, 0.3])}


def _sarathi_vllm(rng: random.Random) -> Settings:
    return {"max_batched_tokens": rng.choice([None, rng.randint(10, 60)]), **_family(rng)}


def _vllm_v0(rng: random.Random) -> Settings:
    return {"max_num_batched_tokens": rng.choice([None, rng.randint(10, 60)]), **_family(rng)}


def _orca(rng: random.Random) -> Settings:
    return {"max_num_seqs": rng.randint(1, 8), "reservation": rng.choice(["max", "pow2", "oracle"])}


def _faster_transformer(rng: random.Random) -> Settings:
    return {"max_num_seqs": rng.randint(1, 8)}


def _simple_chunking(rng: random.Random) -> Settings:
    return {"chunk_size": rng.randint(1, 40), **_family(rng)}


def _infermax(rng: random.Random) -> Settings:
    priority = rng.choice(["decode", "prefill"])
    return {
        "priority": priority,
        "hybrid": priority == "decode" and rng.random() < 0.7,
        "chunked_prefill": rng.choice([None, False]),
        "reservation": rng.random() < 0.3,
    }


def _tensorrt_llm(rng: random.Random) -> Settings:
    return {
        "max_num_tokens": rng.randint(1, 60),
        "max_batch_size": rng.randint(1, 8),
        "enable_chunked_prefill": rng.choice([None, False]),
    }


def _tgi(rng: random.Random) -> Settings:
    return {
        "max_batch_prefill_tokens": rng.choice([None, rng.randint(1, 40)]),
        "max_batch_size": rng.choice([None, rng.randint(1, 8)]),
        "waiting_served_ratio": rng.choice([0.3, 0.0, 1.2]),
        "max_waiting_tokens": rng.choice([20, 0, 2]),
    }


def _lightllm(rng: random.Random) -> Settings:
    return {
        "running_max_req_size": rng.randint(1, 8),
        "batch_max_tokens": rng.choice([None, rng.randint(1, 40)]),
        "router_max_wait_tokens": rng.choice([1, 0, 4]),
    }


def _none(rng: random.Random) -> Settings:
    return {}


def _vllm_by_request(rng: random.Random) -> Settings:
    return {
        **_vllm(rng),
        "policy": rng.choice(["fcfs", "priority"]),
        "long_prefill_token_threshold": rng.choice([0, 1, 3, 8]),
        "long_prefill_token_threshold_adaptive": rng.random() < 0.4,
        "prefill_schedule_interval": rng.choice([1, 1, 2, 5]),
        "num_lookahead_tokens": rng.choice([0, 0, 1, 5]),
        "max_num_active_seqs": rng.choice([None, 2, 5]),
    }


def _vllm_async(rng: random.Random) -> Settings:
    settings = _vllm_by_request(rng) if rng.random() < 0.5 else _vllm(rng)
    return {**settings, "async_scheduling": True}


def _vllm_v0_by_request(rng: random.Random) -> Settings:
    settings = {**_vllm_v0(rng), "enable_chunked_prefill": rng.random() < 0.4}
    if not settings["enable_chunked_prefill"]:
        settings["delay_factor"] = rng.choice([0.0, 0.5, 2.0])
        settings["policy"] = rng.choice(["fcfs", "priority"])
    return settings


def _sarathi_dynamic(rng: random.Random) -> Settings:
    return {
        "enable_dynamic_chunking_schedule": True,
        "low_chunk_size": rng.randint(1, 8),
        "high_chunk_size": rng.randint(8, 40),
        "chunk_schedule_max_tokens": rng.randint(4, 40),
        "chunk_schedule_stages": rng.randint(2, 4),
        **_family(rng),
    }


def _infermax_by_request(rng: random.Random) -> Settings:
    return {
        **_infermax(rng),
        "hybrid": rng.random() < 0.6,
        "eviction": rng.choice(["newest", "shortest", "histogram"]),
        "histogram_threshold": rng.choice([0, 5]),
    }


def _static_batch(rng: random.Random) -> Settings:
    return {**_tensorrt_llm(rng), "capacity_scheduler_policy": "static_batch"}


def _max_utilization(rng: random.Random) -> Settings:
    return {**_tensorrt_llm(rng), "capacity_scheduler_policy": "max_utilization"}


def _equal_progress(rng: random.Random) -> Settings:
    return {**_tensorrt_llm(rng), "context_chunking_policy": "equal_progress"}


def _niyama(rng: random.Random) -> Settings:
    return {
        "ttft_limit_ms": rng.choice([1e-5, 1e-4, 3e-4, 1e-3, 2000.0]),
        "tpot_limit_ms": rng.choice([1e-5, 3e-5, 1e-4, 100.0]),
        "alpha": rng.choice([0.0, 0.3, 1.0, 8.0]),
        "relegation": rng.random() < 0.7,
    }


def _tgi_total(rng: random.Random) -> Settings:
    return {**_tgi(rng), "max_batch_total_tokens": rng.choice([40, 100, 200])}


def _lightllm_ratio(rng: random.Random) -> Settings:
    return {
        **_lightllm(rng),
        "router_token_ratio": rng.choice([0.2, 0.5, 0.9]),
        "router_max_new_token_len": rng.choice([0, 4, 30]),
    }


def _sglang(rng: random.Random) -> Settings:
    return {
        "chunked_prefill_size": rng.choice([-1, 8, 20, 64]),
        "max_prefill_tokens": rng.choice([8, 30, 100]),
        "max_running_requests": rng.choice([None, 3, 8]),
        "schedule_conservativeness": rng.choice([0.3, 1.0, 1.4]),
        "schedule_policy": rng.choice(["fcfs", "lof", "shortest-prefill-first", "lpm"]),
        "enable_mixed_chunk": rng.random() < 0.4,
        "prefill_decode_interval": rng.choice([None, None, 2]),
    }


def _sglang_priority(rng: random.Random) -> Settings:
    return {
        **_sglang(rng),
        "enable_priority_scheduling": True,
        "priority_scheduling_preemption_threshold": rng.choice([0, 0, 1]),
        "max_running_requests": rng.choice([None, 1, 2, 3, 8]),
    }


def _vtc(rng: random.Random) -> Settings:
    prices = {"input_price": rng.choice([1.0, 0.3]), "output_price": rng.choice([2.0, 0.1])}
    return {**_lightllm(rng), **prices}


def _trail(rng: random.Random) -> Settings:
    return {"c": rng.choice([0.0, 0.5, 0.8])}


def _fastserve(rng: random.Random) -> Settings:
    return {
        "quantum_ms": rng.choice([1e-5, 1e-4, 1e-3]),
        "starvation_threshold_ms": rng.choice([1e-4, 1e-3]),
        "starvation_period": rng.choice([3, 10, 1000]),
        "max_batch_size": rng.choice([None, 3, 8]),
        "max_tokens_per_batch": rng.choice([None, 20]),
    }


def _vidur(rng: random.Random) -> Settings:
    return {"batch_size_cap": rng.randint(1, 8), "watermark_blocks_fraction": rng.choice([0.0, 0.01, 0.3])}


def _vidur_vllm(rng: random.Random) -> Settings:
    return {"max_tokens_in_batch": rng.choice([10, 40, 200]), **_vidur(rng)}


def _vidur_sarathi(rng: random.Random) -> Settings:
    return {"chunk_size": rng.choice([3, 10, 40]), **_vidur(rng)}


def _vidur_reserving(rng: random.Random) -> Settings:
    return {"batch_size_cap": rng.randint(1, 8), "max_batch_size": rng.choice([None, 1, 3, 8])}


def _sorted_f(rng: random.Random) -> Settings:
    return {"exact_requests": rng.choice([0, 3, 10])}


SETTINGS: dict[str, Callable[[random.Random], Settings]] = {
    "vllm": _vllm,
    "sarathi": _sarathi,
    "sarathi-vllm": _sarathi_vllm,
    "vllm-v0": _vllm_v0,
    "orca": _orca,
    "faster-transformer": _faster_transformer,
    "simple-chunking": _simple_chunking,
    "infermax": _infermax,
    "tensorrt-llm": _tensorrt_llm,
    "tgi": _tgi,
    "lightllm": _lightllm,
    "mc-sf": _none,
    "smallest-volume": _none,
    "sorted-f": _sorted_f,
}
"""Settings of every policy that the kernel runs on aggregated state, drawn so that it knows them."""

BY_REQUEST: dict[str, Callable[[random.Random], Settings]] = {
    "vllm by request": _vllm_by_request,
    "vllm async": _vllm_async,
    "vllm-v0 by request": _vllm_v0_by_request,
    "sarathi dynamic": _sarathi_dynamic,
    "infermax by request": _infermax_by_request,
    "tensorrt-llm static": _static_batch,
    "tensorrt-llm max utilization": _max_utilization,
    "tensorrt-llm equal progress": _equal_progress,
    "tgi total": _tgi_total,
    "lightllm ratio": _lightllm_ratio,
    "sglang": _sglang,
    "sglang priority": _sglang_priority,
    "vtc": _vtc,
    "sjf": _none,
    "srpt": _none,
    "trail": _trail,
    "fastserve": _fastserve,
    "niyama": _niyama,
    "vidur-vllm": _vidur_vllm,
    "vidur-sarathi": _vidur_sarathi,
    "vidur-orca": _vidur_reserving,
    "vidur-faster-transformer": _vidur_reserving,
}
"""Settings of every policy that the kernel runs by visiting every request; the name is the first word."""


def _vllm_prefix(rng: random.Random) -> Settings:
    settings = _vllm_by_request(rng) if rng.random() < 0.5 else _vllm(rng)
    return {**settings, "async_scheduling": rng.random() < 0.3, "enable_prefix_caching": True}


def _vllm_v0_swap(rng: random.Random) -> Settings:
    settings = {**_vllm_v0_by_request(rng), "preemption_mode": "swap"}
    return settings | {"policy": "fcfs"} if rng.random() < 0.5 else settings


def _vllm_v0_partial(rng: random.Random) -> Settings:
    return {
        **_vllm_v0(rng),
        "enable_chunked_prefill": True,
        "max_num_partial_prefills": rng.choice([2, 3]),
        "max_long_partial_prefills": rng.choice([1, 2]),
        "long_prefill_token_threshold": rng.choice([0, 4, 10]),
        "preemption_mode": rng.choice(["recompute", "recompute", "swap"]),
    }


def _with_bugs(draw: Callable[[random.Random], Settings]) -> Callable[[random.Random], Settings]:
    return lambda rng: {**draw(rng), "emulate_bugs": True}


def _with_stages(draw: Callable[[random.Random], Settings]) -> Callable[[random.Random], Settings]:
    def settings(rng: random.Random) -> Settings:
        stages = rng.choice([1, 2, 3, 4])
        return {**draw(rng), "num_pipeline_stages": stages, "emulate_bugs": rng.random() < 0.5}

    return settings


def _sglang_rest(rng: random.Random) -> Settings:
    settings = _sglang_priority(rng) if rng.random() < 0.5 else _sglang(rng)
    return {
        **settings,
        "ignore_eos": rng.random() < 0.5,
        "retraction_policy": rng.choice(["length", "priority"]),
        "schedule_policy": rng.choice([settings["schedule_policy"], "random"]),
        "random_seed": rng.randint(0, 5),
    }


def _predicting(draw: Callable[[random.Random], Settings]) -> Callable[[random.Random], Settings]:
    def predicting(rng: random.Random) -> Settings:
        noise = {"prediction_sigma": rng.choice([0.0, 0.3, 2.0]), "prediction_seed": rng.randint(0, 5)}
        return draw(rng) | rng.choice([{"prediction": "column"}, {"prediction": "noisy", **noise}])

    return predicting


def _orca_declared(rng: random.Random) -> Settings:
    return {**_orca(rng), "reservation": "declared"}


TOLD: dict[str, Callable[[random.Random], Settings]] = {
    "orca told": _orca_declared,
    "infermax told": _infermax_by_request,
    "tensorrt-llm told": _tensorrt_llm,
    "tensorrt-llm told static": _static_batch,
    "tensorrt-llm told equal progress": _equal_progress,
    "tgi told": _tgi,
    "tgi told total": _tgi_total,
    "lightllm told": _lightllm,
    "lightllm told ratio": _lightllm_ratio,
    "sglang told": _sglang_rest,
    "vtc told": _vtc,
    "mc-sf told": _predicting(_none),
    "smallest-volume told": _predicting(_none),
    "sorted-f told": _predicting(_sorted_f),
    "sjf told": _predicting(_none),
    "srpt told": _predicting(_none),
    "trail told": _predicting(_trail),
}
"""Settings of every policy that goes by what requests declare or what is predicted of them."""


REST: dict[str, Callable[[random.Random], Settings]] = {
    **TOLD,
    "vllm prefix": _vllm_prefix,
    "vllm-v0 swap": _vllm_v0_swap,
    "vllm-v0 partial": _vllm_v0_partial,
    "vllm-v0 bugs": _with_bugs(_vllm_v0_by_request),
    "sarathi bugs": _with_bugs(_sarathi),
    "sarathi dynamic bugs": _with_bugs(_sarathi_dynamic),
    "sarathi-vllm bugs": _with_bugs(_sarathi_vllm),
    "simple-chunking bugs": _with_bugs(_simple_chunking),
    "sglang rest": _sglang_rest,
    "fastserve swap": _fastserve,
    "vidur-vllm stages": _with_stages(_vidur_vllm),
    "vidur-sarathi stages": _with_stages(_vidur_sarathi),
    "vidur-orca stages": _with_stages(_vidur_reserving),
    "vidur-faster-transformer stages": _with_stages(_vidur_reserving),
}
"""Settings that need more of the engine: prefixes, host memory, pipelines, bugs of real engines."""


def draw_policy(rng: random.Random, name: str) -> Policy:
    """A policy with random settings."""
    draw, name = (SETTINGS | BY_REQUEST | REST)[name], name.partition(" ")[0]
    settings = {key: value for key, value in draw(rng).items() if value is not None}
    text = ",".join(f"{key}={str(value).lower()}" for key, value in settings.items())
    return make_policy(f"{name}:{text}" if text else name)


def draw_instance(rng: random.Random) -> Instance:
    """Up to 20 requests; memory holds one of them for sure and all of them rarely."""
    block_tokens, count = rng.randint(1, 16), rng.choice([1, 3, 7, 20])
    longest = rng.choice([1, 12, 40])
    sizes = [(rng.randint(1, 24), rng.randint(1, longest)) for _ in range(count)]
    largest = max(-(-(prompt + output - 1) // block_tokens) for prompt, output in sizes)
    spread = rng.choice([10, 40, 300, 3000]) * count
    requests = tuple(
        Request(
            request_id=f"r{rng.randint(0, 9)}-{index}",
            arrival_ns=rng.choice([0, 0, rng.randint(0, spread)]),
            prompt_tokens=prompt,
            output_tokens=output,
            priority=rng.randint(0, 2),
            client_id=rng.choice("aab"),
        )
        for index, (prompt, output) in enumerate(sizes)
    )
    limits = Limits(
        kv_blocks=largest + rng.randint(0, largest + 2) * rng.choice([0, 1, 1, 4]),
        block_tokens=block_tokens,
        max_batch_tokens=rng.choice([rng.randint(1, 40), rng.randint(24, 100)]),
        max_batch_requests=rng.choice([rng.randint(1, 8), 30]),
        max_model_len=max(prompt + output - 1 for prompt, output in sizes),
    )
    switches = Switches(chunked_prefill=rng.random() < 0.8)
    return Instance(requests=requests, limits=limits, cost=EVERY_TERM, switches=switches)


def _with_limits(rng: random.Random, instance: Instance) -> Instance:
    """The same requests, some with latency limits of their own."""
    requests = tuple(
        replace(
            request,
            ttft_limit_ns=rng.choice([None, 20, 100, 1000]),
            tpot_limit_ns=rng.choice([None, 15, 40, 200]),
        )
        for request in instance.requests
    )
    return replace(instance, requests=requests)


def _with_told(rng: random.Random, instance: Instance) -> Instance:
    """The same requests with predictions, and most with declared limits."""
    requests = tuple(
        replace(
            request,
            max_tokens=rng.choice([None, *(request.output_tokens + rng.randint(0, 40) for _ in range(3))]),
            predicted_tokens=rng.randint(1, 40),
        )
        for request in instance.requests
    )
    longest = rng.choice([None, instance.limits.max_model_len])
    return replace(instance, requests=requests, limits=replace(instance.limits, max_model_len=longest))


def _with_prefixes(rng: random.Random, instance: Instance) -> Instance:
    """The same requests, most of which begin with what others begin with."""

    def prefix(prompt_tokens: int) -> tuple[tuple[str, int], ...]:
        first = rng.randint(0, prompt_tokens)
        second = rng.randint(0, prompt_tokens - first)
        segments = (rng.choice("ab"), first), (rng.choice("cd"), second)
        return tuple((stream, tokens) for stream, tokens in segments if tokens)

    requests = tuple(replace(request, prefix=prefix(request.prompt_tokens)) for request in instance.requests)
    return replace(instance, requests=requests)


def _with_host(rng: random.Random, instance: Instance) -> Instance:
    """The same instance with some host memory, to which moving takes time or none."""
    host_kv_blocks = rng.choice([1, 2, 4, 1]) * instance.limits.kv_blocks // rng.choice([1, 1, 2])
    preemption = rng.choice([Preemption.SWAP, Preemption.EITHER, Preemption.EITHER])
    return replace(
        instance,
        limits=replace(instance.limits, host_kv_blocks=host_kv_blocks),
        switches=replace(instance.switches, preemption=preemption),
        cost=replace(instance.cost, swap_block=Fraction(rng.choice([0, 1, 7]), 3)),
    )


def draw_case(name: str, seed: int) -> tuple[Instance, Policy] | None:
    """A servable instance and a policy; None where the draw gave none."""
    rng = random.Random(f"{name} {seed}")
    instance, policy = draw_instance(rng), draw_policy(rng, name)
    if name == "niyama":
        instance = _with_limits(rng, instance)
    if "told" in name:
        instance = _with_told(rng, instance)
    if name == "vllm prefix":
        instance = _with_prefixes(rng, instance)
    if "swap" in name or "partial" in name:
        instance = _with_host(rng, instance)
    try:
        return instance.split_rejected()[0], policy
    except CspschedError:
        return None


def digest(simulation: Simulation) -> str:
    """SHA-256 of everything that a simulation says, column by column."""
    schedule, sha = simulation.schedule, hashlib.sha256(simulation.policy.encode())
    columns = [getattr(schedule, name) for name in sorted(schedule.__dataclass_fields__)]
    columns += [simulation.held_blocks, simulation.num_waiting, simulation.decided_ns]
    columns.append(np.array(simulation.preempted, dtype=np.int64))
    for column in columns:
        sha.update(f"{column.shape} {column.dtype}".encode() + np.ascontiguousarray(column).tobytes())
    return sha.hexdigest()


def outcome(run: Callable[[], Simulation]) -> tuple[str, str]:
    """Digest of a run, or the error that it ends with."""
    try:
        return "simulation", digest(run())
    except CspschedError as error:
        return type(error).__name__, str(error)


def short(outcome: tuple[str, str]) -> str:
    """Sixteen hexadecimal digits for an outcome, as `golden_runs.json` has them."""
    return hashlib.sha256(" ".join(outcome).encode()).hexdigest()[:16]


def busy_instance(count: int, kv_blocks: int) -> Instance:
    """Requests of a few hundred tokens that arrive faster than a small device serves them at times."""
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.exponential(60, count)).astype(int).tolist()
    prompts = rng.integers(1, 200, count).tolist()
    outputs = np.minimum(rng.geometric(0.03, count), 150).tolist()
    requests = tuple(
        Request(
            request_id=f"r{i}", arrival_ns=arrivals[i], prompt_tokens=prompts[i], output_tokens=outputs[i],
            priority=i % 3, client_id="abc"[i % 3],
        )
        for i in range(count)
    )  # fmt: skip
    limits = Limits(
        kv_blocks=kv_blocks, block_tokens=16, max_batch_tokens=512, max_batch_requests=64, max_model_len=400
    )
    return Instance(requests=requests, limits=limits, cost=EVERY_TERM)


PRESSED = [
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
]
"""Policies and KV blocks for 400 requests of `busy_instance`, where lists are closed up and logs grow."""
IN_LOCKSTEP = [
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
]
"""Policies whose decodes are in lockstep for 300 requests of `busy_instance`, as memory allows."""
