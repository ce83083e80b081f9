"""Solves an instance exactly: incumbents, closed-form bounds, the portfolio, and a result with its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from cspsched.compiled.jit import told_of_compiling
from cspsched.errors import UsageError
from cspsched.exact import portfolio
from cspsched.exact.closed_form import closed_form_bound
from cspsched.exact.heuristics.first_schedules import first_schedules
from cspsched.exact.model.exact_model import Ceiling
from cspsched.exact.race import Race
from cspsched.exact.record import Details, Ending, Proof, Record, best_incumbent
from cspsched.exact.watch import Progress, SearchLimits, Watch
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.result import Result, StopReason, short_details, status_of, tool_versions
from cspsched.problem.schedule import Schedule

COMPILING = "compiling the search, once after an installation; the time limit waits"
PORTFOLIO = "the portfolio"


def solve_exactly(
    instance: Instance,
    objective: AnyObjective,
    limits: SearchLimits,
    *,
    candidates: Iterable[tuple[str, Schedule]] = (),
    ceilings: Sequence[Ceiling] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Best schedule and proven lower bound of an instance whose requests all fit.

    Parameters
    ----------
    candidates
        Named schedules, for instance of policies. Those that the referee accepts under the instance's
        switches compete for the first incumbent; the result is never worse than any of them.
    ceilings
        Objectives that may not get worse than a value. One of the candidates must keep to all of them; those
        that do not are passed over.

    Notes
    -----
    The model's bound counts only if its horizon is certified; otherwise the dual bound is that of the state
    search or a closed-form certificate, and the result says so. Members that do not know the objective, swap
    or ceilings are not run. A member that fails is passed over: the others go on, and the provenance of the
    result names it under `failures`.
    """
    if instance.switches.prefix_caching:
        raise UsageError(
            "the exact solver knows no prefix cache hits: it proves optima of schedules without them; "
            "switch prefix_caching off in the instance, or use 'cspsched improve'"
        )
    incumbent = best_incumbent(
        instance, objective, [*first_schedules(instance, objective), *candidates], ceilings
    )
    bound = closed_form_bound(instance, objective)
    names = {"best_by": incumbent.found_by, "bound_by": bound.name}
    watch = Watch(limits, incumbent.value_ns, bound.value_ns, on_progress, **names)
    proof = Proof(dual_ns=bound.value_ns, certificate=bound.name, certificate_details=bound.details)
    record = Record(instance, objective, incumbent, proof, watch, ceilings)
    endings: list[Ending] = []
    try:
        watch.tell()
        if not record.is_closed:
            with told_of_compiling(lambda: watch.pause(COMPILING), watch.resume):
                race = Race(record, limits, portfolio.PORTFOLIO, endings)
                record.attempt(PORTFOLIO, race.run, None)
    except KeyboardInterrupt:
        endings.append((StopReason.INTERRUPTED, {}))
    record.check()
    return _result(record, endings, limits)


def _stop_reason(endings: list[Ending]) -> StopReason:
    """Why the gap is open: what says most about it."""
    reasons = [reason for reason, _ in endings]
    for reason in (StopReason.INTERRUPTED, StopReason.ROUNDING, StopReason.TIME_LIMIT):
        if reason in reasons:
            return reason
    # A proof that is none any more, or a member that failed, is why only if there was no other.
    others = [one for one in reasons if one not in (StopReason.FAILED, StopReason.PROVEN)]
    return others[-1] if others else StopReason.FAILED


def _details(proof: Proof, endings: list[Ending]) -> Details:
    """What is known of the member that proved the bound, else of the last that searched."""
    known = [details for _, details in endings if details]
    named = [details for details in known if details["name"] == proof.certificate]
    return (named or ([proof.details] if proof.details else known[-1:]) or [{}])[0]


def _result(record: Record, endings: list[Ending], limits: SearchLimits) -> Result:
    incumbent, proof = record.incumbent, record.proof
    stop_reason = StopReason.PROVEN if record.is_closed else _stop_reason(endings)
    interval_ns = proof.dual_ns, incumbent.value_ns
    return Result(
        instance=record.instance,
        objective=record.objective,
        schedule=incumbent.schedule,
        primal_ns=incumbent.value_ns,
        dual_ns=proof.dual_ns,
        status=status_of(record.instance, record.objective, incumbent.schedule, interval_ns, stop_reason),
        stop_reason=stop_reason,
        found_by=incumbent.found_by,
        certificate=proof.certificate,
        certificate_details=short_details(proof.certificate_details),
        provenance={
            "versions": tool_versions(),
            "parameters": asdict(limits),
            "model": dict(_details(proof, endings)),
            "failures": [failure.to_json() for failure in record.failures],
        },
    )
