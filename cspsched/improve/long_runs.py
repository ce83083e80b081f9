"""Schedules of many millions of entries: judged as runs, and not kept."""

from __future__ import annotations

from cspsched.problem.instance import Instance

MOST_ENTRIES = 20_000_000
"""Output tokens up to which schedules are kept: of more the runs of each are some hundred megabytes."""


def is_long(instance: Instance) -> bool:
    """Whether schedules of an instance are dropped once they are judged."""
    return int(instance.columns.output_tokens.sum()) > MOST_ENTRIES
