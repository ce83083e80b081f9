"""Measured runs of real servers, simulated: how far TTFT, TPOT and latency are off."""

from cspsched.studies.validation.nouns import MeasuredRun
from cspsched.studies.validation.read import read_runs
from cspsched.studies.validation.study import RunRow, Settings, Validation, validate_runs

__all__ = ["MeasuredRun", "RunRow", "Settings", "Validation", "read_runs", "validate_runs"]
