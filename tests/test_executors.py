"""Executors: the same answers in the same order, wherever they are made."""

from __future__ import annotations

import importlib.util
import os

import pytest

from cspsched.errors import InputError, UsageError
from cspsched.executors import Executor, run_all

HAS_RAY = importlib.util.find_spec("ray") is not None
EXECUTORS = [
    Executor.SERIAL,
    Executor.PROCESSES,
    pytest.param(
        Executor.RAY,
        marks=[
            pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed (pip install 'cspsched[ray]')"),
            pytest.mark.filterwarnings("ignore"),
        ],
    ),
]


def square(number: int) -> int:
    if number < 0:
        raise InputError(f"{number} is negative")
    return number * number


def process_of(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_answers_come_in_order(executor):
    """More calls than workers, in the order of the arguments."""
    assert list(run_all(square, range(7), executor, workers=2)) == [0, 1, 4, 9, 16, 25, 36]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_of_a_call_is_the_callers(executor):
    """What a call raises is raised here, with its text."""
    with pytest.raises(InputError, match="-1 is negative"):
        list(run_all(square, [1, -1, 2], executor, workers=2))


def test_processes_are_others():
    """Calls do not run in the process of the caller."""
    assert os.getpid() not in set(run_all(process_of, range(3), Executor.PROCESSES, workers=2))


def test_no_calls_no_answers():
    """An empty list is no error."""
    assert list(run_all(square, [], Executor.PROCESSES)) == []


def test_nonsense_is_refused():
    """At least one worker."""
    with pytest.raises(UsageError, match="0 workers"):
        run_all(square, [1], Executor.SERIAL, workers=0)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_a_missing_ray_says_what_to_do():
    """The error names the extra."""
    with pytest.raises(UsageError, match=r"cspsched\[ray\]"):
        run_all(square, [1], Executor.RAY)
