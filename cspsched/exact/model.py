"""What every exact model offers to the search: an objective, a way in for schedules and a way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from ortools.sat.python import cp_model

from cspsched.exact.timeline import Timeline, Waiting, objective_expression, worst_sum
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Objective
from cspsched.problem.schedule import Schedule

Decisions = tuple[list[list[tuple[int, int]]], list[list[int]]]
"""For each batch its (request, tokens), and the requests evicted before it."""


class ExactModel(ABC):
    """A CP-SAT model of an instance with its objective in integer nanoseconds."""

    name: str
    subsolvers: tuple[str, ...]
    """CP-SAT strategies that run side by side; the default choice for few threads hardly moves the bound."""

    def __init__(self, timeline: Timeline, objective: Objective, waiting: Waiting) -> None:
        self.timeline = timeline
        self.model = timeline.model
        self.objective = objective_expression(timeline, objective, waiting)
        self.worst_sum = worst_sum(timeline, objective)
        self.model.minimize(self.objective)

    def bound_objective(self, lower_ns: int, upper_ns: int) -> None:
        """Keep the objective within what is already known."""
        self.model.add_linear_constraint(self.objective, lower_ns, upper_ns)

    @abstractmethod
    def assignment(self, schedule: Schedule) -> Iterator[tuple[cp_model.IntVar, int]]:
        """Values of the decision variables that a schedule stands for."""

    @abstractmethod
    def decisions(self, value: Callable[[cp_model.IntVar], int]) -> Decisions:
        """Decisions of a solution, given the value of a variable."""


def identical_requests(instance: Instance) -> list[list[int]]:
    """Positions of requests with equal arrival, prompt and output, in file order; groups of two or more."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, request in enumerate(instance.requests):
        key = (request.arrival_ns, request.prompt_tokens, request.output_tokens)
        groups.setdefault(key, []).append(i)
    return [group for group in groups.values() if len(group) > 1]
