"""Bracket on the ratio of MC-SF for the packing instances that are too large to solve (n 40 to 60).

Usage: python benchmarks/exact_packing.py [--sizes 40 50 60] [--seconds 5] [--first 4] [--json FILE] [--keep]

One row an instance: what MC-SF reaches, the best schedule that a search finds (`cspsched.improve`), the best
closed-form bound, and so the interval that holds MC-SF / optimum. Values are sums of latencies in batches of
1 ns each. `--keep` writes improvements into `instances/best_known.json`. Every schedule is judged by the
referee. The exit code is 1 if a bound is above a schedule's value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from exact_suite import instances, keep_best

from cspsched.improve.improvement import ImproveLimits, improve
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bracket; values are sums of latencies, CPU times in seconds."""

    instance: str
    mc_sf: int
    best: int
    found_by: str
    bound: int
    certificate: str
    cpu_s: float

    @property
    def gap(self) -> float:
        """(best - bound) / best."""
        return (self.best - self.bound) / self.best


def bracket(name: str, instance: Instance, seconds: float) -> Row:
    """MC-SF, a search that starts from it, and the bound."""
    started = time.process_time()
    limits = ImproveLimits(time_limit_s=seconds)
    found = improve(instance, Objective.LATENCY, heuristics=("mc-sf",), limits=limits)
    return Row(
        instance=name,
        mc_sf=found.best_policy.value_ns,
        best=found.value_ns,
        found_by=found.found_by,
        bound=found.bound.value_ns,
        certificate=found.bound.name,
        cpu_s=round(time.process_time() - started, 2),
    )


def keep(rows: list[Row]) -> int:
    """Write better values and bounds into the file of best values; how many there were."""
    return keep_best(
        [
            {"instance": row.instance, "objective": "latency", "method": "solve", "primal_ns": row.best,
             "found_by": row.found_by, "dual_ns": row.bound, "certificate": row.certificate}
            for row in rows
        ]
    )  # fmt: skip


def main() -> int:
    """Measure the chosen sizes and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=[40, 50, 60])
    parser.add_argument("--seconds", type=float, default=5.0, help="of search an instance")
    parser.add_argument("--first", type=int, default=4, help="seeds of a size")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    frozen = instances("packing")
    rows = []
    for size in options.sizes:
        for name in [name for name in frozen if f"-n{size}-" in name][: options.first]:
            row = bracket(name, frozen[name], options.seconds)
            rows.append(row)
            print(
                f"{name:20} mc-sf {row.mc_sf:6} best {row.best:6} ({row.found_by}) bound {row.bound:6} "
                f"({row.certificate}) ratio {row.mc_sf / row.best:.3f} to {row.mc_sf / row.bound:.3f} "
                f"gap {row.gap:5.1%} {row.cpu_s:6.2f} s",
                flush=True,
            )
    print(f"median gap {statistics.median(row.gap for row in rows):.1%} of {len(rows)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if options.keep:
        print(f"{keep(rows)} best values or bounds improved")
    return 0 if all(row.bound <= row.best for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
