"""Running a policy in the kernel, and the front door that chooses between the kernel and the clear engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cspsched.errors import InputError, LimitError, PolicyCrashError, StuckError, UsageError
from cspsched.problem.cost import CostModel, IntArray
from cspsched.problem.instance import Instance
from cspsched.simulate.engine import LivelockError, Simulation, simulate
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.cost import flatten_cost
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules, Loop
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.memory import Logs, new_kernel
from cspsched.simulate.kernel.rules import Batch, HasKernelRules, Order
from cspsched.simulate.kernel.workload import Int32Array, Workload
from cspsched.simulate.protocol import Policy
from cspsched.simulate.watch import Watch
from cspsched.units import ceil_div

FEWEST_FOR_KERNEL = 5000
"""Requests from which on the kernel pays for loading its compiler, if it has compiled before."""
MOST_OUTPUT_TOKENS, MOST_BLOCK_TOKENS, MOST_BLOCKS = 2**26, 2**24, 2**31 - 1
"""What the calendar, the residues and 32 bits hold."""


class Engine(StrEnum):
    """Which engine runs a policy; the schedule is the same."""

    AUTO = "auto"
    """The kernel for large traces where it can, else the clear engine."""
    CLEAR = "clear"
    """Plain Python; runs every policy."""
    KERNEL = "kernel"
    """Compiled; runs policies with kernel rules."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelRun:
    """What a policy made of a workload, per request, per batch and as spans.

    Attributes
    ----------
    times_ns
        int64, shape (num_requests, 5): arrival, start of the first batch, first token, last token, and tokens
        lost to preemption.
    num_preemptions
        int32, shape (num_requests,); as in the schedule, so without those with the last token in flight.
    batch_ns
        int64, shape (num_batches, 2): start and end. Of a policy that decides ahead there is a third column,
        when it decided.
    batch_counts
        int32, shape (num_batches, 6): prefills, decodes, prefill tokens, KV blocks held, requests waiting and
        running.
    spans
        int32, shape (num_spans, 6): prefill chunks, runs of decodes, evictions; columns as in `Kernel`. A run
        of decodes is one row, however long it is.
    """

    policy: str
    rules: AnyRules
    workload: Workload
    times_ns: IntArray
    num_preemptions: Int32Array
    batch_ns: IntArray
    batch_counts: Int32Array
    spans: Int32Array

    @property
    def num_batches(self) -> int:
        """Batches run."""
        return len(self.batch_ns)

    @property
    def decided_ns(self) -> IntArray:
        """When each batch was decided."""
        is_noted = self.batch_ns.shape[1] > layout.DECIDED_NS
        return self.batch_ns[:, layout.DECIDED_NS if is_noted else 0]

    @property
    def scheduled_ns(self) -> IntArray:
        """Start of the first batch of every request."""
        return self.times_ns[:, layout.SCHEDULED_NS]

    @property
    def first_token_ns(self) -> IntArray:
        """End of the batch that generated the first token of every request."""
        return self.times_ns[:, layout.FIRST_TOKEN_NS]

    @property
    def finish_ns(self) -> IntArray:
        """End of the batch that generated the last token of every request."""
        return self.times_ns[:, layout.FINISH_NS]

    @property
    def recomputed_tokens(self) -> IntArray:
        """KV entries that every request lost to preemption."""
        return self.times_ns[:, layout.RECOMPUTED]

    def itl_gaps(self) -> tuple[IntArray, IntArray]:
        """All gaps between consecutive tokens of all requests, as (gap in ns, how often).

        Inside a run of decodes the gaps are those between ends of decode batches; before each run stands the
        gap to the token of the prefill that it follows, and before each refill's token the gap across it.
        """
        decode_ends = self.batch_ns[self.batch_counts[:, 1] > 0, 1]
        runs = self.spans[self.spans[:, layout.KIND] == layout.RUN_SPAN]
        first, end = runs[:, layout.FIRST], runs[:, layout.FIRST] + runs[:, layout.AMOUNT]
        size = len(decode_ends) + 1
        covers = np.bincount(first + 1, minlength=size) - np.bincount(end, minlength=size)
        lone = self._gaps_between_spans(decode_ends)
        gaps: IntArray = np.concatenate((np.diff(decode_ends, prepend=0), lone))
        times = np.concatenate((np.cumsum(covers)[:-1], np.ones(len(lone), dtype=np.int64)))
        return gaps[times > 0], times[times > 0]

    def _gaps_between_spans(self, decode_ends: IntArray) -> IntArray:
        """Gaps between the last token of a span and the first token of the next span of the same request."""
        kind, amount = self.spans[:, layout.KIND], self.spans[:, layout.AMOUNT]
        chunks, runs = self.spans[kind == layout.LAST_CHUNK_SPAN], self.spans[kind == layout.RUN_SPAN]
        chunk_ends = self.batch_ns[chunks[:, layout.FIRST], 1]
        last_steps = runs[:, layout.FIRST] + amount[kind == layout.RUN_SPAN] - 1
        request = np.concatenate((chunks[:, layout.SPAN_REQUEST], runs[:, layout.SPAN_REQUEST]))
        first = np.concatenate((chunk_ends, decode_ends[runs[:, layout.FIRST]]))
        last = np.concatenate((chunk_ends, decode_ends[last_steps]))
        order = np.lexsort((first, request))
        same = request[order][1:] == request[order][:-1]
        return np.asarray((first[order][1:] - last[order][:-1])[same], dtype=np.int64)

    def to_simulation(self) -> Simulation:
        """The whole schedule, entry by entry, as the clear engine gives it."""
        from cspsched.simulate.kernel.spans import expand_spans

        schedule = expand_spans(self.rules, self.batch_ns, self.batch_counts, self.spans)
        preempted = self.spans[self.spans[:, layout.KIND] == layout.EVICTION_SPAN]
        return Simulation(
            policy=self.policy,
            schedule=schedule,
            held_blocks=self.batch_counts[:, 3].astype(np.int64),
            num_waiting=self.batch_counts[:, 4].astype(np.int64),
            decided_ns=np.ascontiguousarray(self.decided_ns),
            preempted=tuple(
                (batch, request)
                for batch, request in preempted[:, [layout.FIRST, layout.SPAN_REQUEST]].tolist()
            ),
        )


def simulate_fast(instance: Instance, policy: Policy) -> KernelRun:
    """Run a policy over an instance in the kernel.

    Raises
    ------
    UsageError
        If the kernel has no rules for the policy with its settings, or the numbers do not fit it.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    rejections = instance.split_rejected()[1]
    if rejections:
        raise InputError(f"{rejections[0].reason}; remove such requests first (Instance.split_rejected)")
    rules = kernel_rules(instance, policy)
    if rules is None:
        raise UsageError(f"policy {policy.label} has no kernel rules for its settings; use the clear engine")
    workload = Workload.from_instance(instance)
    name_of = instance.columns.request_id.__getitem__
    return _run(workload, rules, instance.cost, policy.label, name_of, _asker(instance, policy))


def _asker(instance: Instance, policy: Policy) -> Callable[[Kernel], Callable[[int], None]] | None:
    """What makes of a kernel the function that answers its questions; None if the policy has no say."""
    from cspsched.simulate.decisions import DecisionPolicy
    from cspsched.simulate.kernel.questions import Questions

    if not isinstance(policy, DecisionPolicy):
        return None
    return lambda kernel: Questions(instance, policy, kernel).answer


def run_workload(
    workload: Workload,
    rules: AnyRules,
    cost: CostModel,
    *,
    label: str,
    name_of: Callable[[int], str] = str,
) -> KernelRun:
    """Run rules over columns; the label and the requests' names are for results and errors.

    Raises
    ------
    UsageError
        If the numbers do not fit the kernel.
    InputError
        If a request can never be served.
    StuckError
        If the policy schedules nothing although nothing more can arrive, or refuses a prompt.
    LivelockError
        If it evicts again and again without a single token generated in between.
    LimitError
        If the run goes on beyond 2^61 ns or about 2^31 batches.
    """
    if isinstance(rules, EachRules) and rules.loop is Loop.DECIDED:
        raise UsageError(f"policy {label} looks at requests, which columns are none of; give an instance")
    return _run(workload, rules, cost, label, name_of, None)


def _run(
    workload: Workload,
    rules: AnyRules,
    cost: CostModel,
    label: str,
    name_of: Callable[[int], str],
    asker: Callable[[Kernel], Callable[[int], None]] | None,
) -> KernelRun:
    if ceil_div(workload.largest_peak, rules.block_tokens) > rules.kv_blocks:
        raise InputError(
            f"a request needs {workload.largest_peak} tokens of KV cache, the device holds "
            f"{rules.kv_blocks} blocks of {rules.block_tokens}; remove such requests first"
        )
    prices = _fitting_prices(workload, rules, cost)
    if prices is None:
        raise UsageError(f"policy {label}: the numbers are too large for the kernel; use the clear engine")
    run, kernel, logs = _loop(rules), new_kernel(workload, rules, prices), Logs()
    tell = asker(kernel) if asker else None
    while (answer := int(run(kernel))) >= layout.FIRST_QUESTION or answer == layout.LOG_FULL:
        if answer == layout.LOG_FULL:
            kernel = logs.grow(kernel)
        elif tell:
            tell(answer)
    if answer != layout.FINISHED:
        raise failure(answer, kernel, rules, label, name_of)
    logs.keep(kernel)
    times_ns = kernel.wide[:, : layout.RECOMPUTED + 1]
    num_preemptions = kernel.rows[:, layout.PREEMPTIONS].copy()
    # The rows go before the logs are joined: of ten million requests they are half a gigabyte.
    del kernel
    return KernelRun(
        policy=label,
        rules=rules,
        workload=workload,
        times_ns=times_ns,
        num_preemptions=num_preemptions,
        batch_ns=logs.column("batch_ns"),
        batch_counts=logs.column("batch_counts"),
        spans=logs.column("spans"),
    )


def _loop(rules: AnyRules) -> Callable[[Kernel], int]:
    """The compiled loop that runs the rules; the others are not loaded."""
    if isinstance(rules, EachRules):
        from cspsched.simulate.kernel.each.loops import loop_of

        return loop_of(rules)
    if rules.order is Order.QUALITY:
        from cspsched.simulate.kernel.quality import run_quality

        return run_quality
    from cspsched.simulate.kernel.core import run_parts, run_vllm

    return run_vllm if rules.batch is Batch.RUNNING_FIRST else run_parts


def run_policy(instance: Instance, policy: Policy, engine: Engine | str = Engine.AUTO) -> Simulation:
    """Run a policy by the engine that suits, or by the one named; the simulation is the same.

    Raises
    ------
    UsageError
        If the kernel is named and cannot run the policy.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    engine = Engine(engine)
    if engine is Engine.AUTO:
        engine = Engine.KERNEL if _suits_kernel(instance, policy) else Engine.CLEAR
    if engine is Engine.CLEAR:
        return simulate(instance, policy)
    return simulate_fast(instance, policy).to_simulation()


def kernel_rules(instance: Instance, policy: Policy) -> AnyRules | None:
    """Rules of a policy under an instance's limits; None if only the clear engine runs it."""
    with Watch(policy, instance.requests):
        rules = policy.kernel_rules(instance) if isinstance(policy, HasKernelRules) else None
    if rules is not None and not isinstance(rules, AnyRules):
        raise PolicyCrashError(
            f"policy {policy.label}: kernel_rules returns {rules!r}, expected KernelRules, EachRules or None"
        )
    return rules


def _suits_kernel(instance: Instance, policy: Policy) -> bool:
    if len(instance.requests) < FEWEST_FOR_KERNEL or instance.split_rejected()[1]:
        return False
    rules = kernel_rules(instance, policy)
    return rules is not None and (
        _fitting_prices(Workload.from_instance(instance), rules, instance.cost) is not None
    )


def _fitting_prices(workload: Workload, rules: AnyRules, cost: CostModel) -> IntArray | None:
    """The flat cost model; None if something does not fit the kernel's numbers."""
    fits = (
        int(workload.output_tokens.max()) < MOST_OUTPUT_TOKENS
        and rules.block_tokens <= MOST_BLOCK_TOKENS
        and rules.kv_blocks <= MOST_BLOCKS
    )
    return flatten_cost(cost, rules, workload.largest_peak) if fits else None


def failure(
    answer: int, kernel: Kernel, rules: AnyRules, label: str, name_of: Callable[[int], str]
) -> Exception:
    """The error behind an answer of the loop, as the clear engine raises it.

    Parameters
    ----------
    name_of
        Name of a request by its position.
    """
    now = kernel.now
    used = rules.kv_blocks - int(now[layout.FREE])
    situation = (
        f"{now[layout.WAITING]} requests wait, {now[layout.RUNNING]} are running "
        f"with {used} of {rules.kv_blocks} KV blocks"
    )
    if answer == layout.LIVELOCK:
        return LivelockError(
            f"policy {label} evicts in a circle: {now[layout.FRUITLESS]} evictions since the "
            f"last generated token or arrival; {situation}"
        )
    if answer == layout.STUCK:
        return StuckError(f"policy {label} schedules nothing although nothing more can arrive: {situation}")
    if answer == layout.PROMPT_REFUSED:
        request = int(now[layout.REFUSED])
        known = int(kernel.rows[request, layout.PROMPT]) + int(kernel.rows[request, layout.GENERATED])
        return StuckError(
            f"policy {label}: request {name_of(request)!r} has {known} tokens to prefill in one batch, which "
            f"holds {rules.longest_prompt}; raise the policy's token budget, or the instance's"
        )
    return LimitError(f"policy {label}: the run is too long, at {now[layout.CLOCK_NS]} ns; split the trace")
