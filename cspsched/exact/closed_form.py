"""Closed-form lower bounds of any objective: its linear form, bounded part by part.

Latency and TTFT have their certificates and, weighted, what each request needs alone on the machine. A gap
between tokens is at least the cheaper of a lone decode and a lone refill. For missed limits see
`cspsched.bounds.misses`. All hold for every feasible schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cspsched.bounds import best_bound, solo_ns
from cspsched.bounds.misses import fewest_misses
from cspsched.bounds.parts.solo import SoloTable
from cspsched.bounds.parts.tables import Tables
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import LinearForm, is_late, linear_form
from cspsched.problem.objectives import AnyObjective, Objective

LONE_GAPS, LONE_REQUESTS, LATE_JOBS = "lone gaps", "lone requests", "late jobs"
PARTS = (LONE_GAPS, LONE_REQUESTS, LATE_JOBS)
"""Bounds of parts of a mixture that have no certificate."""
NO_LIMIT_NS = 2**62


class ClosedForm(NamedTuple):
    """A closed-form bound, in the objective's own integers."""

    value_ns: int
    name: str
    """The certificate, or those that it is the sum of."""
    details: Mapping[str, int | str]
    """What the certificate was applied to; empty for a sum of several."""


def closed_form_bound(instance: Instance, objective: AnyObjective) -> ClosedForm:
    """Lower bound on an objective."""
    if isinstance(objective, Objective):
        certificate = best_bound(instance, objective)
        return ClosedForm(certificate.value_ns, certificate.name, certificate.details)
    form, parts = linear_form(objective, instance), list[tuple[int, str]]()
    solo = {one: solo_ns(instance, one) for one in (Objective.LATENCY, Objective.TTFT)}
    spans = [latency - first for latency, first in zip(*solo.values(), strict=True)]
    if form.makespan:
        makespan = best_bound(instance, Objective.MAKESPAN)
        parts.append((form.makespan * makespan.value_ns, makespan.name))
    # u F + v D is as much latency as both weights allow, and the rest of the larger one.
    latency = list(map(min, form.first, form.span))
    parts.append(_weighted(instance, Objective.LATENCY, latency, solo[Objective.LATENCY]))
    first = [u - w for u, w in zip(form.first, latency, strict=True)]
    parts.append(_weighted(instance, Objective.TTFT, first, solo[Objective.TTFT]))
    rest = (v - w for v, w in zip(form.span, latency, strict=True))
    parts.append((sum(v * span for v, span in zip(rest, spans, strict=True)), LONE_GAPS))
    gap = form.max_gap * _largest_gap(instance, Tables(instance).solo)
    parts.append((gap, LONE_GAPS))
    parts.append((max(p * span for p, span in zip(form.max_span, spans, strict=True)), LONE_GAPS))
    parts.append((_misses(instance, form, solo[Objective.TTFT], spans), LATE_JOBS))
    counted = [part for part in parts if part[0] > 0]
    names = dict.fromkeys(name for _, name in counted or parts[-1:])
    return ClosedForm(sum(value for value, _ in counted), " + ".join(names), {})


def _weighted(
    instance: Instance, objective: Objective, weights: Sequence[int], lone_ns: Sequence[int]
) -> tuple[int, str]:
    """Bound on a weighted sum of latencies or TTFT: request by request, or all at the smallest weight."""
    alone = sum(weight * time for weight, time in zip(weights, lone_ns, strict=True))
    if min(weights) == 0:
        return alone, LONE_REQUESTS
    together = best_bound(instance, objective)
    surplus = ((weight - min(weights)) * time for weight, time in zip(weights, lone_ns, strict=True))
    mixed = min(weights) * together.value_ns + sum(surplus)
    return (mixed, together.name) if mixed > alone else (alone, LONE_REQUESTS)


def _largest_gap(instance: Instance, solo: SoloTable) -> int:
    """Largest lone time from one token to the next."""
    gaps = [
        solo.later_ns[known] - solo.later_ns[known - 1]
        for request in instance.requests
        for known in range(request.prompt_tokens + 1, request.peak_kv_tokens + 1)
    ]
    return int(max(gaps, default=0))


def _misses(instance: Instance, form: LinearForm, first_ns: Sequence[int], span_ns: Sequence[int]) -> int:
    """Weight of the requests that miss a limit even alone, or of as many as must on one machine."""
    if not any(form.late):
        return 0
    requests = instance.requests
    lost = sum(
        weight
        for weight, request, first, span in zip(form.late, requests, first_ns, span_ns, strict=True)
        if is_late(request, first, span)
    )
    least = min(filter(None, form.late))
    by_first = [_first_limit(r.ttft_limit_ns) for r in requests]
    by_last = [_last_limit(r.ttft_limit_ns, r.tpot_limit_ns, r.output_tokens) for r in requests]
    counts = (fewest_misses(instance, by_first, Objective.TTFT), fewest_misses(instance, by_last))
    return max(lost, *(least * count for count in counts))


def _first_limit(ttft_ns: int | None) -> int:
    return NO_LIMIT_NS if ttft_ns is None else ttft_ns


def _last_limit(ttft_ns: int | None, tpot_ns: int | None, outputs: int) -> int:
    """Latest completion of a request that misses nothing."""
    if ttft_ns is None or (tpot_ns is None and outputs > 1):
        return NO_LIMIT_NS
    return ttft_ns + (tpot_ns or 0) * (outputs - 1)
