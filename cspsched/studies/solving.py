"""Solve an instance: the policies' schedules as first incumbents, then the exact solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cspsched.errors import InfeasibleError, InputError, PolicyCrashError, PolicyError
from cspsched.exact.lexicographic import solve_in_order
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import Progress, SearchLimits
from cspsched.policies.base import DEFAULT_HEURISTICS, make_policy
from cspsched.problem.failure import Failure
from cspsched.problem.infeasibility import find_infeasibility
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.json_io import read_json
from cspsched.problem.lifting import without_swap
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import FIRST_SCHEMA, RESULT_SCHEMA, Result
from cspsched.problem.schedule import SCHEDULE_SCHEMA, Schedule
from cspsched.referee.rules import find_violations
from cspsched.simulate import simulate

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
    objective: AnyObjective | str = Objective.MAKESPAN,
    *,
    limits: SearchLimits | None = None,
    heuristics: Iterable[str] = DEFAULT_HEURISTICS,
    candidates: Sequence[Candidate] = (),
    on_stage: Callable[[AnyObjective], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Best schedule with a certified bound; never worse than any of the heuristics.

    Requests that can never be served are rejected, counted and left out.

    Parameters
    ----------
    objective
        What is minimised, or a text that `--objective` takes, such as `latency`, `latency+2*max-itl`
        (weighted sum) or `misses,latency` (one after the other).
    heuristics
        Policies whose schedules compete for the first incumbent, as far as they are feasible under the
        instance's switches. One that gets stuck is passed over; `Result.failures` names it.
    candidates
        Further schedules that compete for it, each with what made it; those that the referee does not accept
        on the servable part of the instance are passed over. See `read_warm_start`.
    on_stage
        Told which objective is minimised, where there are several.

    Raises
    ------
    InfeasibleError
        If no request can be served: by which rules, and from which limit on they could.
    InputError
        If the text of the objective means nothing.
    """
    servable, rejections = servable_part(instance)
    stages = read_objectives(objective, servable) if isinstance(objective, str) else (objective,)
    limits = limits or SearchLimits()
    found, stuck = policy_candidates(servable, heuristics)
    known = [*found, *candidates]
    if len(stages) == 1:
        result = solve_exactly(servable, stages[0], limits, candidates=known, on_progress=on_progress)
    else:
        result = solve_in_order(
            servable, stages, limits, candidates=known, on_stage=on_stage, on_progress=on_progress
        )
    failures = [failure.to_json() for failure in (*stuck, *result.failures)]
    result = replace(result, provenance=result.provenance | {"failures": failures})
    return Solution(result=result, rejections=rejections)


def policy_candidates(
    instance: Instance, heuristics: Iterable[str]
) -> tuple[list[Candidate], tuple[Failure, ...]]:
    """Schedules of policies on an instance whose requests all fit, and the policies that cannot serve it.

    What the code of a user's policy raises is for the user to know (`PolicyCrashError`).
    """
    candidates, stuck = list[Candidate](), list[Failure]()
    for policy in map(make_policy, heuristics):
        try:
            candidates.append((policy.label, simulate(instance, policy).schedule))
        except PolicyCrashError:
            raise
        except PolicyError as error:
            stuck.append(Failure.of(policy.label, error))
    return candidates, tuple(stuck)


def servable_part(instance: Instance) -> tuple[Instance, tuple[Rejection, ...]]:
    """The instance without the requests that can never be served, and those with the reasons.

    Raises
    ------
    InfeasibleError
        If no other is left.
    """
    trouble = find_infeasibility(instance)
    if trouble is not None and trouble.is_total:
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
    if isinstance(data, dict) and data.get("schema") not in (RESULT_SCHEMA, FIRST_SCHEMA):
        raise InputError(
            f"{path}: schema is {data.get('schema')!r}, expected {RESULT_SCHEMA!r} (schedule.json of "
            f"'cspsched solve') or {SCHEDULE_SCHEMA!r}"
        )
    result = Result.from_json(data, str(path))
    if result.schedule is None:
        raise InputError(f"{path}: holds no schedule to start from")
    same_rules = replace(result.instance, limits=instance.limits, switches=instance.switches)
    # What moves of KV caches cost says nothing about an instance that has none.
    if without_swap(same_rules).fingerprint() != without_swap(instance).fingerprint():
        raise InputError(
            f"{path}: is a schedule of another instance (fingerprint {result.instance.fingerprint()}, here "
            f"{instance.fingerprint()}): requests or cost model differ; solve the same trace with the same "
            "--cost"
        )
    return result.schedule
