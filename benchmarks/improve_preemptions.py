"""What planned preemptions are worth to the improvement search where memory is tight and outputs are long.

Usage: python benchmarks/improve_preemptions.py [--requests N ...] [--seeds N] [--steps N]

Requests with prompts of 20 to 200 and outputs of 50 to 200 tokens, all at 0, 1,000 KV entries,
`infermax-70b`. Each set is searched twice with the same seed and number of steps: with preemption forbidden,
and with recomputing allowed. Values are the referee's. The same steps give the same values everywhere; CPU
times are those of the machine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from cspsched.costs.presets import load_cost
from cspsched.improve import ImproveLimits, find_better
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request

UNKNOWN_NS = 2**62
OBJECTIVES = (Objective.LATENCY, Objective.MAKESPAN)


def tight_instance(count: int, seed: int) -> Instance:
    """Requests of which about five fit beside each other."""
    rng = np.random.default_rng(seed)
    prompts, outputs = rng.integers(20, 201, count).tolist(), rng.integers(50, 201, count).tolist()
    requests = tuple(
        Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=prompt, output_tokens=output)
        for k, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    )
    limits = Limits(kv_blocks=1000, block_tokens=1, max_batch_tokens=2048, max_batch_requests=256)
    return Instance(requests=requests, limits=limits, cost=load_cost("infermax-70b"))


def searched(instance: Instance, objective: Objective, seed: int, steps: int) -> tuple[float, float]:
    """Seconds of the best schedule that a search finds, and its CPU seconds."""
    started = time.process_time()
    limits = ImproveLimits(time_limit_s=None, max_steps=steps, seed=seed)
    found, _ = find_better(instance, objective, UNKNOWN_NS, 0, limits)
    assert found is not None
    return found.value_ns / 1e9, time.process_time() - started


def main() -> None:
    """Search every set with both objectives and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    for count in options.requests:
        for objective in OBJECTIVES:
            for seed in range(options.seeds):
                allowed = tight_instance(count, seed)
                forbidden = replace(allowed, switches=Switches(preemption=Preemption.NONE))
                without_s, without_cpu_s = searched(forbidden, objective, seed, options.steps)
                with_s, with_cpu_s = searched(allowed, objective, seed, options.steps)
                print(
                    f"{count:4} requests  {objective:8}  seed {seed}  without {without_s:10.3f} s  with "
                    f"{with_s:10.3f} s ({with_s / without_s - 1:+.2%})  CPU {without_cpu_s:.1f} and "
                    f"{with_cpu_s:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
