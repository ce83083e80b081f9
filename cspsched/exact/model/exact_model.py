"""What every exact model offers to the search: an objective, a way in for schedules and a way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from cspsched.exact.model.timeline import WORST_SUM, Timeline
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.schedule import Schedule
from cspsched.referee.timing import schedule_asap

Decisions = tuple[list[list[tuple[int, int]]], list[list[int]]]
"""For each batch its (request, tokens), and the requests evicted before it."""

WORST_DOMAINS = 2**62
"""CP-SAT refuses a model whose domains do not add up in 64 bits, signs included."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """An objective that may not get worse than a value: an earlier stage of a lexicographic order."""

    objective: AnyObjective
    most_ns: int


class ExactModel(ABC):
    """A CP-SAT model of an instance with its objective in integer nanoseconds."""

    name: str
    is_regular: bool = True
    """Whether no token that comes later can make the objective smaller."""
    subsolvers: tuple[str, ...]
    """CP-SAT strategies that run side by side; the default choice for few threads hardly moves the bound."""

    def __init__(self, timeline: Timeline, objective: cp_model.LinearExprT, worst_sum: int) -> None:
        self.timeline = timeline
        self.model = timeline.model
        self.objective = objective
        self.worst_sum = worst_sum
        """Largest value that a sum in the model can take."""
        self.model.minimize(objective)

    @property
    def fits(self) -> bool:
        """Whether 64 bits hold all that CP-SAT adds up: every sum, and all domains together."""
        domains = sum(max(map(abs, variable.domain)) for variable in self.model.proto.variables)
        return self.worst_sum < WORST_SUM and domains < WORST_DOMAINS

    def bound_objective(self, lower_ns: int, upper_ns: int) -> None:
        """Keep the objective within what is already known."""
        self.model.add_linear_constraint(self.objective, lower_ns, upper_ns)

    @abstractmethod
    def assignment(self, schedule: Schedule) -> Iterator[tuple[cp_model.IntVar, int]]:
        """Values of the decision variables that a schedule stands for."""

    @abstractmethod
    def decisions(self, value: Callable[[cp_model.IntVar], int]) -> Decisions:
        """Decisions of a solution, given the value of a variable."""

    def schedule(self, value: Callable[[cp_model.IntVar], int]) -> Schedule:
        """Schedule of a solution; every batch runs as early as possible."""
        return schedule_asap(self.timeline.instance, *self.decisions(value))


def identical_requests(instance: Instance, roles: Sequence[object] = ()) -> list[list[int]]:
    """Positions of requests with equal arrival, prompt and output, in file order; groups of two or more.

    `roles` are what else tells requests apart, one of each; nothing does if they are left out.
    """
    groups: dict[object, list[int]] = {}
    for i, request in enumerate(instance.requests):
        key = (request.arrival_ns, request.prompt_tokens, request.output_tokens, roles[i] if roles else None)
        groups.setdefault(key, []).append(i)
    return [group for group in groups.values() if len(group) > 1]
