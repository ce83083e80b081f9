"""Schedules better than every policy, on traces too large to solve, and the bracket around the optimum."""

from cspsched.improve.bracket import Bracket
from cspsched.improve.improvement import Found, ImproveLimits, Improvement, Rival, find_better, improve

__all__ = ["Bracket", "Found", "ImproveLimits", "Improvement", "Rival", "find_better", "improve"]
