"""Independent calls, one after another, in processes, or on Ray: one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from cspsched.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


class Executor(StrEnum):
    """Where independent calls run; the answers are the same."""

    SERIAL = "serial"
    """Here, one after another."""
    PROCESSES = "processes"
    """In new processes of this machine."""
    RAY = "ray"
    """On Ray: the cluster of RAY_ADDRESS if it is set, else one started here for the time of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Where independent calls run, and how many at the same time."""

    executor: Executor | str = Executor.SERIAL
    workers: int = 1


HERE = Pool()
"""One after another."""


def run_all(
    function: Callable[[Argument], Answer],
    arguments: Sequence[Argument],
    executor: Executor | str = Executor.SERIAL,
    *,
    workers: int = 1,
) -> Iterator[Answer]:
    """Answers of a function in the order of its arguments, each as soon as all before it are there.

    A caller that stops reading, and Ctrl-C, end what has not begun.

    Parameters
    ----------
    function
        A function of a module; it and its arguments and answers travel to other processes.
    workers
        Calls at the same time.

    Raises
    ------
    UsageError
        If the number of workers makes no sense, or Ray is not installed.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers, expected at least 1")
    match Executor(executor):
        case Executor.SERIAL:
            return map(function, arguments)
        case Executor.PROCESSES:
            return _in_processes(function, arguments, workers)
        case Executor.RAY:
            return _on_ray(_import_ray(), function, arguments, workers)


def _in_processes(
    function: Callable[[Argument], Answer], arguments: Sequence[Argument], workers: int
) -> Iterator[Answer]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Fresh processes: a fork would copy locks that threads of numba or the solver hold.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        for future in [pool.submit(function, argument) for argument in arguments]:
            yield future.result()
    except BaseException:
        _abandon(pool)
        raise
    pool.shutdown()


def _abandon(pool: ProcessPoolExecutor) -> None:
    """Let nothing begin any more, and do not wait for what has begun."""
    pool.shutdown(wait=False, cancel_futures=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(
            "executor ray needs Ray, which is not installed: pip install 'cspsched[ray]', or take processes"
        ) from None
    return ray


def _on_ray(
    ray: Any, function: Callable[[Argument], Answer], arguments: Sequence[Argument], workers: int
) -> Iterator[Answer]:
    """At most so many tasks at a time, each on one CPU of the cluster."""
    is_ours = not ray.is_initialized()
    if is_ours:
        _start(ray, workers)
    try:
        remote = ray.remote(num_cpus=1)(function)
        running = [remote.remote(argument) for argument in arguments[:workers]]
        for number in range(len(arguments)):
            yield ray.get(running[number])
            if len(running) < len(arguments):
                running.append(remote.remote(arguments[len(running)]))
    finally:
        if is_ours:
            ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    import logging
    import os

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=workers, include_dashboard=False, **quiet)
