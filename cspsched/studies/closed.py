"""Policies in a closed loop, each measured on the arrivals that its own run brings about, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cspsched.errors import UsageError
from cspsched.exact.watch import SILENT, Listener
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.simulate.closed_loop import closed_loop_of, simulate_closed
from cspsched.studies.compare import Comparison, compare_policies
from cspsched.studies.reference import ReferenceLimits


def compare_closed(
    instance: Instance,
    heuristics: Sequence[str],
    objective: AnyObjective,
    *,
    concurrency: int | None,
    limits: ReferenceLimits,
    listener: Listener = SILENT,
) -> tuple[Comparison, ...]:
    """Compare each policy with the best schedule for the arrivals of its own closed loop.

    A policy that is fast sends its next requests earlier, so each has an instance and a reference of its own.
    A time limit is shared evenly.

    Raises
    ------
    UsageError, InputError
        As `compare_policies` and `simulate_closed`; if the instance has no sessions and no concurrency is
        given.
    """
    servable, rejections = instance.split_rejected()
    loop = closed_loop_of(servable, concurrency)
    if loop is None:
        raise UsageError("the trace has no sessions and no concurrency is given, so there is no closed loop")
    labels = [make_policy(text).label for text in heuristics]
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"name at least one policy, and each once; got: {', '.join(labels) or 'none'}")
    comparisons = []
    for text, label in zip(heuristics, labels, strict=True):
        listener.step(f"closing the loop under {label}")
        frozen, _ = simulate_closed(servable, make_policy(text), loop)
        share = limits.share(1 / len(labels))
        comparison = compare_policies(frozen, [text], objective, limits=share, listener=listener)
        comparisons.append(
            replace(comparison, rejections=rejections, limits=limits, arrivals=loop.sentence(label))
        )
    return tuple(comparisons)
