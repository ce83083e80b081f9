"""List schedules of an instance: their value fast, the schedule itself when it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cspsched.compiled.jit import compiled
from cspsched.errors import LimitError, UsageError
from cspsched.improve import machine as layout
from cspsched.improve.entries import schedule_of
from cspsched.improve.machine import LOG_FULL, STUCK, Machine, run_list
from cspsched.improve.pauses import ALONE, with_pauses
from cspsched.improve.plan import MOST_DOUBLINGS, SHORTEST_FILL, Plan
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective
from cspsched.problem.schedule import Schedule
from cspsched.simulate.aggregated.loops import aggregated_rules
from cspsched.simulate.aggregated.repeat import CONTEXT_FEATURE
from cspsched.simulate.kernel.cost import flatten_cost
from cspsched.simulate.kernel.workload import Int32Array

NEVER_NS = 2**62
FIRST_LOG_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """State of a run at a boundary between batches."""

    now: IntArray
    rings: IntArray
    waiting: Int32Array


class ListScheduler:
    """Runs plans over an instance; its requests in order of (arrival, file).

    Raises
    ------
    UsageError
        If the switches forbid what list schedules do, or the numbers do not fit 64 bits.
    """

    def __init__(self, instance: Instance, objective: Objective) -> None:
        refuse_unsuited(instance)
        columns = instance.columns
        arrival_ns = columns.arrival_ns
        self.order = np.argsort(arrival_ns, kind="stable")
        self.arrival_ns: IntArray = arrival_ns[self.order]
        self.num_requests = len(columns)
        shapes = np.column_stack((columns.prompt_tokens, columns.output_tokens))
        self.table = np.empty((self.num_requests, 4), dtype=np.int32)
        self.table[:, :2], self.table[:, 2:] = shapes[self.order], ALONE
        self._instance = instance
        self._objective = objective
        self._prices = _flat_prices(instance)
        rows = FIRST_LOG_ROWS + 4 * self.num_requests
        self._batch_ns = np.empty((rows, 2), dtype=np.int64)
        self._chunks = np.empty((rows, 3), dtype=np.int32)
        terms = self._prices[1 : self._prices[0, 3], 0].tolist()
        self._context_term = 1 + terms.index(CONTEXT_FEATURE) if CONTEXT_FEATURE in terms else 0
        decodes = min(instance.limits.max_batch_requests, instance.limits.max_batch_tokens)
        self._alone_ns = np.full(decodes + 1, -1, dtype=np.int64)
        self._places = np.empty((self.num_requests, 3), dtype=np.int32)

    @property
    def prompt_tokens(self) -> IntArray:
        """Prompts, shape (num_requests,)."""
        return self.table[:, 0].astype(np.int64)

    @property
    def output_tokens(self) -> IntArray:
        """Outputs, shape (num_requests,)."""
        return self.table[:, 1].astype(np.int64)

    @property
    def token_knots(self) -> tuple[int, ...]:
        """Tokens of a batch from which on one more costs more or less than before."""
        return self._instance.cost.tokens.knots

    def value_ns(self, plan: Plan) -> int:
        """Objective of the plan's schedule in nanoseconds."""
        machine = self._run(plan)
        return self._value_ns(machine, self.num_requests)

    def checkpoint(self, plan: Plan, stop_ns: int) -> Checkpoint:
        """State of the plan's run once the clock has reached a time."""
        machine = self._run(plan, stop_ns=stop_ns)
        return Checkpoint(now=machine.now, rings=machine.rings, waiting=machine.waiting)

    def value_of_first_ns(self, plan: Plan, start: Checkpoint, count: int) -> int:
        """Objective of the first so many requests as if no other came, from a checkpoint on.

        The plan must be that of the checkpoint for all requests that were eligible before it, and the plan
        itself have been run to the checkpoint or beyond last.
        """
        machine = self._run(plan, start=start, count=count)
        return self._value_ns(machine, count)

    def schedule(self, plan: Plan) -> Schedule:
        """The plan's schedule, requests by their position in the instance."""
        return schedule_of(self._run(plan), self._order_with(plan))

    def _order_with(self, plan: Plan) -> npt.NDArray[np.intp]:
        """Position in the instance of each request of the machine, second parts at the end."""
        return np.append(self.order, self.order[[pause.request for pause in plan.pauses]])

    def _value_ns(self, machine: Machine, count: int) -> int:
        if self._objective is Objective.MAKESPAN:
            return int(machine.now[layout.CLOCK_NS])
        column = layout.LAST_TOKEN if self._objective is Objective.LATENCY else layout.FIRST_TOKEN
        batches = machine.places[:count, column]
        if self._objective is Objective.LATENCY and len(machine.table) > self.num_requests:
            batches, seconds = batches.copy(), slice(self.num_requests, None)
            batches[machine.table[seconds, layout.AFTER]] = machine.places[seconds, column]
        waits = machine.batch_ns[batches, 1] - self.arrival_ns[:count]
        return int(waits.sum()) if int(waits.max()) < NEVER_NS // count else sum(waits.tolist())

    def _run(
        self,
        plan: Plan,
        *,
        start: Checkpoint | None = None,
        count: int | None = None,
        stop_ns: int = NEVER_NS,
    ) -> Machine:
        """Run a plan, again with longer logs where they are full."""
        run = compiled(run_list)
        count = self.num_requests if count is None else count
        while True:
            machine = self._machine(plan, start, count)
            answer = int(run(machine, stop_ns))
            if answer == STUCK:
                raise LimitError("list schedule: a request fits no batch; this is a bug, please report")
            if answer != LOG_FULL:
                return machine
            self._lengthen_logs()

    def _machine(self, plan: Plan, start: Checkpoint | None, count: int) -> Machine:
        eligible_ns, events = self._eligible(plan, count)
        if start is None:
            now = np.zeros(layout.CONTEXT_TERM + 1, dtype=np.int64)
            now[layout.LAST_PLANNED] = -1
            rings = np.zeros((layout.NUM_RINGS, self._ring_length(plan)), dtype=np.int64)
            waiting = np.empty(self.num_requests + len(plan.pauses), dtype=np.int32)
        else:
            now, rings, waiting = start.now.copy(), start.rings.copy(), start.waiting.copy()
        now[layout.NUM_CHANGING :] = self._parameters(plan, count)
        machine = layout.Machine(
            now=now,
            rings=rings,
            waiting=waiting,
            keys=plan.keys,
            eligible_ns=eligible_ns,
            events=events,
            table=self.table,
            chunk_doublings=plan.chunk_doublings,
            prices=self._prices,
            alone_ns=self._alone_ns,
            places=self._places,
            batch_ns=self._batch_ns,
            chunks=self._chunks,
        )
        return with_pauses(machine, plan.pauses) if plan.pauses else machine

    def _eligible(self, plan: Plan, count: int) -> tuple[IntArray, Int32Array]:
        """When every request may be admitted, and the first so many requests by that."""
        eligible_ns = self.arrival_ns + plan.delay_ns
        events = np.argsort(eligible_ns[:count], kind="stable").astype(np.int32)
        return eligible_ns, events

    def _parameters(self, plan: Plan, count: int) -> list[int]:
        """From NUM_EVENTS on."""
        limits, switches, knobs = self._instance.limits, self._instance.switches, plan.knobs
        return [
            count,
            limits.kv_blocks,
            limits.block_tokens,
            limits.max_batch_tokens,
            min(knobs.seats, limits.max_batch_requests, limits.max_batch_tokens),
            min(knobs.fill_tokens, limits.max_batch_tokens),
            knobs.longest_chunk,
            knobs.depth,
            knobs.pace,
            int(switches.reservation),
            int(not switches.chunked_prefill),
            self._context_term,
        ]

    def _ring_length(self, plan: Plan) -> int:
        """A power of two beyond the longest run of a request that is alone, twice as long with company."""
        knobs, budget = plan.knobs, self._instance.limits.max_batch_tokens
        fill = min(max(knobs.fill_tokens >> MOST_DOUBLINGS, SHORTEST_FILL), knobs.fill_tokens)
        chunk = min(fill, knobs.longest_chunk, budget)
        prefill = self.prompt_tokens
        for pause in plan.pauses:
            prefill[pause.request] += pause.tokens
        batches = int((-(-prefill // chunk) * 2 + self.output_tokens).max()) + 2
        return 1 << batches.bit_length()

    def _lengthen_logs(self) -> None:
        """Twice as long; a run from a checkpoint goes on reading what was logged before it."""
        self._batch_ns = np.concatenate((self._batch_ns, np.empty_like(self._batch_ns)))
        self._chunks = np.concatenate((self._chunks, np.empty_like(self._chunks)))


def refuse_unsuited(instance: Instance) -> None:
    """Say that list schedules are not for an instance.

    Raises
    ------
    UsageError
        If prefill and decode may not share a batch.
    """
    if not instance.switches.hybrid_batches:
        raise UsageError("the improvement search mixes prefill and decode in a batch; allow hybrid batches")


def _flat_prices(instance: Instance) -> IntArray:
    limits = instance.limits
    rules = aggregated_rules(
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        max_tokens=limits.max_batch_tokens,
        max_running=limits.max_batch_requests,
    )
    largest = int(instance.columns.peak_kv_tokens.max())
    prices = flatten_cost(instance.cost, rules, largest)
    if prices is None:
        raise UsageError("the numbers of the cost model are too large for the improvement search")
    return prices
