"""The referee for schedules that are too long to be held whole: part after part, each a range of batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.history import follow
from cspsched.problem.instance import Instance
from cspsched.problem.metrics import Objective
from cspsched.problem.referee import check_form, violations_of
from cspsched.problem.schedule import Schedule
from cspsched.problem.violation import Violation
from cspsched.problem.walk import Carried


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What the referee says of a schedule in parts.

    Attributes
    ----------
    violations
        Of the first part that breaks a rule; empty if the schedule is feasible and its times are right.
    first_token_ns, last_token_ns
        Shape (num_requests,): ends of the batches with the first and the last output token.
    makespan_ns
        End of the last batch.
    num_batches
        Batches in all parts.
    """

    violations: list[Violation]
    first_token_ns: IntArray
    last_token_ns: IntArray
    makespan_ns: int
    num_batches: int

    def objective_ns(self, instance: Instance, objective: Objective) -> int:
        """Value of makespan, latency or TTFT, an exact integer."""
        if objective is Objective.MAKESPAN:
            return self.makespan_ns
        times = self.last_token_ns if objective is Objective.LATENCY else self.first_token_ns
        total: int = sum(times.tolist())
        return total - sum(request.arrival_ns for request in instance.requests)


def judge_parts(instance: Instance, parts: Iterable[Schedule]) -> Verdict:
    """Judge the parts of a schedule one after another by the rules of `find_violations`.

    Parameters
    ----------
    parts
        Ranges of batches in order; none is empty, and none swaps or uses the prefix cache. Numbers of batches
        in what is found count from the part's first.
    """
    count = len(instance.requests)
    start = Carried.nothing(count)
    first_ns, last_ns = np.zeros((2, count), dtype=np.int64)
    violations: list[Violation] = []
    num_batches = 0
    for part in parts:
        violations = list(check_form(instance, part))
        if violations:
            break
        history = replace(follow(instance, part, start), is_last=False)
        violations = violations_of(history)
        if violations:
            break
        ends = part.end_ns[part.batch_of_entry]
        begins = history.generates & (history.generated_before == 0)
        first_ns[part.request[begins]] = ends[begins]
        last_ns[part.request[history.finishes]] = ends[history.finishes]
        start = history.carried()
        num_batches += part.num_batches
    return Verdict(
        violations=violations or _unfinished(instance, start),
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        makespan_ns=start.clock_ns,
        num_batches=num_batches,
    )


def _unfinished(instance: Instance, end: Carried) -> list[Violation]:
    """Rule 6: nobody may be left when the last part is over."""
    outputs = np.array([request.output_tokens for request in instance.requests], dtype=np.int64)
    missing = np.flatnonzero(end.generated != outputs)
    if not len(missing):
        return []
    name = instance.requests[int(missing[0])].request_id
    message = f"{len(missing)} requests lack output tokens at the end, {name!r} the first of them"
    return [Violation(rule="completion", message=message, request_id=name)]
