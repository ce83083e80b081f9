"""What a run leaves unused: columns of a trace that nothing simulates, settings of policies without data."""

from __future__ import annotations

from collections.abc import Iterable

from cspsched.policies.base import make_policy
from cspsched.policies.needs import unmet_needs
from cspsched.simulate import Policy
from cspsched.trace import Trace


def warnings_for(
    trace: Trace, policies: Iterable[Policy | str] = (), *, closes_loops: bool = False
) -> list[str]:
    """One line for all columns that are not used, and one for each setting that no request has data for.

    Parameters
    ----------
    trace
        As it was read, with its columns.
    policies
        The policies that run on it, or their texts.
    closes_loops
        Whether turns of sessions arrive when those before have ended; else their arrivals stand.

    Raises
    ------
    UsageError
        If a text names no policy.
    """
    told = list(trace.unused_sentences)
    if not closes_loops and trace.has_sessions:
        told.append(
            f"requests of {trace.name} are turns of sessions, whose arrivals are taken as they stand here; "
            "'simulate' and 'compare' let a turn follow the one before"
        )
    for policy in policies:
        made = make_policy(policy) if isinstance(policy, str) else policy
        for need in unmet_needs(made, trace.requests):
            told.append(f"policy {made.label}: {need.data.value.format(trace.name)}, so {need.without}")
    return told
