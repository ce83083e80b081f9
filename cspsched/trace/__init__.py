"""Traces: which requests arrive when, read, written, generated and described."""

from __future__ import annotations

from cspsched.trace.read import read_trace
from cspsched.trace.statistics import describe
from cspsched.trace.trace import Trace
from cspsched.trace.write import write_trace

__all__ = ["Trace", "describe", "read_trace", "write_trace"]
