"""What a first run compiles: little, off the clock, and with the result of a later run."""

import json
import os
import subprocess
import sys
import time

import pytest

from cspsched.cli.console import LiveLine
from cspsched.exact.watch import Progress, SearchLimits, Watch
from cspsched.problem.objectives import Objective
from tests.support.places import ROOT

COLD_RUN = """
import json
from cspsched.compiled import batch_time
from cspsched.compiled.jit import MARK, compiled
from cspsched.exact.packing import heuristic as packing_heuristic, starts
from cspsched.exact.parts import label_store
from cspsched.exact.solver import solve_exactly
from cspsched.exact.search import SearchLimits
from cspsched.exact.states import best_first, heuristic
from cspsched.problem.objectives import Objective
from tests.support.instances import RUN_TO_COMPLETION, three_equal

notes = []
result = solve_exactly(
    three_equal(RUN_TO_COMPLETION),
    Objective.MAKESPAN,
    SearchLimits(time_limit_s=3),
    on_progress=lambda progress: notes.append(progress.note),
)
modules = (batch_time, best_first, label_store, heuristic, packing_heuristic, starts)
functions = {f for module in modules for f in vars(module).values() if hasattr(f, MARK)}
print(json.dumps({
    "primal_ns": result.primal_ns,
    "dual_ns": result.dual_ns,
    "notes": [note for note in notes if note],
    "compiled": {f.__name__: len(compiled(f).signatures) for f in functions},
}))
"""
WIDTHS_OF_LABELS = {"reach", "push"}
"""The start has no label before it; that number is wider than those of labels."""


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """What a run says that finds nothing compiled; it takes longer than its time limit."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cold")), "PYTHONPATH": str(ROOT)}
    env.pop("NUMBA_DISABLE_JIT", None)
    run = subprocess.run(
        [sys.executable, "-c", COLD_RUN], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_a_cold_run_proves_what_a_warm_one_does(cold):
    """E3 without holding, in three seconds of search: proven however long the machine compiles before."""
    assert cold["primal_ns"] == cold["dual_ns"] == 200_709_604


def test_a_cold_run_says_that_it_compiles(cold):
    """Once, though there is more than one thing to compile."""
    assert len(cold["notes"]) == 1
    assert "compiling" in cold["notes"][0]


def test_nothing_is_compiled_twice(cold):
    """One kind of numbers for each function: neither a constant nor a counter's first 0 makes a copy."""
    most = {name: 2 if name in WIDTHS_OF_LABELS else 1 for name in cold["compiled"]}

    assert {name for name, count in cold["compiled"].items() if count > most[name]} == set()
    assert cold["compiled"]["advance_packing"] == 1


def test_the_clock_stands_still_in_a_pause(monkeypatch):
    """What is no search does not count, and is told once, before it begins."""
    now, heard, left = [1000.0], [], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(SearchLimits(time_limit_s=60), 2, 1, heard.append)
    for _ in range(2):
        now[0] += 1
        watch.pause("compiling")
        now[0] += 10
        left.append(watch.remaining_s)
        watch.resume()
        now[0] += 2
        left.append(watch.remaining_s)

    assert left == [59, 57, 56, 54]
    assert [progress.note for progress in heard] == ["compiling"]


def test_a_pause_is_shown_at_once(capsys):
    """In a pipe too, where other lines come seconds apart; it stands where the names would."""
    live = LiveLine(Objective.LATENCY, 1)
    names = {"best_by": "list schedule", "bound_by": "pair-delay"}
    for note in ("", "compiling"):
        live(Progress(elapsed_s=0.1, best_ns=2, bound_ns=1, note=note, **names))
    first, second = capsys.readouterr().err.splitlines()

    assert first.endswith("best by list schedule, bound by pair-delay")
    assert second.endswith("gap 50.00%  compiling")
