"""Solve an instance: the policies' schedules as first incumbents, then the exact solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cspsched.errors import InfeasibleError
from cspsched.exact.search import Progress, SearchLimits
from cspsched.exact.solver import require_no_swap, solve_exactly
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.metrics import Objective
from cspsched.problem.result import Result
from cspsched.simulate.kernel import run_policy

DEFAULT_HEURISTICS = ("vllm", "sarathi")


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
    drop_rejected: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Best schedule with a certified bound; never worse than any of the heuristics.

    Parameters
    ----------
    heuristics
        Policies whose schedules compete for the first incumbent, as far as they are feasible under the
        instance's switches.
    drop_rejected
        Leave out requests that can never be served, instead of raising.

    Raises
    ------
    InfeasibleError
        If a request can never be served.
    InputError
        If the instance allows preemption by swap.
    """
    require_no_swap(instance)
    servable, rejections = instance.split_rejected()
    if rejections and not drop_rejected:
        more = f" (and {len(rejections) - 1} more)" if len(rejections) > 1 else ""
        raise InfeasibleError(f"{rejections[0].reason}{more}; leave such requests out with --drop-rejected")
    candidates = [(name, run_policy(servable, make_policy(name)).schedule) for name in heuristics]
    result = solve_exactly(
        servable, objective, limits or SearchLimits(), candidates=candidates, on_progress=on_progress
    )
    return Solution(result=result, rejections=rejections)
