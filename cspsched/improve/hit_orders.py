"""Better schedules with prefix cache hits: vLLM's batches with its cache, in orders that know what is cached.

An order is given to the engine as priorities, which no rule of the problem reads, so that what it makes is a
schedule of the instance itself. Its numbers are searched: first some known orders, then small changes of the
best one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cspsched.bounds.best_hits.bound import best_hits
from cspsched.improve.outcome import Found
from cspsched.policies.vllm_v1 import QueueOrder, VllmSettings, VllmV1
from cspsched.problem.columns import Requests
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.prefix import BlockContents
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate

FloatArray = npt.NDArray[np.float64]
SEATS = (1.0, 1 / 8, 1 / 64)
"""Shares of the most running requests that the first orders are tried with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitOrder:
    """Requests go by rising `O^a v^b e^(c h + d g + w t)`, equal ones by arrival.

    O is the output, v = I - H + (O - 1) / 2 the work that the best possible hits H leave, h = H / I, g from 0
    to 1 the place of the prompt among all in the order of their texts (those that share a prefix are
    neighbours) and t the arrival in seconds.
    """

    output_power: float = 0.0
    work_power: float = 0.0
    cached: float = 0.0
    """c: below 0 the longest cached prefix goes first."""
    grouped: float = 0.0
    """d: how much those with one prefix stay together."""
    ageing_per_s: float = 0.0
    seats: float = 1.0
    """Most running requests, as a share of what the instance allows."""

    def __str__(self) -> str:
        powers = f"O^{self.output_power:.3g} v^{self.work_power:.3g}"
        exponent = f"{self.cached:.3g} h + {self.grouped:.3g} g + {self.ageing_per_s:.3g} t"
        return f"{powers} e^({exponent}), {self.seats:.3g} of the seats"

    def changed(self, rng: np.random.Generator, ageing_per_s: float) -> HitOrder:
        """The same with one or two numbers moved a little."""
        names = ("output_power", "work_power", "cached", "grouped", "ageing_per_s", "seats")
        moved = rng.choice(len(names), size=rng.integers(1, 3), replace=False)
        steps = {names[k]: float(rng.normal(0, 0.4)) for k in moved}
        if "ageing_per_s" in steps:
            steps["ageing_per_s"] *= ageing_per_s
        values = {name: getattr(self, name) + step for name, step in steps.items()}
        if "seats" in values:
            values["seats"] = min(1.0, max(0.01, self.seats * 2.0 ** (2 * steps["seats"])))
        return replace(self, **values)


class HitOrders:
    """Runs orders over an instance whose switches allow hits."""

    def __init__(self, instance: Instance) -> None:
        columns, hits = instance.columns, best_hits(instance)
        assert hits is not None
        self._instance = instance
        self._arrival_s: FloatArray = columns.arrival_ns / 1e9
        self._outputs = np.log(columns.output_tokens)
        self._work = np.log(columns.prompt_tokens - hits.found + (columns.output_tokens + 1) / 2)
        self._cached: FloatArray = hits.found / columns.prompt_tokens
        contents = BlockContents(columns.prefix or [()] * len(columns), instance.limits)
        by_text = sorted(range(len(columns)), key=lambda i: tuple(contents.shared(i)))
        self._grouped = np.empty(len(columns))
        self._grouped[by_text] = np.arange(len(columns)) / len(columns)

    @property
    def ageing_per_s(self) -> float:
        """Size of a step of the ageing: a part of the time between the first and the last arrival."""
        return 10 / max(1.0, float(np.ptp(self._arrival_s)))

    def starts(self) -> Iterator[HitOrder]:
        """Known orders: by arrival, shortest work first, longest cached prefix first, prefixes together."""
        for seats in SEATS:
            yield HitOrder(seats=seats)
            yield HitOrder(work_power=1.0, seats=seats)
            yield HitOrder(output_power=0.3, work_power=1.0, seats=seats)
            yield HitOrder(cached=-1.0, seats=seats)
            yield HitOrder(grouped=1.0, seats=seats)
            yield HitOrder(work_power=1.0, grouped=2.0, seats=seats)

    def schedule(self, order: HitOrder) -> Schedule:
        """What the engine makes of an order."""
        keys = (
            order.output_power * self._outputs
            + order.work_power * self._work
            + order.cached * self._cached
            + order.grouped * self._grouped
            + order.ageing_per_s * self._arrival_s
        )
        ranks = np.empty(len(keys), dtype=np.int64)
        ranks[np.lexsort((self._arrival_s, keys))] = np.arange(len(keys))
        ordered = Requests(replace(self._instance.columns, priority=ranks))
        seats = max(1, round(order.seats * self._instance.limits.max_batch_requests))
        settings = VllmSettings(policy=QueueOrder.PRIORITY, enable_prefix_caching=True, max_num_seqs=seats)
        return simulate(replace(self._instance, requests=ordered), VllmV1(settings)).schedule


def search_orders(
    instance: Instance,
    objective: Objective,
    *,
    seed: int,
    goes_on: Callable[[int], bool],
    on_best: Callable[[int], None],
) -> tuple[Found | None, int]:
    """Best schedule that orders with hits make, and how many were tried.

    Parameters
    ----------
    goes_on
        Whether there is to be one more after so many.
    on_best
        Told the value of the best one after each.
    """
    orders, rng = HitOrders(instance), np.random.default_rng(seed)
    starts = orders.starts()
    best: tuple[HitOrder, Found] | None = None
    steps = 0
    while goes_on(steps):
        order = next(starts, None)
        if order is None:
            assert best is not None
            order = best[0].changed(rng, orders.ageing_per_s)
        schedule = orders.schedule(order)
        value_ns = measure(instance, schedule).objective_ns(objective)
        if best is None or value_ns < best[1].value_ns:
            name = f"vllm with prefix cache by {order}"
            best = order, Found(schedule=schedule, value_ns=value_ns, found_by=name)
        steps += 1
        on_best(best[1].value_ns)
    return None if best is None else best[1], steps
