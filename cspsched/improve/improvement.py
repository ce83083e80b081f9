"""Schedules better than every policy: the policies first, then the search, then the referee."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cspsched.errors import InternalError, UsageError
from cspsched.exact.watch import SILENT, Listener, Progress
from cspsched.executors import HERE, Pool, run_all
from cspsched.improve.ends import lower_end
from cspsched.improve.hit_orders import search_orders
from cspsched.improve.list_scheduler import refuse_unsuited
from cspsched.improve.long_runs import is_long
from cspsched.improve.outcome import Found, Improvement
from cspsched.improve.rivals import run_reference, run_rivals, with_hits_of
from cspsched.improve.search import Search, SearchState, new_state
from cspsched.improve.state import read_state, write_state
from cspsched.policies.base import DEFAULT_HEURISTICS
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective, Mixture, Objective
from cspsched.problem.result import StopReason
from cspsched.referee.judge import judge
from cspsched.referee.metrics import measure
from cspsched.referee.violation import Violation

SECONDS_BETWEEN_STATES = 30.0
STATE_COST_S = 1.5
"""Where writing a state takes longer, so many times longer is waited; that of a million requests does."""
UNKNOWN_NS = 2**62
ONE_BY_ONE = "vllm:max_num_seqs=1"
"""One request at a time: under no policy do requests decode faster."""


@dataclass(frozen=True, kw_only=True)
class ImproveLimits:
    """When a search stops, whatever comes first.

    Attributes
    ----------
    time_limit_s
        Seconds of all, policies and bound included; the search gets what they leave.
    max_steps
        Steps in all, those before a resume included; with this limit alone the result repeats exactly.
    seed, seeds
        Of the random moves; a resumed search goes on with its own. So many searches from this seed on.
    """

    time_limit_s: float | None = 60.0
    max_steps: int | None = None
    seed: int = 0
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.time_limit_s is None and self.max_steps is None:
            raise UsageError("a search without time limit and without a number of steps never ends")

    def half(self) -> ImproveLimits:
        """Limits of one of two searches."""
        return replace(
            self,
            time_limit_s=None if self.time_limit_s is None else self.time_limit_s / 2,
            max_steps=None if self.max_steps is None else self.max_steps // 2,
        )

    def clock(self, started: float) -> Callable[[], float] | None:
        """Seconds left since a moment of `time.monotonic`; None without a time limit."""
        limit_s = self.time_limit_s
        return None if limit_s is None else lambda: limit_s - (time.monotonic() - started)


def improve(
    instance: Instance,
    objective: AnyObjective = Objective.LATENCY,
    *,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    limits: ImproveLimits | None = None,
    state_file: Path | None = None,
    pool: Pool = HERE,
    listener: Listener = SILENT,
) -> Improvement:
    """Search for a schedule that is better than that of every policy; never worse than any of them.

    Requests that can never be served are left out. Ctrl-C ends the search, and what it found is returned.

    Parameters
    ----------
    heuristics
        Policies with their settings, shown as rows; each schedule is judged by the referee. What is found is
        never worse than the best of them and of the reference set, which does not depend on them.
    state_file
        The search goes on from it if it exists, and is written to it every half minute and at the end.
    pool
        Where the searches of several seeds run; the best counts. A mixture is searched by latency and by
        TTFT, with half of the limits each, and measured by itself.

    Raises
    ------
    UsageError
        If there is no policy, one is unknown or breaks the instance's switches, prefill and decode may not
        share a batch, or a state file is given with several seeds or a mixture.
    InputError
        If the state file cannot be read or written, or belongs to another search.
    """
    limits, tell = limits or ImproveLimits(), listener.step
    time_left, heuristics = limits.clock(time.monotonic()), list(heuristics)
    servable, rejections = with_hits_of(instance, heuristics).split_rejected()
    refuse_unsuited(servable)
    if state_file is not None and (limits.seeds > 1 or isinstance(objective, Mixture)):
        raise UsageError("the state of a search is that of one seed and of makespan, latency or TTFT")
    if state_file is not None and servable.switches.prefix_caching:
        raise UsageError("a search with prefix cache hits keeps no state; leave the state file out")
    resumed = state_file is not None and state_file.exists()
    state = None
    if state_file is not None and resumed and isinstance(objective, Objective):
        state = read_state(state_file, servable, objective)
    rivals = run_rivals(servable, objective, heuristics, tell)
    reference = run_reference(servable, objective, rivals, tell)
    tell(f"bounding {objective}")
    bound = lower_end(servable, objective, time_left=time_left)
    if time_left is not None:
        limits = replace(limits, time_limit_s=max(0.0, time_left()))
    tell(f"improving the order of {len(servable.requests)} requests")
    best = min((*reference, *rivals), key=lambda rival: rival.value_ns)
    task = SearchTask(
        instance=servable, objective=objective, known_ns=best.value_ns, bound_ns=bound.value_ns, limits=limits
    )
    if limits.seeds == 1:
        outcomes = [search_once(task, state=state, state_file=state_file, on_progress=listener.progress)]
    else:
        outcomes = search_seeds(task, pool, tell)
    kept = None if is_long(servable) else best.schedule
    policy = Found(schedule=kept, value_ns=best.value_ns, found_by=best.policy)
    found = min([policy, *(one.found for one in outcomes if one.found)], key=lambda one: one.value_ns)
    stop_reason = next(
        (one.stop_reason for one in outcomes if one.stop_reason is StopReason.INTERRUPTED),
        outcomes[0].stop_reason,
    )
    return Improvement(
        instance=servable,
        objective=objective,
        rivals=rivals,
        reference=reference,
        schedule=found.schedule,
        value_ns=found.value_ns,
        found_by=found.found_by,
        bound=bound,
        steps=sum(one.steps for one in outcomes),
        stop_reason=StopReason.PROVEN if found.value_ns == bound.value_ns else stop_reason,
        seed=limits.seed,
        rejections=rejections,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchTask:
    """A search for a schedule below a known value, of an instance whose requests can all be served.

    `bound_ns` is a proven bound, for the progress.
    """

    instance: Instance
    objective: AnyObjective
    known_ns: int
    bound_ns: int
    limits: ImproveLimits


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchOutcome:
    """What a search found, None if nothing below the known value, and how it went."""

    found: Found | None
    stop_reason: StopReason
    steps: int


def find_better(
    instance: Instance,
    objective: AnyObjective,
    known_ns: int,
    bound_ns: int,
    limits: ImproveLimits,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Found | None, StopReason]:
    """Search for a schedule below a known value; None if there was none within the limits.

    Parameters
    ----------
    instance
        All of its requests can be served.
    known_ns, bound_ns
        Value of the best known schedule, and a proven bound, for the progress.

    Raises
    ------
    UsageError
        If prefill and decode may not share a batch.
    """
    task = SearchTask(
        instance=instance, objective=objective, known_ns=known_ns, bound_ns=bound_ns, limits=limits
    )
    outcome = search_once(task, on_progress=on_progress)
    return outcome.found, outcome.stop_reason


def search_once(
    task: SearchTask,
    *,
    state: SearchState | None = None,
    state_file: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchOutcome:
    """One search, from a state or from the beginning, judged by the referee."""
    instance, objective = task.instance, task.objective
    if isinstance(objective, Mixture):
        return _search_mixture(task, objective)
    if instance.switches.prefix_caching:
        return _search_with_hits(task, objective, on_progress)
    state = state or new_state(task.limits.seed)
    search = Search(instance, objective, state)
    run = _Run(search, task.limits, task.known_ns, task.bound_ns, on_progress)
    stop_reason = run.until_stopped(lambda: _keep(state_file, instance, objective, state))
    found = _better(search, instance, objective, task.known_ns)
    return SearchOutcome(found=found, stop_reason=stop_reason, steps=state.steps)


def search_seeds(task: SearchTask, pool: Pool, tell: Callable[[str], None]) -> list[SearchOutcome]:
    """One search for each seed, from that of the task on."""
    limits = task.limits
    tasks = [replace(task, limits=replace(limits, seed=limits.seed + k)) for k in range(limits.seeds)]
    outcomes: list[SearchOutcome] = []
    try:
        for outcome in run_all(search_once, tasks, pool.executor, workers=pool.workers):
            outcomes.append(outcome)
            what = "nothing better" if outcome.found is None else outcome.found.found_by
            tell(f"seed {tasks[len(outcomes) - 1].limits.seed}: {what} in {outcome.steps} steps")
    except KeyboardInterrupt:
        outcomes.append(SearchOutcome(found=None, stop_reason=StopReason.INTERRUPTED, steps=0))
    return outcomes


def _search_with_hits(
    task: SearchTask, objective: Objective, on_progress: Callable[[Progress], None] | None
) -> SearchOutcome:
    """The better of list schedules without hits and of orders with them, each with half of the limits."""
    started, half = time.monotonic(), task.limits.half()
    plain = replace(task.instance, switches=replace(task.instance.switches, prefix_caching=False))
    first = search_once(replace(task, instance=plain, limits=half), on_progress=on_progress)
    if first.stop_reason is StopReason.INTERRUPTED:
        return first
    known_ns = task.known_ns if first.found is None else first.found.value_ns

    def is_left(steps: int) -> bool:
        too_many = half.max_steps is not None and steps >= half.max_steps
        too_late = (
            task.limits.time_limit_s is not None and time.monotonic() - started >= task.limits.time_limit_s
        )
        return not too_many and not too_late

    def report(best_ns: int) -> None:
        if on_progress is not None:
            elapsed_s = time.monotonic() - started
            best_ns = min(best_ns, known_ns)
            on_progress(Progress(elapsed_s=elapsed_s, best_ns=best_ns, bound_ns=task.bound_ns, share=None))

    found, steps = search_orders(task.instance, objective, seed=half.seed, goes_on=is_left, on_best=report)
    better = first.found
    if found is not None and found.value_ns < known_ns and found.schedule is not None:
        judged = judge(task.instance, found.schedule)
        _require(judged.violations, found.value_ns, lambda: judged.metrics.objective_ns(objective))
        better = found
    return SearchOutcome(found=better, stop_reason=first.stop_reason, steps=first.steps + steps)


def _search_mixture(task: SearchTask, mixture: Mixture) -> SearchOutcome:
    """The best by the mixture of schedules searched by latency and by TTFT, and of serving one by one."""
    instance, half = task.instance, task.limits.half()
    found, steps, reason = [], 0, StopReason.FINISHED
    for basis in (Objective.LATENCY, Objective.TTFT):
        basic = replace(task, objective=basis, known_ns=UNKNOWN_NS, bound_ns=0, limits=half)
        outcome = search_once(basic)
        steps, reason = steps + outcome.steps, outcome.stop_reason
        if outcome.found and outcome.found.schedule:
            value_ns = measure(instance, outcome.found.schedule).objective_ns(mixture)
            found.append(replace(outcome.found, value_ns=value_ns))
        if reason is StopReason.INTERRUPTED:
            break
    (lone,) = run_rivals(instance, mixture, [ONE_BY_ONE], lambda _: None)
    found.append(Found(schedule=lone.schedule, value_ns=lone.value_ns, found_by=f"one by one ({ONE_BY_ONE})"))
    best = min(found, key=lambda one: one.value_ns)
    return SearchOutcome(
        found=best if best.value_ns < task.known_ns else None, stop_reason=reason, steps=steps
    )


class _Run:
    """A search against its limits."""

    def __init__(
        self,
        search: Search,
        limits: ImproveLimits,
        rival_ns: int,
        bound_ns: int,
        listener: Callable[[Progress], None] | None,
    ) -> None:
        self._search, self._limits = search, limits
        self._rival_ns, self._bound_ns = rival_ns, bound_ns
        self._listener = listener
        self._started = time.monotonic()

    def until_stopped(self, keep: Callable[[], None]) -> StopReason:
        """Search until a limit or Ctrl-C; the state is kept now and then, and at the end."""
        reason, kept, cost_s = StopReason.TIME_LIMIT, self._started, 0.0
        try:
            while not self._is_over():
                self._search.step()
                self._report()
                if time.monotonic() - kept > SECONDS_BETWEEN_STATES * max(1.0, cost_s / STATE_COST_S):
                    cost_s = -time.monotonic()
                    keep()
                    kept = time.monotonic()
                    cost_s += kept
            if self._limits.max_steps == self._search.state.steps:
                reason = StopReason.FINISHED
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
        keep()
        return reason

    def _is_over(self) -> bool:
        limits, state = self._limits, self._search.state
        if limits.max_steps is not None and state.steps >= limits.max_steps:
            return True
        elapsed_s = time.monotonic() - self._started
        return limits.time_limit_s is not None and elapsed_s >= limits.time_limit_s

    def _report(self) -> None:
        if self._listener is None:
            return
        best_ns = min(self._search.state.best_ns or self._rival_ns, self._rival_ns)
        elapsed_s = time.monotonic() - self._started
        limits, shares = self._limits, list[float]()
        if limits.time_limit_s:
            shares.append(elapsed_s / limits.time_limit_s)
        if limits.max_steps:
            shares.append(self._search.state.steps / limits.max_steps)
        share = max(shares, default=None)
        self._listener(Progress(elapsed_s=elapsed_s, best_ns=best_ns, bound_ns=self._bound_ns, share=share))


def _keep(path: Path | None, instance: Instance, objective: Objective, state: SearchState) -> None:
    if path is not None:
        write_state(path, instance, objective, state)


def _better(search: Search, instance: Instance, objective: Objective, known_ns: int) -> Found | None:
    """What the search found, with the referee's word on it, if it is below a known value."""
    state = search.state
    if state.best is None or state.best_ns is None or state.best_ns >= known_ns:
        return None
    schedule = search.scheduler.schedule(state.best)
    judged = judge(instance, schedule)
    _require(judged.violations, state.best_ns, lambda: judged.metrics.objective_ns(objective))
    kept = None if is_long(instance) else schedule
    return Found(schedule=kept, value_ns=state.best_ns, found_by=state.found_by)


def _require(violations: Sequence[Violation], value_ns: int, measure_ns: Callable[[], int]) -> None:
    """The referee's word on what the search found."""
    if violations:
        raise InternalError(f"the improvement search breaks a rule: {violations[0].message}; please report")
    measured_ns = measure_ns()
    if measured_ns != value_ns:
        raise InternalError(
            f"the improvement search states {value_ns} ns, its schedule has {measured_ns} ns; please report"
        )
