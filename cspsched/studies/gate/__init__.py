"""A gate for CI: a scheduler stays within stated limits, and head is no worse than base."""

from __future__ import annotations

from cspsched.studies.gate.run import Case, Contest, run_gate
from cspsched.studies.gate.verdict import GateRules

__all__ = ["Case", "Contest", "GateRules", "run_gate"]
