"""Schedulers for `vllm serve --scheduler-cls` that record what vLLM V1 decides.

    CSPSCHED_RECORDING=run.jsonl vllm serve MODEL \
        --scheduler-cls cspsched.recording.vllm_scheduler.RecordingScheduler

`RecordingScheduler` stands on `AsyncScheduler`, vLLM's default; on any other base vLLM switches asynchronous
scheduling off. `RecordingSyncScheduler` is for `--no-async-scheduling`. The classes are built when they are
first asked for, so that this module can be imported where there is no vLLM.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module

from cspsched.errors import UsageError
from cspsched.recording.recorder import recording_class

ENVIRONMENT_VARIABLE = "CSPSCHED_RECORDING"
"""Names the file of the log; `{pid}` in it becomes the number of the process."""
BASES = {
    "RecordingScheduler": ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    "RecordingSyncScheduler": ("vllm.v1.core.sched.scheduler", "Scheduler"),
}


def __getattr__(name: str) -> type:
    """Class of a name, built on vLLM's.

    Raises
    ------
    AttributeError
        If there is no such class.
    UsageError
        If vLLM is not installed, or its scheduler has another interface than the recorder knows.
    """
    if name not in BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return scheduler_class(name)


def log_path() -> str | None:
    """File that the environment names for the log."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or None


# vLLM compares and pickles the class by name: asked twice, it has to be the same one.
@cache
def scheduler_class(name: str) -> type:
    """Return the recording class by that name, made once.

    Raises
    ------
    UsageError
        If vLLM's scheduler of that name is missing.
    """
    module, attribute = BASES[name]
    try:
        base = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{name} needs {attribute} of {module}: {error}; install vLLM 0.19 to 0.33"
        ) from None
    made = recording_class(base, log_path)
    made.__name__ = made.__qualname__ = name
    made.__module__ = __name__
    return made
