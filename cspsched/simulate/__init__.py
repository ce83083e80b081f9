"""The event simulator: engine, KV block pool, what a policy may see and do, the recorded schedule."""

from cspsched.errors import PolicyCrashError, PolicyError, StuckError
from cspsched.simulate.engine import LivelockError, StepReplica, simulate
from cspsched.simulate.prefix_cache import CachedPrefix
from cspsched.simulate.protocol import Machine, Policy, PolicyRun
from cspsched.simulate.replica import Replica, ReplicaView
from cspsched.simulate.simulation import Simulation
from cspsched.simulate.step import Step

__all__ = [
    "CachedPrefix",
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
    "StepReplica",
    "StuckError",
    "simulate",
]
