"""The event simulator: what a policy may see and do, replicas that run it, and the recorded schedule."""

from cspsched.errors import LivelockError, PolicyCrashError, PolicyError, StuckError
from cspsched.simulate.kernel.api import Engine, new_replica, run_workload, simulate, simulate_fast
from cspsched.simulate.kernel.replica import KernelReplica
from cspsched.simulate.protocol import Machine, Policy, PolicyRun, StepPolicy
from cspsched.simulate.replica import Replica, ReplicaView
from cspsched.simulate.simulation import Simulation
from cspsched.simulate.step import CachedPrefix, Step

__all__ = [
    "CachedPrefix",
    "Engine",
    "KernelReplica",
    "LivelockError",
    "Machine",
    "Policy",
    "PolicyCrashError",
    "PolicyError",
    "PolicyRun",
    "Replica",
    "ReplicaView",
    "Simulation",
    "Step",
    "StepPolicy",
    "StuckError",
    "new_replica",
    "run_workload",
    "simulate",
    "simulate_fast",
]
