"""CPU time and value of the bounds on the mean latency by the number of requests; no size may cost a jump.

Usage: python benchmarks/bound_cost.py [--requests N ...] [--load SHARE] [--json FILE]

The workload is that of benchmarks/from_file_to_answer.py: Poisson arrivals at 80 % load, Llama-3.1-8B on an
H100. Each certificate is timed by CPU time, after a first call that compiles. No bound may be above
what `vllm` or `sarathi` take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from from_file_to_answer import HEURISTICS, LOAD, SEED, device
from simulator_speed import calibrated_rate, draw_workload, instance_of

from cspsched.bounds.flow import flow_certificates
from cspsched.bounds.parts.tables import Tables
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.simulate.kernel import simulate_fast

SIZES = [500, 1000, 2000, 4000, 8000, 12_000, 13_000, 16_000, 32_000, 64_000, 100_000]


def measure(instance: Instance) -> dict[str, Any]:
    """CPU seconds and mean latency of each certificate, and what the policies take."""
    count, row = len(instance.requests), {"requests": len(instance.requests)}
    begun, values, seconds = time.process_time(), {}, {}
    last = begun
    for certificate in flow_certificates(Tables(instance), Objective.LATENCY):
        now = time.process_time()
        values[certificate.name], seconds[certificate.name] = certificate.value_ns / count / 1e9, now - last
        last = now
    arrivals_s = float(instance.columns.arrival_ns.mean()) / 1e9
    policies = {
        name: float(simulate_fast(instance, make_policy(name)).finish_ns.mean()) / 1e9 - arrivals_s
        for name in HEURISTICS
    }
    assert max(values.values()) <= min(policies.values()), (values, policies)
    best = max(values, key=values.__getitem__)
    return row | {
        "cpu_s": last - begun, "best": best, "bound_s": values[best],
        "values_s": values, "seconds": seconds, "policies_s": policies,
    }  # fmt: skip


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=SIZES)
    parser.add_argument("--load", type=float, default=LOAD)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    empty, rows = device(), []
    rate = calibrated_rate(empty, arguments.load, SEED)
    measure(instance_of(draw_workload(SIZES[0], rate, SEED), empty))
    for count in arguments.requests:
        row = measure(instance_of(draw_workload(count, rate, SEED), empty))
        rows.append(row)
        parts = ", ".join(f"{name} {row['values_s'][name]:.5f} s" for name in row["values_s"])
        print(
            f"{count:>9,} {row['cpu_s']:7.2f} CPU s  {row['bound_s']:.5f} s by {row['best']}  ({parts})",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
