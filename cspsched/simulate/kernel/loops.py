"""The loop of a policy that decides for each request: made of its functions, compiled when asked for."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from cspsched.compiled.jit import outer
from cspsched.simulate.kernel.actions import begin
from cspsched.simulate.kernel.layout import FINISHED, LOG_FULL, Kernel
from cspsched.simulate.kernel.progress import goes_on, has_room
from cspsched.simulate.kernel.together import conclude_together, regroup

Loop = Callable[[Kernel], int]
Act = Callable[[Kernel], None]


def make_loop(
    name: str,
    *,
    submit: Act,
    step: Act,
    prepare: Callable[[Kernel], bool] = regroup,
    conclude: Loop = conclude_together,
    goes_on: Callable[[Kernel], bool] = goes_on,
) -> Loop:
    """Return a loop that makes every decision there is: until all is done, a log is full, or it fails.

    Parameters
    ----------
    name
        Of the loop, none other's: its machine code is kept under it.
    submit
        Queues all arrivals.
    step
        Decides a batch.
    prepare
        Puts what the last batch left in order, before a decision; true if it ran batches instead.
    conclude
        Runs what was decided, or waits; an answer other than FINISHED ends the loop.
    goes_on
        Whether there is a decision to make.
    """
    parts = {"_submit": submit, "_prepare": prepare, "_step": step, "_conclude": conclude, "goes_on": goes_on}
    code: Any = _loop
    made = FunctionType(code.__code__, {**code.__globals__, **parts}, name)
    made.__qualname__, made.__module__ = name, code.__module__
    return outer(made)


# Names of `_loop` that `make_loop` gives their meaning.
_submit: Act = begin
_prepare: Callable[[Kernel], bool] = regroup
_step: Act = begin
_conclude: Loop = conclude_together


def _loop(k: Kernel) -> int:
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        _submit(k)
        if _prepare(k):
            continue
        begin(k)
        _step(k)
        answer = _conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED
