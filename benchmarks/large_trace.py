"""Both ends of a bracket on a trace of a million requests: CPU time and peak memory of each step.

Usage: python benchmarks/large_trace.py {makespan,latency,ttft,improve} [--requests N] [--load SHARE]
           [--objective latency] [--time-limit SECONDS] [--resume FILE] [--heuristics POLICY ...]

The workload is that of benchmarks/simulator_speed.py: Poisson arrivals at a share of what vLLM serves when
all requests are there at once, lognormal lengths of about 512 and 128 tokens, Llama-3.1-8B on an H100.
`improve` simulates
the policies, bounds, searches, and lets the referee judge all of it. One step a run, so
that the peak is that of the step; it holds the instance (its own share is printed, too).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from simulator_speed import calibrated_rate, device_of, draw_workload, instance_of

from cspsched.bounds import best_bound
from cspsched.exact.watch import Listener
from cspsched.improve import ImproveLimits, improve
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective

SEED = 1


def peak_mib() -> float:
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bound(instance: Instance, objective: Objective) -> dict[str, Any]:
    """The best bound, after a first call on few requests that compiles and loads."""
    few = Instance(requests=instance.requests[:1000], limits=instance.limits, cost=instance.cost)
    best_bound(few, objective)
    start = time.process_time()
    certificate = best_bound(instance, objective)
    return {
        "value_s": objective.mean_s(certificate.value_ns, len(instance.requests)),
        "certificate": certificate.name,
        "cpu_s": time.process_time() - start,
    }


def search(instance: Instance, arguments: argparse.Namespace) -> dict[str, Any]:
    """Policies, bound, search and referee; CPU time of all of it."""
    start = time.process_time()

    def tell(message: str) -> None:
        used = f"{time.process_time() - start:8.1f} CPU s {peak_mib():6.0f} MiB"
        print(f"{used}  {message}", file=sys.stderr, flush=True)

    found = improve(
        instance,
        Objective(arguments.objective),
        heuristics=arguments.heuristics,
        limits=ImproveLimits(time_limit_s=arguments.time_limit),
        state_file=arguments.resume,
        listener=Listener(step=tell),
    )
    return found.to_json() | {"cpu_s": time.process_time() - start}


def main() -> int:
    """Measure one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=["makespan", "latency", "ttft", "improve"])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--objective", default="latency", choices=[one.value for one in Objective])
    parser.add_argument("--time-limit", type=float, default=300.0)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--heuristics", nargs="+", default=["vllm", "smallest-volume"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kv-blocks", type=int, default=27_000)
    parser.add_argument("--max-batch-tokens", type=int, default=8192)
    parser.add_argument("--max-batch-requests", type=int, default=1024)
    parser.add_argument("--cost", default="h100-llama-3.1-8b")
    arguments = parser.parse_args()
    device = device_of(arguments)
    rate = calibrated_rate(device, arguments.load, SEED)
    instance = instance_of(draw_workload(arguments.requests, rate, SEED), device)
    row: dict[str, Any] = {"step": arguments.step, "requests": arguments.requests, "load": arguments.load}
    row["instance_mib"] = peak_mib()
    if arguments.step == "improve":
        row |= search(instance, arguments)
    else:
        row |= bound(instance, Objective(arguments.step))
    row["peak_mib"] = peak_mib()
    print(json.dumps(row, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
