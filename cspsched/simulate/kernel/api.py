"""Running a policy in the kernel, and the front door that chooses between the kernel and the clear engine."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from cspsched.errors import UsageError
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance
from cspsched.simulate.engine import StepReplica, simulate
from cspsched.simulate.kernel.each.rules import AnyRules, EachRules
from cspsched.simulate.kernel.replica import KernelReplica
from cspsched.simulate.kernel.rules import Order
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
    """Which engine runs a policy; the schedule is the same."""

    AUTO = "auto"
    """The kernel where it can, compiled for large traces; else the clear engine."""
    CLEAR = "clear"
    """Step by step, as policies in Python are asked; runs every policy."""
    PLAIN = "plain"
    """The kernel as plain Python; runs policies with kernel rules."""
    KERNEL = "kernel"
    """The kernel compiled."""


def simulate_fast(instance: Instance, policy: Policy, *, plain: bool = False) -> KernelRun:
    """Run a policy over an instance in the kernel, compiled or as plain Python.

    Raises
    ------
    UsageError
        If the kernel has no rules for the policy with its settings, or the numbers do not fit it.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    loop = new_loop(instance, policy, plain=plain)
    loop.go_on()
    return loop.result()


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
    if isinstance(rules, EachRules) and rules.asks:
        raise UsageError(f"policy {label} looks at requests, which columns are none of; give an instance")
    loop = KernelLoop(workload, rules, cost, label=label, name_of=name_of)
    loop.go_on()
    return loop.result()


def run_policy(instance: Instance, policy: Policy, engine: Engine | str = Engine.AUTO) -> Simulation:
    """Run a policy by the engine that suits, or by the one named; the simulation is the same.

    Raises
    ------
    UsageError
        If the kernel is named and cannot run the policy.
    InputError, PolicyError, LivelockError
        As `simulate`.
    """
    engine = _chosen(instance, policy, engine)
    if engine is Engine.CLEAR:
        return simulate(instance, policy)
    return simulate_fast(instance, policy, plain=engine is Engine.PLAIN).to_simulation()


def new_replica(instance: Instance, policy: Policy, engine: Engine | str = Engine.AUTO) -> Replica:
    """A replica to which nothing has been submitted, run by the engine that suits or by the one named.

    Raises
    ------
    UsageError
        If the kernel is named and cannot run the policy.
    InputError
        If the instance has a request that can never be served.
    """
    engine = _chosen(instance, policy, engine)
    if engine is Engine.CLEAR:
        return StepReplica(instance, policy)
    return KernelReplica(instance, policy, plain=engine is Engine.PLAIN)


def _chosen(instance: Instance, policy: Policy, engine: Engine | str) -> Engine:
    """The engine that is named, or else the one that suits."""
    engine = Engine(engine)
    if engine is not Engine.AUTO:
        return engine
    if instance.split_rejected()[1]:
        return Engine.CLEAR
    rules = kernel_rules(instance, policy)
    if rules is None or fitting_prices(Workload.from_instance(instance), rules, instance.cost) is None:
        return Engine.CLEAR
    if len(instance.requests) >= FEWEST_FOR_KERNEL:
        return Engine.KERNEL
    return Engine.PLAIN if _runs_well_plain(rules) else Engine.CLEAR


def _runs_well_plain(rules: AnyRules) -> bool:
    """Whether plain Python gains by the kernel: not where each step looks at every request in its arrays."""
    if isinstance(rules, EachRules):
        return rules.lockstep and not rules.clients
    return rules.order is not Order.QUALITY
