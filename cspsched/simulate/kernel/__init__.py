"""The simulation kernel: one text of every policy, plain or compiled, with O(1) work per iteration."""

from cspsched.simulate.kernel.api import Engine, new_replica, run_workload, simulate, simulate_fast
from cspsched.simulate.kernel.replica import KernelReplica
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.run import KernelRun
from cspsched.simulate.kernel.workload import Workload

__all__ = [
    "Engine",
    "KernelReplica",
    "KernelRun",
    "Rules",
    "Workload",
    "new_replica",
    "run_workload",
    "simulate",
    "simulate_fast",
]  # fmt: skip
