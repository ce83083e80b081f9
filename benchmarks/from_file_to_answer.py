"""CPU time and peak memory of whole commands, from a trace file to the JSON, with the values checked.

Usage: python benchmarks/from_file_to_answer.py [--requests N ...] [--commands simulate compare] [--json FILE]

The workload is that of benchmarks/simulator_speed.py at 80 % load, written to a file once. Each command runs
as a process of its own, start and imports included; the first run of all, on few requests, compiles. What it
prints is held against the slow way round, in a process of its own, where entries are few enough: every entry
of the schedule is made, walked by the rules one by one, and measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simulator_speed import Workload, calibrated_rate, draw_workload

from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.problem.schedule import COLUMNS, Schedule
from cspsched.referee.history import follow
from cspsched.referee.metrics import Metrics
from cspsched.referee.rules import find_violations
from cspsched.serving import make_instance
from cspsched.simulate import simulate
from cspsched.trace import read_trace
from cspsched.trace.trace import Trace

LOAD, SEED = 0.8, 1
MOST_FOR_ENTRIES = 100_000
"""Requests up to which the slow way round is gone: it takes minutes and gigabytes for a million."""
HEURISTICS = ("vllm", "sarathi")
COMMANDS = {
    "simulate": ["simulate", "--policy", HEURISTICS[0], "--json"],
    "compare": ["compare", "--heuristics", *HEURISTICS, "--json"],
}


def write_trace_file(workload: Workload, path: Path) -> None:
    """Write columns as a native trace."""
    columns = (workload.arrival_ns, workload.prompt_tokens, workload.output_tokens)
    rows = (
        f"r{i},{arrival // 10**9}.{arrival % 10**9:09d},{prompt},{output}\n"
        for i, (arrival, prompt, output) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    )
    with path.open("w", encoding="utf-8") as file:
        file.write("request_id,arrival_s,prompt_tokens,output_tokens\n")
        file.writelines(rows)


def run(command: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Printed JSON of a command; its CPU seconds and the peak of its memory in MiB."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.dup2(write, 1)
        os.execv(sys.executable, [sys.executable, "-m", "cspsched", *command])
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"cspsched {' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return json.loads(text), {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def entry_by_entry(path: Path) -> dict[str, dict[str, Any]]:
    """Metrics of each policy by the walk along the entries, which finds no rule broken."""
    instance = make_instance(read_trace(path)).split_rejected()[0]
    found = {}
    for name in HEURISTICS:
        runs = simulate(instance, make_policy(name)).schedule
        entries = Schedule(**{column: getattr(runs, column) for column in COLUMNS})
        assert find_violations(instance, entries) == [], name
        found[name] = Metrics(history=follow(instance, entries)).to_json()
    return found


def check(command: str, printed: dict[str, Any], expected: dict[str, dict[str, Any]]) -> None:
    """Hold what a command printed against the metrics of the slow way round."""
    rows = printed["policies"] if command == "compare" else [printed]
    for row in rows:
        for name, value in expected[row["policy"]].items():
            assert row[name] == value, (command, row["policy"], name)


def device() -> Instance:
    """The default device, with a request that is there."""
    request = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)
    return make_instance(Trace(name="one", format="generated", requests=(request,)))


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--entries-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.entries_of:
        print(json.dumps(entry_by_entry(arguments.entries_of)))
        return 0
    rate, rows = calibrated_rate(device(), LOAD, SEED), []
    with TemporaryDirectory() as folder:
        for count in arguments.requests:
            path = Path(folder) / f"poisson-{count}.csv"
            write_trace_file(draw_workload(count, rate, SEED), path)
            expected = None
            if count <= MOST_FOR_ENTRIES:
                slow = [sys.executable, __file__, "--entries-of", str(path)]
                expected = json.loads(subprocess.run(slow, check=True, capture_output=True).stdout)
            for command in arguments.commands:
                name, *options = COMMANDS[command]
                if not rows:
                    run([name, str(path), *options])
                printed, used = run([name, str(path), *options])
                if expected:
                    check(command, printed, expected)
                rows.append({"requests": count, "command": command, **used, "checked": bool(expected)})
                print(
                    f"{count:>9,} {command:9} {used['cpu_s']:7.2f} CPU s {used['peak_mib']:7,.0f} MiB "
                    f"{'values as entry by entry' if expected else ''}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
