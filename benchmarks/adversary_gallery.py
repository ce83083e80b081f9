"""The worst small trace that a search finds for each built-in policy, as the rows of `docs/adversary.md`.

Usage: python benchmarks/adversary_gallery.py [--trials 600] [--seed 0] [--policies vllm sarathi ...]

Each row is one call of `cspsched adversary` that counts work instead of seconds, so it repeats; the
last column has the CPU seconds that it took. The optimum is asserted to be proven where the row says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

from cspsched.policies.base import BUILT_IN
from cspsched.units import percent


def main() -> None:
    """Print a row for each policy, as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", nargs="+", default=list(BUILT_IN))
    arguments = parser.parse_args()
    print("| policy | excess | optimum | requests: arrival + prompt + output | seed, trials | CPU s |")
    print("|---|---:|---|---|---|---:|")
    for policy in arguments.policies:
        worst, seconds = worst_of(policy, arguments.trials, arguments.seed)
        cells = row(worst) if worst else ("-", "-", "none found")
        end = f"{arguments.seed}, {arguments.trials} | {seconds:.0f}"
        print(f"| `{policy}` | {' | '.join(cells)} | {end} |", flush=True)


def worst_of(policy: str, trials: int, seed: int) -> tuple[dict[str, Any] | None, float]:
    """What the command found, and its CPU seconds."""
    command = [sys.executable, "-m", "cspsched", "adversary", "--heuristics", policy, "--json",
               "--trials", str(trials), "--seed", str(seed)]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (json.loads(done.stdout)["worst"] if done.stdout else None), seconds


def row(worst: dict[str, Any]) -> tuple[str, str, str]:
    """Excess, what is known of the optimum, and the requests."""
    is_proven = worst["status"].startswith("optimal")
    assert is_proven is (worst["status"] != "feasible")
    assert worst["bound_ns"] <= worst["optimum_ns"] <= worst["value_ns"]
    comes_late = any(one["arrival_ns"] for one in worst["requests"])
    shapes = [
        f"{one['arrival_ns'] / 1e6:.3g} ms + {one['prompt_tokens']} + {one['output_tokens']}"
        if comes_late
        else f"{one['prompt_tokens']} + {one['output_tokens']}"
        for one in worst["requests"]
    ]
    least = percent(worst["excess_at_least"])
    return (least if is_proven else f"at least {least}"), worst["status"].replace("_", " "), ", ".join(shapes)


if __name__ == "__main__":
    main()
