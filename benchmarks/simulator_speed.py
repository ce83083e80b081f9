"""Requests per CPU second of the compiled kernel, with the right answer checked; protocol in README.md here.

Usage: python benchmarks/simulator_speed.py [--requests N] [--policies NAME ...] [--json FILE]

One workload for all: Poisson arrivals, lognormal prompts and outputs, at a share of the load that the device
takes when all requests are there at once. A policy runs once on a few requests, so that compilation is not in
the time, and then as often as --repeat says; the best run counts, as process CPU time, per-request columns of
all requests included. Beside it the Rust mocker of `ai-dynamo-runtime`, if it is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cspsched.costs.presets import load_cost
from cspsched.policies.base import BatchMode, DecisionPolicy, View, make_policy
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate import Simulation
from cspsched.simulate.kernel import KernelRun, Workload, layout, run_workload, simulate_fast
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.support import kernel_rules
from cspsched.units import NS_PER_S

DEFAULT_POLICIES = (
    "vllm", "vllm:policy=priority", "sarathi:max_num_seqs=256,chunk=1024", "vllm-v0:max_num_seqs=256",
    "sarathi-vllm:max_num_seqs=256", "orca:max_num_seqs=256,reservation=oracle",
    "simple-chunking:max_num_seqs=256,chunk=2048", "infermax", "tensorrt-llm", "tgi", "lightllm", "mc-sf",
    "smallest-volume",
)  # fmt: skip
MORE_POLICIES = (
    "faster-transformer:max_num_seqs=256", "vidur-lightllm:batch_size_cap=256",
    "vllm:long_prefill_token_threshold=2048,policy=priority", "vllm:num_lookahead_tokens=4",
    "vllm:prefill_schedule_interval=4", "vllm:long_prefill_token_threshold_adaptive=true",
    "vllm:max_num_active_seqs=512", "vllm-v0:max_num_seqs=256,delay_factor=0.5",
    "vllm-v0:max_num_seqs=256,policy=priority", "vllm-v0:max_num_seqs=256,enable_chunked_prefill=true",
    "sarathi:max_num_seqs=256,enable_dynamic_chunking_schedule=true,low_chunk_size=512,"
    "high_chunk_size=1024,chunk_schedule_max_tokens=4096,chunk_schedule_stages=4",
    "orca:max_num_seqs=256,reservation=pow2", "infermax:eviction=shortest", "infermax:eviction=histogram",
    "infermax:priority=prefill", "tensorrt-llm:capacity_scheduler_policy=static_batch",
    "tensorrt-llm:capacity_scheduler_policy=prefill_first",
    "tensorrt-llm:capacity_scheduler_policy=max_utilization",
    "tensorrt-llm:context_chunking_policy=equal_progress", "tgi:max_batch_total_tokens=400000",
    "lightllm:router_token_ratio=0.5", "sglang", "sglang:enable_mixed_chunk=true", "vtc", "sjf", "srpt",
    "trail", "fastserve", "sorted-f", "niyama", "vidur-vllm:batch_size_cap=256",
    "vidur-sarathi:batch_size_cap=256,chunk_size=1024", "vidur-orca:max_batch_size=256,batch_size_cap=256",
    "vidur-faster-transformer:max_batch_size=256,batch_size_cap=256", "vllm:async_scheduling=true",
)  # fmt: skip
"""With those above: every registered policy, and the settings that take another loop."""
MEAN_PROMPT, MEAN_OUTPUT, SIGMA = 512, 128, 0.7
LONGEST_PROMPT, LONGEST_OUTPUT = 4096, 1024
WARM_UP, CALIBRATION = 1000, 20_000


class UsersPolicy(DecisionPolicy):
    """What a user may write: shortest prompt first, a margin of memory, chunks, the shortest is evicted."""

    name = "user's policy in Python: order, admit, chunk, victim"

    def order(self, request: Request) -> float:
        """Shortest prompt first."""
        return request.prompt_tokens

    def admit(self, view: View, request: int) -> bool:
        """Above a margin, if others run."""
        return view.free_blocks > 200 or not view.num_running

    def chunk(self, view: View, request: int, most: int) -> int:
        """At most 2048 tokens at a time."""
        return min(most, 2048)

    def victim(self, view: View, request: int) -> int:
        """The fewest known tokens."""
        return min(view.running, key=view.known_tokens)


class UsersModes(UsersPolicy):
    """The same, asked before every batch, too."""

    name = "user's policy in Python: the same, and batch_mode"

    def batch_mode(self, view: View) -> BatchMode:
        """Prefills alone while many wait."""
        return BatchMode.PREFILL_ONLY if view.num_waiting > 8 else BatchMode.MIXED


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one policy did."""

    policy: str
    requests: int
    cpu_s: float
    requests_per_cpu_s: float
    iterations: int
    mean_batch: float
    preempted_share: float
    same_as_plain: bool
    """Schedule of the first requests equal to that of the same functions as plain Python, by SHA-256."""
    tokens_conserved: bool
    """Tokens processed = I + O - 1 of every request + those lost to preemption."""


def draw_workload(count: int, rate: float, seed: int) -> Workload:
    """Lognormal lengths with the means above, Poisson arrivals with a rate in requests per second."""
    rng = np.random.default_rng(seed)

    def lengths(mean: int, longest: int) -> Any:
        drawn = rng.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count)
        return np.clip(np.rint(drawn), 1, longest).astype(np.int32)

    prompt_tokens, output_tokens = lengths(MEAN_PROMPT, LONGEST_PROMPT), lengths(MEAN_OUTPUT, LONGEST_OUTPUT)
    arrival_ns = np.cumsum(rng.exponential(NS_PER_S / rate, count)).astype(np.int64)
    return Workload(
        arrival_ns=arrival_ns - arrival_ns[0], prompt_tokens=prompt_tokens, output_tokens=output_tokens
    )


def head_of(workload: Workload, count: int) -> Workload:
    """The first requests of a workload."""
    return Workload(
        arrival_ns=workload.arrival_ns[:count],
        prompt_tokens=workload.prompt_tokens[:count],
        output_tokens=workload.output_tokens[:count],
    )


def instance_of(workload: Workload, device: Instance) -> Instance:
    """The same requests as objects; names rise with the position."""
    columns = zip(
        workload.arrival_ns.tolist(),
        workload.prompt_tokens.tolist(),
        workload.output_tokens.tolist(),
        strict=True,
    )
    requests = tuple(
        Request(request_id=f"{i:09d}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
        for i, (arrival, prompt, output) in enumerate(columns)
    )
    return replace(device, requests=requests)


def device_of(arguments: argparse.Namespace) -> Instance:
    """Limits and cost, with one request that is not looked at."""
    limits = Limits(
        kv_blocks=arguments.kv_blocks,
        block_tokens=16,
        max_batch_tokens=arguments.max_batch_tokens,
        max_batch_requests=arguments.max_batch_requests,
        max_model_len=LONGEST_PROMPT + LONGEST_OUTPUT,
    )
    request = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)
    return Instance(requests=(request,), limits=limits, cost=load_cost(arguments.cost))


def rules_of(text: str, device: Instance) -> Rules | None:
    """Rules of a policy on the device; None if it decides step by step."""
    return kernel_rules(device, make_policy(text))


def calibrated_rate(device: Instance, load: float, seed: int) -> float:
    """Arrivals per second at a load: 1 is what vLLM takes when all requests are there at once."""
    workload = replace(
        draw_workload(CALIBRATION, 1.0, seed), arrival_ns=np.zeros(CALIBRATION, dtype=np.int64)
    )
    run = simulate_workload("vllm", workload, device)
    return load * CALIBRATION * NS_PER_S / int(run.batch_ns[-1, 1])


def simulate_workload(text: str, workload: Workload, device: Instance) -> KernelRun:
    """Run a policy, compiled."""
    rules = rules_of(text, device)
    if rules is None:
        raise SystemExit(f"{text} decides step by step")
    return run_workload(workload, rules, device.cost, label=text)


def digest(simulation: Simulation) -> str:
    """SHA-256 of schedule, blocks and queue."""
    sha = hashlib.sha256()
    for name in sorted(simulation.schedule.__dataclass_fields__):
        sha.update(np.ascontiguousarray(getattr(simulation.schedule, name)).tobytes())
    sha.update(simulation.held_blocks.tobytes() + simulation.num_waiting.tobytes())
    return sha.hexdigest()


def conserves_tokens(run: KernelRun) -> bool:
    """Whether chunks and decodes add up to what the requests need and lost."""
    kind, amount = run.spans[:, layout.KIND], run.spans[:, layout.AMOUNT]
    processed = int(amount[kind != layout.EVICTION_SPAN].sum(dtype=np.int64))
    workload = run.workload
    needed = int(workload.prompt_tokens.sum(dtype=np.int64) + workload.output_tokens.sum(dtype=np.int64))
    return processed == needed - workload.num_requests + int(run.recomputed_tokens.sum())


def measure(text: str, workload: Workload, device: Instance, arguments: argparse.Namespace) -> Row:
    """Time one policy and check what it did."""
    simulate_workload(text, head_of(workload, WARM_UP), device)
    times = []
    for _ in range(arguments.repeat):
        start = time.process_time()
        run = simulate_workload(text, workload, device)
        times.append(time.process_time() - start)
    head = instance_of(head_of(workload, arguments.check), device)
    policy = make_policy(text)
    plain = simulate_fast(head, policy, plain=True).to_simulation()
    kernel = simulate_fast(head, policy).to_simulation()
    sizes = run.batch_counts[:, :2].sum(dtype=np.int64)
    return Row(
        policy=text,
        requests=workload.num_requests,
        cpu_s=min(times),
        requests_per_cpu_s=workload.num_requests / min(times),
        iterations=run.num_batches,
        mean_batch=float(sizes / run.num_batches),
        preempted_share=float((run.num_preemptions > 0).mean()),
        same_as_plain=digest(plain) == digest(kernel),
        tokens_conserved=conserves_tokens(run),
    )


def measure_users(
    policy: DecisionPolicy, workload: Workload, device: Instance, arguments: argparse.Namespace
) -> Row:
    """Time a policy in Python; columns of the requests are made of objects within the time, too."""
    instance, head = instance_of(workload, device), instance_of(head_of(workload, arguments.check), device)
    plain = simulate_fast(head, policy, plain=True).to_simulation()
    kernel = simulate_fast(head, policy).to_simulation()
    times = []
    for _ in range(arguments.repeat):
        start = time.process_time()
        run = simulate_fast(instance, policy)
        times.append(time.process_time() - start)
    sizes = run.batch_counts[:, :2].sum(dtype=np.int64)
    return Row(
        policy=policy.label,
        requests=workload.num_requests,
        cpu_s=min(times),
        requests_per_cpu_s=workload.num_requests / min(times),
        iterations=run.num_batches,
        mean_batch=float(sizes / run.num_batches),
        preempted_share=float((run.num_preemptions > 0).mean()),
        same_as_plain=digest(plain) == digest(kernel),
        tokens_conserved=conserves_tokens(run),
    )


def time_mocker(workload: Workload, device: Instance) -> dict[str, Any] | None:
    """CPU time of the Rust mocker on the same requests; None if it is not installed.

    Its batch time is its own, so its iterations are not ours; it gives no per-request columns here.
    """
    try:
        from dynamo._core import run_mocker_trace_replay
    except ImportError:
        return None
    limits = device.limits
    engine = {
        "num_gpu_blocks": limits.kv_blocks,
        "block_size": limits.block_tokens,
        "max_num_seqs": limits.max_batch_requests,
        "max_num_batched_tokens": limits.max_batch_tokens,
        "enable_prefix_caching": False,
    }
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        _write_mooncake(workload, trace)
        start = time.process_time()
        summary = run_mocker_trace_replay(
            [str(trace)], extra_engine_args={"engine": engine}, trace_block_size=512
        ).summary
        cpu_s = time.process_time() - start
    if summary["completed_requests"] != workload.num_requests:
        raise SystemExit(f"the mocker completed {summary['completed_requests']} requests only")
    return {"cpu_s": cpu_s, "requests_per_cpu_s": workload.num_requests / cpu_s}


def _write_mooncake(workload: Workload, path: Path) -> None:
    """Write the workload in the mocker's format; no two requests share a block of text."""
    ends = np.cumsum(-(-workload.prompt_tokens.astype(np.int64) // 512)).tolist()
    columns = (workload.arrival_ns.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist())
    with path.open("w", encoding="utf-8") as file:
        for begin, end, arrival, prompt, output in zip([0, *ends], ends, *columns, strict=False):
            row = {
                "timestamp": arrival / 1e6,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(begin, end)),
            }
            file.write(json.dumps(row) + "\n")


def read_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--policies", nargs="+", default=list(DEFAULT_POLICIES))
    parser.add_argument("--all", action="store_true", help="every registered policy, and all loops")
    parser.add_argument("--load", type=float, default=0.8, help="share of what the device takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each policy, of which the best counts")
    parser.add_argument(
        "--check",
        type=int,
        default=1000,
        help="requests also run as plain Python",
    )
    parser.add_argument("--cost", default="h100-llama-3.1-8b")
    parser.add_argument("--kv-blocks", type=int, default=27_000, help="fewer bring preemptions")
    parser.add_argument("--max-batch-tokens", type=int, default=8192)
    parser.add_argument("--max-batch-requests", type=int, default=1024)
    parser.add_argument("--no-users", action="store_true", help="no policies in Python")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    arguments = parser.parse_args()
    if arguments.all:
        arguments.policies = [*DEFAULT_POLICIES, *MORE_POLICIES]
    return arguments


def main() -> None:
    """Measure, check, print."""
    arguments = read_arguments()
    device = device_of(arguments)
    rate = calibrated_rate(device, arguments.load, arguments.seed)
    workload = draw_workload(arguments.requests, rate, arguments.seed)
    print(
        f"{arguments.requests} requests, {rate:.2f}/s, load {arguments.load}, {arguments.kv_blocks} KV blocks"
    )
    print(
        f"{'policy':<64} {'requests/CPU s':>15} {'iterations':>11} {'batch':>6} "
        f"{'preempted':>10} {'right':>6}"
    )
    rows = []
    users: list[str | DecisionPolicy] = [] if arguments.no_users else [UsersPolicy(), UsersModes()]
    for policy in [*arguments.policies, *users]:
        if isinstance(policy, str):
            row = measure(policy, workload, device, arguments)
        else:
            row = measure_users(policy, workload, device, arguments)
        rows.append(row)
        right = "yes" if row.same_as_plain and row.tokens_conserved else "NO"
        print(
            f"{row.policy[:64]:<64} {row.requests_per_cpu_s:>15,.0f} "
            f"{row.iterations:>11,} {row.mean_batch:>6.0f} {row.preempted_share:>10.1%} {right:>6}",
            flush=True,
        )
    peer = None if arguments.no_peers else time_mocker(workload, device)
    if peer:
        print(f"{'ai-dynamo-runtime mocker':<71} {peer['requests_per_cpu_s']:>15,.0f}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak_mib:,.0f} MiB")
    if arguments.json:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        facts = {"python": platform.python_version(), "machine": platform.processor(), "peak_mib": peak_mib}
        report = {"schema": "cspsched/simulator-speed/1", "settings": settings, "rate_per_s": rate, **facts}
        report |= {"rows": [asdict(row) for row in rows], "ai_dynamo_mocker": peer}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not all(row.same_as_plain and row.tokens_conserved for row in rows):
        raise SystemExit("a policy did compiled what it does not do plain")


if __name__ == "__main__":
    main()
