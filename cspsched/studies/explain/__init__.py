"""Why a policy is above the optimum: causes, ignorance, shadow prices, and what a request waits for."""

from cspsched.studies.explain.study import Explanation, ExplanationTask, Part, explain

__all__ = ["Explanation", "ExplanationTask", "Part", "explain"]
