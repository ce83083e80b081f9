"""The front door: running a policy over an instance, plain or compiled."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from cspsched.errors import UsageError
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.decided import run_decided
from cspsched.simulate.kernel.replica import KernelReplica
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.run import KernelRun
from cspsched.simulate.kernel.running import KernelLoop, fitting_prices
from cspsched.simulate.kernel.support import kernel_rules, new_loop
from cspsched.simulate.kernel.workload import Workload
from cspsched.simulate.protocol import Policy
from cspsched.simulate.replica import Replica
from cspsched.simulate.simulation import Simulation

FEWEST_FOR_KERNEL = 5000
"""Requests from which on it pays to load numba, if it has compiled before."""


class Engine(StrEnum):
    """How the kernel runs a policy; the schedule is the same."""

    AUTO = "auto"
    """Compiled for large traces where the policy has rules, else plain."""
    PLAIN = "plain"
    """As plain Python; runs every policy."""
    COMPILED = "compiled"
    """Compiled; runs policies with kernel rules."""


def simulate_fast(instance: Instance, policy: Policy, *, plain: bool = False) -> KernelRun:
    """Run a policy over an instance in the kernel, compiled or as plain Python.

    Raises
    ------
    UsageError
        If it is to be compiled and the policy decides step by step, or the numbers do not fit.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    loop = new_loop(instance, policy, plain=plain)
    loop.go_on()
    return loop.result()


def run_workload(
    workload: Workload,
    rules: Rules,
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
    if rules.run is run_decided:
        raise UsageError(f"policy {label} looks at requests, which columns are none of; give an instance")
    loop = KernelLoop(workload, rules, cost, label=label, name_of=name_of)
    loop.go_on()
    return loop.result()


def simulate(instance: Instance, policy: Policy, engine: Engine | str = Engine.AUTO) -> Simulation:
    """Run a policy over an instance until every request has generated its last token.

    Arrivals at or before the clock are submitted in (arrival, file) order before each decision. A decision
    without a batch waits for the next arrival; one that only evicted is asked again at once.

    Raises
    ------
    UsageError
        If it is to be compiled and the policy decides step by step, or the numbers do not fit.
    InputError
        If the instance has a request that can never be served (see `Instance.split_rejected`).
    PolicyError
        If the policy breaks a limit.
    StuckError
        If it schedules nothing although nothing more can arrive.
    LivelockError
        If it evicts again and again without a single token generated in between.
    """
    return simulate_fast(instance, policy, plain=_is_plain(instance, policy, engine)).to_simulation()


def new_replica(instance: Instance, policy: Policy, engine: Engine | str = Engine.AUTO) -> Replica:
    """A replica to which nothing has been submitted, run by the engine that suits or by the one named.

    Raises
    ------
    UsageError, InputError
        As `simulate`.
    """
    return KernelReplica(instance, policy, plain=_is_plain(instance, policy, engine))


def _is_plain(instance: Instance, policy: Policy, engine: Engine | str) -> bool:
    """Whether the engine that is named, or else the one that suits, is plain Python."""
    if Engine(engine) is not Engine.AUTO:
        return Engine(engine) is Engine.PLAIN
    if len(instance.columns.arrival_ns) < FEWEST_FOR_KERNEL or instance.split_rejected()[1]:
        return True
    rules = kernel_rules(instance, policy)
    return rules is None or fitting_prices(Workload.from_instance(instance), rules, instance.cost) is None
