"""Profile plots of the exact solver's benchmark suite: solved against time, gap against time limit used.

Usage: python benchmarks/exact_plots.py RESULTS.jsonl [...] --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

Groups = dict[str, list[dict[str, Any]]]


def groups(paths: list[Path], method: str, objective: str) -> Groups:
    """Rows of one method and objective by family."""
    found: Groups = defaultdict(list)
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["method"] == method and row["objective"] == objective:
                found[row["family"]].append(row)
    return dict(sorted(found.items()))


def draw(rows_of: Groups, baselines: list[Groups], column: str, label: str, axis: Any) -> None:
    """Share of the instances of each family up to a value of a column; baselines dashed, all together."""
    axis.set_prop_cycle(color=mpl.colormaps["tab20"].colors)
    for family, rows in rows_of.items():
        solved = column != "seconds"
        values = sorted(
            100 * row["gap"] if solved else row["seconds"] for row in rows if _counts(row, column)
        )
        steps = np.arange(1, len(values) + 1) / len(rows)
        floor = 0.01
        axis.step([floor, *[max(floor, value) for value in values]], [0, *steps], where="post", label=family)
    for rows in (row for baseline in baselines for row in baseline.values()):
        values = sorted(row["seconds"] for row in rows if _counts(row, column))
        shares = np.arange(1, len(values) + 1) / len(rows)
        axis.step([0.01, *values, 60], [0, *shares, len(values) / len(rows)],
                  where="post", linestyle="--", color="grey")  # fmt: skip
    axis.set(xscale="log", xlabel=label, ylabel="share of instances", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def _counts(row: dict[str, Any], column: str) -> bool:
    """With seconds only proven runs count; with gaps all that have one."""
    if column == "seconds":
        return row["status"].startswith("optimal")
    return row["gap"] is not None


def main() -> None:
    """Two pictures an objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    mpl.use("Agg")
    for objective in ("makespan", "latency"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.2), sharey=True)
        rows_of = groups(arguments.results, "solve", objective)
        naive = [groups(arguments.results, name, objective) for name in ("naive-cpsat", "naive-highs")]
        draw(rows_of, naive, "seconds", "seconds to proof (dashed: naive models)", left)
        draw(rows_of, [], "gap", "gap at the time limit, % (0.01: closed)", right)
        right.set_ylabel("")
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(f"exact solver, {objective}", fontsize=10)
        figure.tight_layout()
        figure.savefig(arguments.out / f"solver_{objective}.png", dpi=80)


if __name__ == "__main__":
    main()
