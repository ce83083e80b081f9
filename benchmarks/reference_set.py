"""Which few policies make the best reference: the best schedule per CPU second over instances and objectives.

Usage: python benchmarks/reference_set.py [--most 8] [--json FILE]

Every policy runs at its defaults on every instance. A policy's loss is its value over the best value of all
policies, less 1; the loss of a set is that of its best member. Policies are taken one after another, each
time the one that lowers the mean loss most. Beside them stands what the reference search finds in its steps,
and the set that `compare` took before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cspsched.errors import CspschedError
from cspsched.improve.improvement import ImproveLimits, find_better
from cspsched.policies.base import make_policy, policy_names
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.referee.rules import find_violations
from cspsched.serving import Serving, make_instance
from cspsched.simulate import simulate
from cspsched.studies.reference import MOST_STEPS
from cspsched.trace import read_trace
from cspsched.trace.shipped import shipped_trace_path

OBJECTIVES = (Objective.MAKESPAN, Objective.LATENCY, Objective.TTFT)
STEPS = (20, 50, 100, 200, 320, 500, 1000)
FORMER = ("vllm", "sarathi", "mc-sf", "smallest-volume")
WORST = 10.0
"""Loss of a policy that cannot run."""
UNKNOWN_NS = 2**62


def instances() -> Iterator[tuple[str, Instance]]:
    """Chat requests at three rates and two sizes of memory, few requests in very little, and bundled ones."""
    for rate, kv_tokens, limit in (
        (1.0, None, 2000), (3.0, None, 2000), (6.0, None, 2000), (3.0, 20_000, 500), (6.0, 20_000, 500),
        (3.0, 8_000, 100), (1000.0, 20_000, 200),
    ):  # fmt: skip
        trace = read_trace(shipped_trace_path("chat-2000"), limit=limit, scale_rate=rate)
        name = f"chat-{limit} x{rate:g}" + (f" M={kv_tokens}" if kv_tokens else "")
        yield name, make_instance(trace, Serving(kv_tokens=kv_tokens))
    tight = {"cost": "infermax-70b", "kv_tokens": 64, "block_tokens": 1}
    for name in ("burst-6", "tiny-12"):
        yield name, make_instance(read_trace(shipped_trace_path(name)), Serving())
    yield "burst-6 M=64", make_instance(read_trace(shipped_trace_path("burst-6")), Serving(**tight))


def run_all(instance: Instance) -> tuple[dict[str, dict[Objective, int]], dict[str, float]]:
    """Values of every policy that the instance allows, and the CPU seconds of its second run."""
    values, seconds = {}, {}
    for name in policy_names():
        try:
            simulate(instance, make_policy(name))
            started = time.process_time()
            schedule = simulate(instance, make_policy(name)).schedule
            seconds[name] = time.process_time() - started
        except CspschedError:
            continue
        if not find_violations(instance, schedule):
            metrics = measure(instance, schedule)
            values[name] = {objective: metrics.objective_ns(objective) for objective in OBJECTIVES}
    return values, seconds


def choose(losses: dict[str, np.ndarray], most: int) -> list[str]:
    """Policies in the order in which each lowers the mean loss most; a loss for each cell."""
    chosen: list[str] = []
    least: np.ndarray | float = WORST
    for _ in range(most):
        best = min(losses, key=lambda name: np.minimum(losses[name], least).mean())
        least = np.minimum(losses[best], least)
        chosen.append(best)
    return chosen


def told_loss(losses: list[np.ndarray]) -> str:
    """Mean and largest loss of the best of several, as cells of a table."""
    least = np.min(losses, axis=0)
    return f"{least.mean():.2%} | {least.max():.2%}"


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cells, rows, searches = [], {name: [] for name in policy_names()}, []
    cpu = dict.fromkeys(policy_names(), 0.0)
    for name, instance in instances():
        values, seconds = run_all(instance)
        for policy in rows:
            cpu[policy] += seconds.get(policy, 0.0)
        for objective in OBJECTIVES:
            best = min(one[objective] for one in values.values())
            cells.append(f"{name} {objective}")
            for policy, row in rows.items():
                row.append(values[policy][objective] / best - 1 if policy in values else WORST)
            ratios, times = [], []
            for steps in STEPS:
                limits = ImproveLimits(time_limit_s=None, max_steps=steps)
                started = time.process_time()
                found, _ = find_better(instance, objective, UNKNOWN_NS, 0, limits)
                times.append(time.process_time() - started)
                ratios.append(found.value_ns / best - 1)
            searches.append({"cell": cells[-1], "loss": ratios, "cpu_s": times})
            told = "  ".join(f"{r:+.2%} {t:.1f}s" for r, t in zip(ratios, times, strict=True))
            print(f"{cells[-1]:40} {told}", flush=True)
    losses = {name: np.array(row) for name, row in rows.items()}
    print("\npolicy  mean loss  largest  best in  CPU s")
    for name, row in losses.items():
        print(f"{name:26} {row.mean():8.2%} {row.max():8.2%} {(row == 0).sum():4d} {cpu[name]:7.3f}")
    found = np.array([one["loss"][STEPS.index(MOST_STEPS)] for one in searches])
    print("\n| set, one added at a time | mean loss alone | largest | beside the search | largest |")
    print("|---|---|---|---|---|")
    chosen = choose(losses, options.most)
    sets = {f"+ `{name}`": chosen[: k + 1] for k, name in enumerate(chosen)}
    for name, members in (sets | {f"`{' '.join(FORMER)}`, before": list(FORMER)}).items():
        alone = [losses[member] for member in members]
        print(f"| {name} | {told_loss(alone)} | {told_loss([*alone, found])} |")
    if options.json:
        data = {"cells": cells, "policies": rows, "searches": searches, "cpu_s": cpu}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
