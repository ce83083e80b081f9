"""The compiled simulation kernel: O(1) work per iteration, and exactly the clear engine's schedule."""

from cspsched.simulate.kernel.api import Engine, KernelRun, run_policy, run_workload, simulate_fast
from cspsched.simulate.kernel.rules import KernelRules
from cspsched.simulate.kernel.workload import Workload

__all__ = [
    "Engine", "KernelRules", "KernelRun", "Workload", "run_policy", "run_workload", "simulate_fast",
]  # fmt: skip
