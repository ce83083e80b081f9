"""Which policies the kernel runs, on which rules, and who answers its questions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

from cspsched.errors import InputError, PolicyCrashError, UsageError
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.machine import answer_with
from cspsched.simulate.kernel.rules import HasKernelRules, Rules
from cspsched.simulate.kernel.running import Asker, KernelLoop
from cspsched.simulate.kernel.workload import Workload
from cspsched.simulate.protocol import Machine, Policy, StepPolicy
from cspsched.simulate.steps import step_rules
from cspsched.simulate.watch import Watch


def new_loop(
    instance: Instance, policy: Policy, *, plain: bool = False, machine: Machine | None = None
) -> KernelLoop:
    """A policy on the kernel, compiled or as plain Python, about to serve the whole instance.

    Raises
    ------
    UsageError
        If it is to be compiled and the policy decides step by step, or the numbers do not fit.
    InputError
        If the instance has a request that can never be served.
    """
    rejections = instance.split_rejected()[1]
    if rejections:
        raise InputError(f"{rejections[0].reason}; remove such requests first (Instance.split_rejected)")
    rules = kernel_rules(instance, policy)
    if rules is None and not plain:
        raise UsageError(f"policy {policy.label} decides step by step in Python, which is not compiled")
    if rules is None:
        rules = step_rules(instance, cast(StepPolicy, policy))
    asker = _asker(instance, policy)
    if machine is not None:
        rules, asker = _in_flights(rules, policy), partial(answer_with, machine)
        if not plain:
            raise UsageError("compiled code cannot ask a machine; run the policy as plain Python")
    return KernelLoop(
        Workload.from_instance(instance),
        rules,
        instance.cost,
        label=policy.label,
        name_of=instance.columns.request_id.__getitem__,
        asker=asker,
        plain=plain,
    )


def kernel_rules(instance: Instance, policy: Policy) -> Rules | None:
    """Rules of a policy under an instance's limits; None if it decides step by step."""
    with Watch(policy, instance.requests):
        rules = policy.kernel_rules(instance) if isinstance(policy, HasKernelRules) else None
    if rules is not None and not isinstance(rules, Rules):
        raise PolicyCrashError(
            f"policy {policy.label}: kernel_rules returns {rules!r}, expected Rules, Rules or None"
        )
    return rules


def _asker(instance: Instance, policy: Policy) -> Asker | None:
    """What makes of a kernel the function that answers its questions; None if the policy has no say."""
    from cspsched.simulate.decisions import DecisionPolicy
    from cspsched.simulate.kernel.questions import Questions

    if not isinstance(policy, DecisionPolicy):
        return None
    return lambda loop: Questions(instance, policy, loop.kernel).answer


def _in_flights(rules: Rules, policy: Policy) -> Rules:
    """The rules of a policy for a machine, which tells when a batch ends as it is launched."""
    if not rules.flights:
        raise UsageError(f"policy {policy.label} cannot run on a machine; only Vidur's policies can")
    return replace(rules, lockstep=False)
