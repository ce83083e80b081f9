"""The errors that cspsched raises on purpose; each knows the exit code of the command line."""

from __future__ import annotations


class CspschedError(Exception):
    """Base of all errors raised on purpose: one sentence that says what, where, what was got, what to do."""

    exit_code = 1


class InputError(CspschedError):
    """A file or a value of the user's is not what it has to be."""


class TraceError(InputError):
    """A trace cannot be read, or one of its requests makes no sense."""


class CostError(InputError):
    """A cost model is malformed or prices something negatively."""


class UsageError(CspschedError):
    """The command or the call itself is wrong (unknown name, contradicting options)."""

    exit_code = 2


class InfeasibleError(CspschedError):
    """Proven: no schedule exists (for instance a request larger than the KV cache)."""

    exit_code = 4


class LimitError(CspschedError):
    """A limit was hit before there was anything to return."""

    exit_code = 5


class PolicyError(CspschedError):
    """A policy did what it may not as it ran, or nothing although nothing more can arrive."""


class StuckError(PolicyError):
    """A policy cannot serve an instance by its own rules: nothing more happens, or always the same."""


class LivelockError(StuckError):
    """A policy evicts and refills in a circle."""


class PolicyCrashError(PolicyError):
    """The code of a policy that is not ours raised an exception, its cause here, or answered nonsense."""

    exit_code = 6


class InternalError(CspschedError):
    """Two parts of cspsched disagree: a bug, said instead of hidden."""
