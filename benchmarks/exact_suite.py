"""Run the benchmark suite of the exact solver, its three baselines beside it, and keep the best values known.

Usage: python benchmarks/exact_suite.py --out RESULTS.jsonl [--family tiny-n5 ...] [--objective makespan ...]
       [--method solve heuristic naive-cpsat naive-highs] [--limit 60] [--first K] [--keep]

One line of JSON for each instance, objective and method; runs that RESULTS.jsonl has already are skipped, so
an interrupted run goes on where it stopped. `--keep` writes improvements into `instances/best_known.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact_naive import is_naive, solve_naively

from cspsched.errors import CspschedError
from cspsched.exact.heuristics.list_schedule import list_schedules
from cspsched.exact.record import best_incumbent
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.policies.base import make_policy, policy_names
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.result import tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.simulate import simulate

FOLDER = Path(__file__).parent / "instances"
BEST_KNOWN = FOLDER / "best_known.json"
OBJECTIVES = {"packing": ("latency",), "long": ("makespan", "latency")}
METHODS = ("solve", "heuristic", "naive-cpsat", "naive-highs")
Row = dict[str, Any]


def families() -> list[str]:
    """Names of the files of the suite."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path != BEST_KNOWN)


def instances(family: str) -> dict[str, Instance]:
    """Instances of a file by name."""
    data = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
    return {name: Instance.from_json(row, name) for name, row in data["instances"].items()}


def policy_schedules(instance: Instance) -> Iterator[tuple[str, Schedule]]:
    """Schedules of all policies that can serve the instance, under their default settings."""
    for name in policy_names():
        try:
            yield name, simulate(instance, make_policy(name)).schedule
        except CspschedError:
            continue


def run(method: str, instance: Instance, objective: Objective, limit_s: float) -> Row:
    """One measurement; values in nanoseconds."""
    started = time.perf_counter()
    policies = list(policy_schedules(instance))
    heuristic = best_incumbent(instance, objective, [*list_schedules(instance), *policies])
    best_policy = best_incumbent(instance, objective, policies).value_ns if policies else None
    prepared, cpu = time.perf_counter(), time.process_time()
    row: Row = {"best_heuristic_ns": heuristic.value_ns, "heuristic_s": round(prepared - started, 3)}
    row["best_policy_ns"] = best_policy
    if method == "heuristic":
        return row | {"primal_ns": heuristic.value_ns, "dual_ns": None, "found_by": heuristic.found_by,
                      "status": "feasible", "seconds": row["heuristic_s"]}  # fmt: skip
    if method == "solve":
        result = solve_exactly(
            instance, objective, SearchLimits(time_limit_s=limit_s),
            candidates=[(heuristic.found_by, heuristic.schedule)],
        )  # fmt: skip
        row |= {
            "primal_ns": result.primal_ns, "dual_ns": result.dual_ns, "found_by": result.found_by,
            "certificate": result.certificate, "stop_reason": result.stop_reason.value,
            "status": result.status.value, "violations": len(result.violations()),
            "states": result.provenance["model"].get("states"),
        }  # fmt: skip
    else:
        engine = {"naive-cpsat": "SAT", "naive-highs": "HIGHS"}[method]
        horizon = min(
            sum(request.output_tokens for request in instance.requests), 2 * heuristic.schedule.num_batches
        )
        outcome = solve_naively(instance, objective, engine, horizon, limit_s)
        status = "optimal" if outcome.proven else "feasible" if outcome.primal_ns else "unknown"
        row |= {"primal_ns": outcome.primal_ns, "dual_ns": outcome.dual_ns, "status": status}
    row["cpu_seconds"] = round(time.process_time() - cpu, 3)
    return row | {"seconds": round(time.perf_counter() - prepared, 3)}


def gap_of(row: Row) -> float | None:
    """(U - L) / U, or None if either is not known."""
    primal, dual = row["primal_ns"], row.get("dual_ns")
    return None if not primal or dual is None else (primal - dual) / primal


def keep_best(rows: list[Row]) -> int:
    """Write better values and bounds of the solver into the file of best values; how many there were.

    Raises
    ------
    SystemExit
        If a bound is above a value: one of the two runs is wrong.
    """
    known = json.loads(BEST_KNOWN.read_text(encoding="utf-8")) if BEST_KNOWN.exists() else {}
    improved = 0
    for row in rows:
        if row["method"] != "solve":
            continue
        entry = known.setdefault(f"{row['instance']} {row['objective']}", {})
        if row["primal_ns"] < entry.get("dual_ns", 0) or row["dual_ns"] > entry.get(
            "primal_ns", row["dual_ns"]
        ):
            raise SystemExit(f"{row['instance']}: {row['primal_ns']}, {row['dual_ns']} contradict {entry}")
        if row["primal_ns"] < entry.get("primal_ns", row["primal_ns"] + 1):
            entry |= {"primal_ns": row["primal_ns"], "found_by": row["found_by"]}
            improved += 1
        if row["dual_ns"] > entry.get("dual_ns", -1):
            entry |= {"dual_ns": row["dual_ns"], "certificate": row["certificate"]}
            improved += 1
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(known.items())]
    BEST_KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return improved


def read_rows(path: Path) -> list[Row]:
    """Finished runs of a results file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plan(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Instance, Objective, str]]:
    """(family, name, instance, objective, method) of everything asked for that can be run."""
    for family in arguments.family or families():
        allowed = OBJECTIVES.get(family.split("-")[0], ("makespan", "latency"))
        chosen = [item for item in instances(family).items() if arguments.match in item[0]]
        for name, instance in chosen[: arguments.first]:
            for objective in [o for o in allowed if o in arguments.objective]:
                for method in arguments.method:
                    if method in ("solve", "heuristic") or is_naive(instance):
                        yield family, name, instance, Objective(objective), method


def main() -> None:
    """Run what is missing, append each line as it is there, print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", nargs="*", choices=families())
    parser.add_argument("--match", default="", help="only instances whose name contains this")
    parser.add_argument("--objective", nargs="*", default=["makespan", "latency"])
    parser.add_argument("--method", nargs="*", default=["solve"], choices=METHODS)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds an instance")
    parser.add_argument("--first", type=int, default=None, help="only the first K instances of a family")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    rows = read_rows(arguments.out)
    done = {(row["instance"], row["objective"], row["method"]) for row in rows}
    with arguments.out.open("a", encoding="utf-8") as file:
        for family, name, instance, objective, method in plan(arguments):
            if (name, objective.value, method) in done:
                continue
            row = {"family": family, "instance": name, "objective": objective.value, "method": method,
                   "limit_s": arguments.limit, "policy_class": instance.switches.policy_class,
                   "load": round(os.getloadavg()[0], 1), "versions": tool_versions()}  # fmt: skip
            row |= run(method, instance, objective, arguments.limit)
            row["gap"] = gap_of(row)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            gap = "-" if row["gap"] is None else f"{100 * row['gap']:.2f} %"
            seconds = f"{row['seconds']:7.2f} s"
            print(f"{name:24s} {objective.value:9s} {method:12s} {row['status']:10s} {gap:>9s} {seconds}")
    if arguments.keep:
        print(f"{keep_best(rows)} best values or bounds improved")


if __name__ == "__main__":
    main()
