"""What the timed state search adds where requests arrive: `solve` with it and without it, side by side.

    python benchmarks/exact_timed.py --cases 12 --limit 8

Odd cases: three requests in chunks; even ones: four or five with whole prefills. One line of JSON a case.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from fractions import Fraction
from unittest.mock import patch

from cspsched.costs.presets import load_cost
from cspsched.exact import portfolio
from cspsched.exact.solver import solve_exactly
from cspsched.exact.timed.member import TimedMember
from cspsched.exact.watch import SearchLimits
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.request import Request

WITHOUT = [row for row in portfolio.PORTFOLIO if row.make is not TimedMember]
TEXTS = ("makespan", "latency", "ttft", "weighted-latency", "makespan+2*latency")
LATEST_NS = 100_000_000
MEMORY_SHARE = 0.5


def case(seed: int) -> tuple[Instance, str]:
    """An instance whose memory is half of all peaks, and what to minimise."""
    rng = random.Random(seed)
    chunked = seed % 2 == 1
    count, longest_prompt, longest_output = (3, 6, 6) if chunked else (rng.choice([4, 5]), 12, 10)
    requests = tuple(
        Request(
            request_id=f"r{k}",
            prompt_tokens=rng.randint(2, longest_prompt),
            output_tokens=rng.randint(3, longest_output),
            arrival_ns=rng.randint(0, LATEST_NS) if k else 0,
            priority=k % 2,
        )
        for k in range(count)
    )
    preemption = rng.choice([Preemption.NONE, Preemption.RECOMPUTE, Preemption.EITHER])
    peaks = [request.peak_kv_tokens for request in requests]
    limits = Limits(
        kv_blocks=max(*peaks, int(MEMORY_SHARE * sum(peaks))),
        block_tokens=1,
        max_batch_tokens=16,
        max_batch_requests=16,
        host_kv_blocks=10 if preemption.swaps else 0,
    )
    cost = load_cost("infermax-70b")
    if preemption.swaps:
        cost = replace(cost, swap_block=Fraction(100_000))
    switches = Switches(chunked_prefill=chunked, preemption=preemption)
    return Instance(requests=requests, limits=limits, cost=cost, switches=switches), rng.choice(TEXTS)


def outcome(instance: Instance, text: str, limit_s: float) -> dict[str, str | float | int]:
    """Status, gap, time and certificate of a solve."""
    started, worked = time.monotonic(), time.process_time()
    result = solve_exactly(instance, read_objectives(text, instance)[0], SearchLimits(time_limit_s=limit_s))
    assert result.violations() == []
    return {
        "status": result.status.value,
        "gap": round(result.gap, 4),
        "value": result.primal_ns,
        "bound": result.dual_ns,
        "wall_s": round(time.monotonic() - started, 2),
        "cpu_s": round(time.process_time() - worked, 2),
        "certificate": result.certificate,
    }


def main() -> None:
    """Solve the cases and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--limit", type=float, default=8.0, help="seconds a solve")
    given = parser.parse_args()
    for seed in range(given.cases):
        instance, text = case(seed)
        line = {"case": seed, "requests": len(instance.requests), "class": instance.switches.policy_class}
        line |= {"objective": text, "with": outcome(instance, text, given.limit)}
        with patch.object(portfolio, "PORTFOLIO", WITHOUT):
            line["without"] = outcome(instance, text, given.limit)
        assert line["with"]["bound"] <= line["without"]["value"], "a bound contradicts a schedule"
        assert line["without"]["bound"] <= line["with"]["value"], "a bound contradicts a schedule"
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
