"""Schedules to begin with, whatever is minimised: in lists, and one request after the other.

Alone on the machine a request has the shortest gaps between its tokens, which decides objectives that look at
nothing else. Where limits count, those who are due first may go first.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from cspsched.exact.heuristics.list_schedule import ORDERS, in_order, list_schedules, one_at_a_time
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import linear_form
from cspsched.problem.objectives import AnyObjective, Mixture
from cspsched.problem.request import Request
from cspsched.problem.schedule import Schedule

LATEST_NS = 2**62


def first_schedules(instance: Instance, objective: AnyObjective) -> Iterator[tuple[str, Schedule]]:
    """Named schedules that are feasible in every class of schedules."""
    yield from list_schedules(instance)
    if isinstance(objective, Mixture):
        for name, key in {**ORDERS, "due first": _due}.items():
            keys = [key(request) for request in instance.requests]
            order = sorted(range(len(keys)), key=keys.__getitem__)
            yield f"one at a time, {name}", one_at_a_time(instance, order)
        yield in_order(instance, "most weight per volume first", _by_weight(instance, objective))


def _by_weight(instance: Instance, objective: Mixture) -> list[int]:
    """Weighted shortest processing time: requests by KV volume over weight, those of no weight last."""
    form = linear_form(objective, instance)
    weights = [max(weights) for weights in zip(form.first, form.span, form.max_span, form.late, strict=True)]
    volumes = [ORDERS["smallest volume first"](request)[0] for request in instance.requests]
    return sorted(range(len(weights)), key=lambda i: (not weights[i], Fraction(volumes[i], weights[i] or 1)))


def _due(request: Request) -> tuple[int, ...]:
    limit = LATEST_NS if request.ttft_limit_ns is None else request.ttft_limit_ns
    return (request.arrival_ns + limit,)
