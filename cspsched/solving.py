"""Solve an instance: the policies' schedules as first incumbents, then the exact solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cspsched.errors import InfeasibleError, InputError
from cspsched.exact.search import Progress, SearchLimits
from cspsched.exact.solver import require_no_swap, solve_exactly
from cspsched.policies.base import make_policy
from cspsched.problem.infeasibility import find_infeasibility
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.json_io import read_json
from cspsched.problem.metrics import Objective
from cspsched.problem.referee import find_violations
from cspsched.problem.result import RESULT_SCHEMA, Result
from cspsched.problem.schedule import SCHEDULE_SCHEMA, Schedule
from cspsched.simulate.kernel import run_policy

DEFAULT_HEURISTICS = ("vllm", "sarathi")
WARM_START = "warm start"
Candidate = tuple[str, Schedule]
"""What made a schedule, and the schedule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Result of a solve, and the requests that were left out because nobody can serve them."""

    result: Result
    rejections: tuple[Rejection, ...]


def solve(
    instance: Instance,
    objective: Objective = Objective.MAKESPAN,
    *,
    limits: SearchLimits | None = None,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    candidates: Sequence[Candidate] = (),
    drop_rejected: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Best schedule with a certified bound; never worse than any of the heuristics.

    Parameters
    ----------
    heuristics
        Policies whose schedules compete for the first incumbent, as far as they are feasible under the
        instance's switches.
    candidates
        Further schedules that compete for it, each with what made it; those that the referee does not accept
        on the servable part of the instance are passed over. See `read_warm_start`.
    drop_rejected
        Leave out requests that can never be served, instead of raising.

    Raises
    ------
    InfeasibleError
        If a request can never be served: which one, by which rules, and from which limit on it would be.
    InputError
        If the instance allows preemption by swap.
    """
    require_no_swap(instance)
    servable, rejections = servable_part(instance, drop_rejected=drop_rejected)
    result = solve_exactly(
        servable,
        objective,
        limits or SearchLimits(),
        candidates=[*policy_candidates(servable, heuristics), *candidates],
        on_progress=on_progress,
    )
    return Solution(result=result, rejections=rejections)


def policy_candidates(instance: Instance, heuristics: Iterable[str]) -> list[Candidate]:
    """Schedules of policies on an instance whose requests all fit."""
    return [(name, run_policy(instance, make_policy(name)).schedule) for name in heuristics]


def servable_part(instance: Instance, *, drop_rejected: bool) -> tuple[Instance, tuple[Rejection, ...]]:
    """The instance without the requests that can never be served, and those with the reasons.

    Raises
    ------
    InfeasibleError
        If there are such requests and they are not to be dropped, or no other is left.
    """
    trouble = find_infeasibility(instance)
    if trouble is not None and not drop_rejected:
        raise InfeasibleError(trouble.sentence)
    return instance.split_rejected()


def read_warm_start(path: Path, instance: Instance) -> Candidate:
    """A schedule of an instance from a file, judged by the referee.

    The file is a result or a bare schedule. A result may have been found under other limits and switches, for
    instance without preemption: whether its schedule is feasible here is for the referee to say. Its requests
    and its cost model must be the same.

    Raises
    ------
    InputError
        If the file cannot be read, holds no schedule or one of another instance, or the schedule breaks a
        rule or uses the prefix cache.
    """
    schedule = _schedule_of(path, instance)
    if schedule.uses_prefix_cache:
        raise InputError(
            f"{path}: the schedule uses the prefix cache, which the solver does not know; "
            "start from one that was made with prefix caching off"
        )
    violations = find_violations(instance, schedule)
    if violations:
        raise InputError(
            f"{path}: the schedule breaks a rule of this instance ({violations[0].rule}): "
            f"{violations[0].message}; start from one made under the same limits and switches, or leave "
            "--warm-start out"
        )
    return WARM_START, schedule


def _schedule_of(path: Path, instance: Instance) -> Schedule:
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") == SCHEDULE_SCHEMA:
        return Schedule.from_json(data, str(path))
    if isinstance(data, dict) and data.get("schema") != RESULT_SCHEMA:
        raise InputError(
            f"{path}: schema is {data.get('schema')!r}, expected {RESULT_SCHEMA!r} (schedule.json of "
            f"'cspsched solve') or {SCHEDULE_SCHEMA!r}"
        )
    result = Result.from_json(data, str(path))
    if result.schedule is None:
        raise InputError(f"{path}: holds no schedule to start from")
    same_rules = replace(result.instance, limits=instance.limits, switches=instance.switches)
    if same_rules.fingerprint() != instance.fingerprint():
        raise InputError(
            f"{path}: is a schedule of another instance (fingerprint {result.instance.fingerprint()}, here "
            f"{instance.fingerprint()}): requests or cost model differ; solve the same trace with the same "
            "--cost"
        )
    return result.schedule
