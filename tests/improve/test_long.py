"""Long schedules: a search that drops them finds the same."""

from __future__ import annotations

import pytest

from cspsched.errors import UsageError
from cspsched.improve import ImproveLimits, improve, long_runs
from cspsched.problem.objectives import Objective
from tests.support.instances import mixed

STEPS = ImproveLimits(time_limit_s=None, max_steps=30)


@pytest.mark.parametrize("objective", list(Objective))
def test_a_search_that_keeps_no_schedule_finds_the_same(objective, monkeypatch):
    """Values of policies and of the search do not depend on whether schedules are kept."""
    whole = improve(mixed(arrivals=True), objective, limits=STEPS)
    monkeypatch.setattr(long_runs, "MOST_ENTRIES", 0)
    dropped = improve(mixed(arrivals=True), objective, limits=STEPS)

    assert dropped.to_json() == whole.to_json()
    assert dropped.schedule is None
    assert whole.schedule is not None


def test_what_takes_hours_is_refused(monkeypatch, tmp_path):
    """A policy that decides step by step is not simulated on a long trace."""
    monkeypatch.setattr(long_runs, "MOST_ENTRIES", 0)
    code = "from tests.support.scripted import LastFirst\n\n\nclass Mine(LastFirst): ...\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(UsageError, match="last-first:1 is not compiled, and plain Python takes hours"):
        improve(mixed(arrivals=True), heuristics=[f"{tmp_path / 'mine.py'}:Mine"], limits=STEPS)
