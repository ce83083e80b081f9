"""cspsched says how far an LLM server's scheduler is from the best possible schedule.

    import cspsched

    trace = cspsched.read_trace(cspsched.shipped_trace_path("chat-2000"))
    instance = cspsched.make_instance(trace)
    comparison = cspsched.compare_policies(instance, ["vllm", "sarathi"])
    print(comparison.rows[0].policy, comparison.rows[0].excess)

The names below are loaded when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cspsched.bounds import Certificate as Certificate
    from cspsched.bounds import best_bound as best_bound
    from cspsched.bounds import certificates as certificates
    from cspsched.errors import CspschedError as CspschedError
    from cspsched.exact.watch import SearchLimits as SearchLimits
    from cspsched.policies.base import make_policy as make_policy
    from cspsched.problem.excess import Excess as Excess
    from cspsched.problem.instance import Instance as Instance
    from cspsched.problem.instance import Limits as Limits
    from cspsched.problem.instance import Preemption as Preemption
    from cspsched.problem.instance import Switches as Switches
    from cspsched.problem.objectives import Objective as Objective
    from cspsched.problem.request import Request as Request
    from cspsched.problem.result import Result as Result
    from cspsched.problem.schedule import Schedule as Schedule
    from cspsched.referee.metrics import measure as measure
    from cspsched.referee.rules import find_violations as find_violations
    from cspsched.serving import Serving as Serving
    from cspsched.serving import make_instance as make_instance
    from cspsched.studies.compare import Comparison as Comparison
    from cspsched.studies.compare import compare_policies as compare_policies
    from cspsched.studies.reference import ReferenceLimits as ReferenceLimits
    from cspsched.studies.solving import solve as solve
    from cspsched.trace import read_trace as read_trace
    from cspsched.trace.shipped import shipped_trace_path as shipped_trace_path

_HOME = {
    "Certificate": "bounds",
    "best_bound": "bounds",
    "certificates": "bounds",
    "Comparison": "studies.compare",
    "compare_policies": "studies.compare",
    "CspschedError": "errors",
    "SearchLimits": "exact.watch",
    "make_policy": "policies.base",
    "Excess": "problem.excess",
    "Instance": "problem.instance",
    "Limits": "problem.instance",
    "Preemption": "problem.instance",
    "Switches": "problem.instance",
    "Objective": "problem.objectives",
    "measure": "referee.metrics",
    "find_violations": "referee.rules",
    "Request": "problem.request",
    "Result": "problem.result",
    "Schedule": "problem.schedule",
    "ReferenceLimits": "studies.reference",
    "Serving": "serving",
    "make_instance": "serving",
    "solve": "studies.solving",
    "read_trace": "trace",
    "shipped_trace_path": "trace.shipped",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cspsched' has no attribute {name!r}")
    value = getattr(import_module(f"cspsched.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
