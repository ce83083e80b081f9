"""Schedules better than every policy, on traces too large to solve, and the bracket around the optimum."""

from cspsched.improve.bracket import Bracket, BracketTask, find_bracket, find_light_bracket
from cspsched.improve.improvement import ImproveLimits, find_better, improve
from cspsched.improve.outcome import Found, Improvement
from cspsched.improve.rivals import Rival

__all__ = [
    "Bracket",
    "BracketTask",
    "Found",
    "ImproveLimits",
    "Improvement",
    "Rival",
    "find_better",
    "find_bracket",
    "find_light_bracket",
    "improve",
]
