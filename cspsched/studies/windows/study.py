"""Windows solved to the end: how far a policy is from the optimum of each, and the mean over a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.errors import InternalError, UsageError
from cspsched.exact.watch import SILENT, Listener, SearchLimits
from cspsched.executors import HERE, Pool, run_all
from cspsched.improve.rivals import REFERENCE_SET, Rival, run_rivals
from cspsched.problem.excess import Excess
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import Status, tool_versions
from cspsched.studies.solving import solve
from cspsched.studies.windows.sample import Window, WindowSample, WindowShape, sample_windows

WINDOWS_SCHEMA = "cspsched/windows/1"
RESAMPLES = 10_000
CLOSED = 1e-6
"""An optimum is known if bound and best schedule are no further apart: batch times are whole nanoseconds, the
solver's slopes are not."""
SAMPLE_NOT_BOUND = (
    "A sample, not a bound: windows are short, leave most of the machine as a constant load, and do not see "
    "what a choice does later."
)
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WindowTask:
    """What is to be done with a window, wherever it is done."""

    instance: Instance
    policy: str
    objective: AnyObjective
    limits: SearchLimits


@dataclass(frozen=True, kw_only=True)
class WindowVerdict:
    """A policy's value of a window, the best schedule's and the proven bound, in nanoseconds."""

    policy_ns: int
    best_ns: int
    bound_ns: int
    certificate: str
    status: Status

    @property
    def proven(self) -> bool:
        """Whether the optimum is known to a millionth, closely enough for a mean: see `status`."""
        return self.best_ns - self.bound_ns <= CLOSED * self.best_ns

    @property
    def excess(self) -> Excess:
        """How far the policy is above the optimum of the window."""
        return Excess.of(self.policy_ns, best_ns=self.best_ns, bound_ns=self.bound_ns)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowStudy:
    """Windows of a policy's run with their verdicts; None where the window had no room.

    `stopped` says that Ctrl-C ended the study; the windows that were not judged are not in it.
    """

    policy: str
    objective: AnyObjective
    shape: WindowShape
    seed: int
    windows: tuple[Window, ...]
    verdicts: tuple[WindowVerdict | None, ...]
    rejections: tuple[Rejection, ...]
    num_batches: int
    stopped: bool

    @cached_property
    def judged(self) -> tuple[WindowVerdict, ...]:
        """Verdicts of the windows that had room."""
        return tuple(verdict for verdict in self.verdicts if verdict is not None)

    @property
    def num_without_room(self) -> int:
        """Windows to which the background leaves no room."""
        return len(self.verdicts) - len(self.judged)

    @property
    def num_unproven(self) -> int:
        """Windows whose optimum was not proven within the limit."""
        return sum(not verdict.proven for verdict in self.judged)

    @cached_property
    def excesses(self) -> FloatArray:
        """Both ends of the excess of the judged windows that have one, shape (num, 2): 0 has no shares."""
        known = [verdict.excess for verdict in self.judged if None not in verdict.excess]
        return np.array(known, dtype=np.float64).reshape(-1, 2)

    @property
    def mean_excess(self) -> tuple[float, float]:
        """Mean over the judged windows of the lower and of the upper ends."""
        low, high = self.excesses.mean(axis=0).tolist()
        return low, high

    @cached_property
    def confidence(self) -> tuple[float, float]:
        """95 % bootstrap interval: from that of the mean lower end to that of the mean upper end."""
        means = bootstrap_means(self.excesses, self.seed)
        return float(np.percentile(means[:, 0], 2.5)), float(np.percentile(means[:, 1], 97.5))

    def to_json(self) -> dict[str, Any]:
        """Every window and the mean, with a schema version and units in the names."""
        mean = self.mean_excess if len(self.excesses) else (None, None)
        confidence = self.confidence if len(self.excesses) else (None, None)
        return {
            "schema": WINDOWS_SCHEMA,
            "note": SAMPLE_NOT_BOUND,
            "versions": tool_versions(),
            "policy": self.policy,
            "objective": self.objective.value,
            "seed": self.seed,
            "num_batches": self.num_batches,
            "size": self.shape.size,
            "output_tokens": self.shape.output_tokens,
            "ahead": self.shape.ahead,
            "rejected": [rejection.reason for rejection in self.rejections],
            "num_windows": len(self.windows),
            "num_unproven": self.num_unproven,
            "num_without_room": self.num_without_room,
            "stopped": self.stopped,
            "mean_excess_at_least": mean[0],
            "mean_excess_at_most": mean[1],
            "confidence_low": confidence[0],
            "confidence_high": confidence[1],
            "windows": [
                _window_to_json(window, verdict)
                for window, verdict in zip(self.windows, self.verdicts, strict=True)
            ],
        }


def study_windows(
    instance: Instance,
    policy: str,
    objective: AnyObjective,
    sample: WindowSample,
    *,
    window_limit_s: float = 10.0,
    pool: Pool = HERE,
    listener: Listener = SILENT,
) -> WindowStudy:
    """Simulate a policy, sample windows of the run, and hold it against the optimum of each.

    In a window the policy starts anew, on the window's requests alone, under the limits and batch times that
    the background leaves; so does the exact solver.

    Parameters
    ----------
    window_limit_s
        For each window, the solver's work in its own units (docs/solve.md), so that the study repeats; a
        window that is not proven by then keeps both ends.
    pool
        Where windows are solved; each with one thread, so the processors are shared evenly.

    Raises
    ------
    UsageError
        If the policy swaps, caches prefixes, or does what the instance does not allow.
    """
    tell, shape, seed = listener.step, sample.shape, sample.seed
    servable, rejections = instance.split_rejected()
    run = _rival(servable, objective, policy, tell)
    history = run.whole_run.metrics.history
    windows = sample_windows(history, shape, num=sample.num, seed=seed)
    limits = SearchLimits(time_limit_s=window_limit_s, num_workers=1, seed=seed, deterministic=True)
    roomy = [window.instance for window in windows if window.instance is not None]
    tasks = [WindowTask(instance=one, policy=policy, objective=objective, limits=limits) for one in roomy]
    found, stopped = _collect(tasks, pool, tell)
    windows, verdicts = _matched(windows, found)
    return WindowStudy(
        policy=run.policy,
        objective=objective,
        shape=shape,
        seed=seed,
        windows=tuple(windows),
        verdicts=verdicts,
        rejections=rejections,
        num_batches=history.schedule.num_batches,
        stopped=stopped,
    )


def judge_window(task: WindowTask) -> WindowVerdict:
    """The policy's value of a window and its optimum, or both ends of it."""
    policy = _rival(task.instance, task.objective, task.policy, lambda _: None)
    heuristics = (task.policy, *(name for name in REFERENCE_SET if name != task.policy))
    result = solve(task.instance, task.objective, limits=task.limits, heuristics=heuristics).result
    if result.primal_ns is None or result.dual_ns is None:
        raise InternalError("the exact solver returned no value for a window with a known schedule")
    return WindowVerdict(
        policy_ns=policy.value_ns,
        best_ns=result.primal_ns,
        bound_ns=result.dual_ns,
        certificate=result.certificate or "",
        status=result.status,
    )


def bootstrap_means(excesses: FloatArray, seed: int) -> FloatArray:
    """Means of resamples with replacement, shape (RESAMPLES, columns)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(excesses), size=(RESAMPLES, len(excesses)))
    means: FloatArray = excesses[drawn].mean(axis=1)
    return means


def _rival(instance: Instance, objective: AnyObjective, policy: str, tell: Callable[[str], None]) -> Rival:
    """The policy's schedule, which the referee accepts."""
    (rival,) = run_rivals(instance, objective, [policy], tell)
    if rival.whole_run.schedule.evicted_to_host.any():
        raise UsageError(f"policy {policy} swaps, which windows do not know; leave it out")
    return rival


def _collect(
    tasks: Sequence[WindowTask], pool: Pool, tell: Callable[[str], None]
) -> tuple[list[WindowVerdict], bool]:
    """Verdicts in order, as many as there are before Ctrl-C, and whether it was pressed."""
    found: list[WindowVerdict] = []
    try:
        for verdict in run_all(judge_window, tasks, pool.executor, workers=pool.workers):
            found.append(verdict)
            tell(_line(len(found), len(tasks), verdict))
    except KeyboardInterrupt:
        return found, True
    return found, False


def _line(number: int, count: int, verdict: WindowVerdict) -> str:
    low, high = (math.nan if end is None else end for end in verdict.excess)
    what = f"{low:.2%}" if verdict.proven else f"{low:.2%} to {high:.2%}, not proven"
    return f"window {number} of {count}: {what}"


def _matched(
    windows: list[Window], found: list[WindowVerdict]
) -> tuple[list[Window], tuple[WindowVerdict | None, ...]]:
    """Windows up to the last that was judged, with their verdicts."""
    verdicts: list[WindowVerdict | None] = []
    left = iter(found)
    for window in windows:
        verdict = None if window.instance is None else next(left, None)
        if window.instance is not None and verdict is None:
            break
        verdicts.append(verdict)
    return windows[: len(verdicts)], tuple(verdicts)


def _window_to_json(window: Window, verdict: WindowVerdict | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "batch": window.batch,
        "start_ns": window.start_ns,
        "num_residents": window.num_residents,
        "num_waiting": window.num_waiting,
        "num_arriving": window.num_arriving,
        "background_decodes": window.background.num_decodes,
        "background_context_tokens": window.background.context_tokens,
        "held_blocks": window.background.held_blocks,
    }
    if verdict is not None:
        low, high = verdict.excess
        data |= {
            "policy_ns": verdict.policy_ns,
            "best_ns": verdict.best_ns,
            "bound_ns": verdict.bound_ns,
            "gap_ns": verdict.best_ns - verdict.bound_ns,
            "status": verdict.status.value,
            "proven": verdict.proven,
            "certificate": verdict.certificate,
            "excess_at_least": low,
            "excess_at_most": high,
        }
    return data
