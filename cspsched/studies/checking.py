"""Checks what the file of a result states: its schedule, its class, its bound and its status.

The referee judges the schedule. A bound of a closed-form certificate is derived again by
`cspsched.bounds.check_certificate`, which shares nothing with the solver. A bound that a search closed cannot
be derived again here; it is said so, beside the best bound that can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cspsched.bounds import Certificate, certificates, check_certificate
from cspsched.bounds.check import DERIVATIONS
from cspsched.errors import InputError
from cspsched.exact.closed_form import PARTS, closed_form_bound
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import Result, Status, StopReason, status_of, unit_of
from cspsched.referee.metrics import measure
from cspsched.referee.rules import Violation, find_violations

if TYPE_CHECKING:
    from cspsched.exact.watch import SearchLimits

CHECK_SCHEMA = "cspsched/check/2"
MOST_REQUESTS, MOST_TOKENS = 500, 20_000
"""Up to these separate code derives a certificate again in seconds; beyond, the code that made it does."""
SEARCHES = frozenset(
    {
        "state search",
        "packing search",
        "timed state search",
        "level walks",
        "batch counts",
        "batch-indexed CP-SAT",
        "run-to-completion CP-SAT",
    }
)
"""Members of the solver that prove by searching: by name, since what checks the solver does not load it."""
OF_MAKESPAN = frozenset({"level walks", "batch counts"})
OF_COMPLETION = frozenset({"packing search", "batch counts", "run-to-completion CP-SAT"})
"""Those that know nothing else than requests that run to completion."""
OF_BURSTS = frozenset({"state search", "packing search", *OF_MAKESPAN})
"""Those that know nothing else than requests that arrive together."""
OF_SUMS = frozenset({"state search", "packing search", "run-to-completion CP-SAT", *OF_MAKESPAN})
"""Those that know makespan, latency and TTFT only."""
HANDED_DOWN = re.compile(r"(?P<name>.+) \((?P<rung>[^()]+)\)")


class Verdict(StrEnum):
    """What is known of a claim."""

    CONFIRMED = "confirmed"
    """Derived again by code that shares nothing with what made it."""
    REPEATED = "repeated"
    """Computed again by the code that made it."""
    NOT_REDERIVED = "not re-derived"
    """It rests on a search, which is not run again."""
    REFUTED = "refuted"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that a file states, what was derived instead, and a sentence about both."""

    claim: str
    stated: int | float | str | None
    rederived: int | float | str | None
    verdict: Verdict
    sentence: str
    by: str | None = None
    """Of a bound: the certificate that was derived again."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "claim": self.claim,
            "stated": self.stated,
            "rederived": self.rederived,
            "by": self.by,
            "verdict": self.verdict.value,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """What the referee and the checkers say about a file."""

    result: Result
    broken: tuple[Violation, ...]
    """Rules of the problem that the schedule breaks."""
    false: tuple[Violation, ...]
    """What the file states of itself and is not so."""
    claims: tuple[Claim, ...]

    @property
    def faults(self) -> tuple[Violation, ...]:
        """Why the file is refused; empty if it is not."""
        return (*self.broken, *self.false)

    def to_json(self) -> dict[str, Any]:
        """All verdicts, with a schema version."""
        return {
            "schema": CHECK_SCHEMA,
            "accepted": not self.faults,
            "feasible": not self.broken,
            "violations": [fault.to_json() for fault in self.faults],
            "claims": [claim.to_json() for claim in self.claims],
        }


def check_result(data: Any, where: str = "result", *, prove: SearchLimits | None = None) -> Check:
    """Judge a result as `Result.to_json` writes it.

    Parameters
    ----------
    data
        The parsed file: what it states beside what `Result` holds is compared, too.
    where
        Name of the file, for messages.
    prove
        Limits of a search of each stage whose bound rests on one; None believes it.

    Raises
    ------
    InputError
        If the file is no result, or holds no schedule.
    """
    result = Result.from_json(data, where)
    if result.schedule is None:
        raise InputError(f"{where}: holds no schedule to check")
    broken = tuple(find_violations(result.instance, result.schedule))
    if broken:
        return Check(result=result, broken=broken, false=(), claims=())
    claims = [*_value_claims(result), *_derived_claims(result, data)]
    bounds = list(_bound_claims(result))
    if prove is not None:
        bounds = [_searched_again(result, stage, bound, prove) for stage, bound in enumerate(bounds)]
    claims += [*bounds, _status_claim(result, bounds)]
    false = result.violations()
    named = {violation.rule for violation in false}
    # The referee's own sentence about a value, a bound or a status comes first.
    false += [
        Violation(rule=claim.claim, message=claim.sentence)
        for claim in claims
        if claim.verdict is Verdict.REFUTED and claim.claim not in named
    ]
    return Check(result=result, broken=(), false=tuple(false), claims=tuple(claims))


def _value_claims(result: Result) -> Iterator[Claim]:
    """The value of every stage, measured from the schedule."""
    assert result.schedule is not None
    metrics = measure(result.instance, result.schedule)
    stated: list[tuple[AnyObjective, int | None]] = [
        *((stage.objective, stage.primal_ns) for stage in result.earlier),
        (result.objective, result.primal_ns),
    ]
    for objective, value in stated:
        reached, unit = metrics.objective_ns(objective), unit_of(objective)
        yield Claim(
            claim="objective",
            stated=value,
            rederived=reached,
            verdict=Verdict.CONFIRMED if value == reached else Verdict.REFUTED,
            sentence=f"{objective} {value} {unit} stated, the schedule's is {reached} {unit}",
        )


def _derived_claims(result: Result, data: dict[str, Any]) -> Iterator[Claim]:
    """Fields that follow from others; a file may leave them out."""
    truth = result.to_json()
    for key, claim in (("policy_class", "class"), ("unit", "unit"), ("gap_ns", "gap"), ("gap", "gap")):
        if key not in data:
            continue
        stated, derived = data[key], truth.get(key)
        false = f"states {key} {stated!r}, the file's own instance and values make it {derived!r}"
        yield Claim(
            claim=claim,
            stated=stated if isinstance(stated, int | float | str | None) else repr(stated),
            rederived=derived,
            verdict=Verdict.CONFIRMED if stated == derived else Verdict.REFUTED,
            sentence=f"{key} {stated}, as stated" if stated == derived else false,
        )


def _bound_claims(result: Result) -> Iterator[Claim]:
    """The bound of every stage, as far as it can be derived again."""
    for stage in result.earlier:
        yield _bound_claim(result, stage.objective, stage.dual_ns, stage.certificate)
    if result.dual_ns is None:
        yield Claim(
            claim="bound", stated=None, rederived=None, verdict=Verdict.CONFIRMED, sentence="none stated"
        )
    else:
        yield _last_bound_claim(result, result.dual_ns)


def _last_bound_claim(result: Result, dual_ns: int) -> Claim:
    """The bound of the result itself, of which the file may hold more than the name."""
    name, objective = result.certificate, result.objective
    model = result.provenance.get("model")
    member = model.get("name") if isinstance(model, dict) else None
    if name in SEARCHES and member not in (None, name):
        return _refuted(dual_ns, f"{dual_ns} stated by {name}, the provenance names the member {member!r}")
    if name in DERIVATIONS and isinstance(objective, Objective):
        details = dict(result.certificate_details)
        if details and _is_small(result.instance):
            return _confirmed(result, Certificate(name, objective, dual_ns, details), dual_ns)
    return _bound_claim(result, objective, dual_ns, name)


def _bound_claim(result: Result, objective: AnyObjective, dual_ns: int, name: str | None) -> Claim:
    """A bound of which only value and name are known."""
    if name is None:
        return _refuted(dual_ns, f"{dual_ns} {unit_of(objective)} stated without a certificate")
    handed = HANDED_DOWN.fullmatch(name)
    if handed is not None and (handed["name"] in SEARCHES or _is_closed_form(handed["name"], objective)):
        by = f"{handed['name']} on the rung {handed['rung']!r}, whose file has its proof"
        return _searched(result, objective, dual_ns, by)
    if name in SEARCHES and _applies(name, result.instance, objective):
        return _searched(result, objective, dual_ns, name)
    if not _is_closed_form(name, objective):
        return _refuted(dual_ns, f"{name!r} is no certificate of {objective} for this instance")
    if not isinstance(objective, Objective):
        bound = closed_form_bound(result.instance, objective)
        return _repeated(result, objective, dual_ns, bound.value_ns, name)
    found = [one for one in certificates(result.instance, objective) if one.name == name]
    if not found:
        return _refuted(dual_ns, f"{name} does not apply to this instance")
    if not _is_small(result.instance):
        return _repeated(result, objective, dual_ns, found[0].value_ns, name)
    return _confirmed(result, found[0], dual_ns)


def _applies(name: str, instance: Instance, objective: AnyObjective) -> bool:
    """Whether the solver runs a member on such an instance."""
    arrive_together = not any(request.arrival_ns for request in instance.requests)
    return (
        (objective is Objective.MAKESPAN or name not in OF_MAKESPAN)
        and (isinstance(objective, Objective) or name not in OF_SUMS)
        and (instance.switches.run_to_completion or name not in OF_COMPLETION)
        and (arrive_together or name not in OF_BURSTS)
    )


def _is_closed_form(name: str, objective: AnyObjective) -> bool:
    """Whether a closed-form bound of an objective has such a name."""
    if isinstance(objective, Objective):
        return name in DERIVATIONS
    return set(name.split(" + ")) <= {*PARTS, *DERIVATIONS}


def _is_small(instance: Instance) -> bool:
    """Whether separate code derives a certificate again in seconds."""
    tokens = sum(request.peak_kv_tokens for request in instance.requests)
    return len(instance.requests) <= MOST_REQUESTS and tokens <= MOST_TOKENS


def _confirmed(result: Result, certificate: Certificate, stated_ns: int) -> Claim:
    """A certificate that separate code derives again, or objects to."""
    name, value_ns = certificate.name, certificate.value_ns
    objections = _objections(result.instance, certificate)
    if objections:
        objection = objections[0].removeprefix(f"{name} states {value_ns} ns, ")
        return _refuted(stated_ns, f"{stated_ns} ns stated by {name}: {objection}")
    if stated_ns > value_ns:
        return _too_high(stated_ns, value_ns, name)
    gap = _gap(result, certificate.objective, stated_ns)
    return Claim(
        claim="bound",
        stated=stated_ns,
        rederived=value_ns,
        verdict=Verdict.CONFIRMED,
        by=name,
        sentence=f"{stated_ns} ns stated by {name}, re-derived{gap}",
    )


def _objections(instance: Instance, certificate: Certificate) -> list[str]:
    """What separate code says against a certificate; details without meaning are an objection, too."""
    try:
        return check_certificate(instance, certificate)
    except InputError as error:
        return [str(error)]


def _repeated(result: Result, objective: AnyObjective, stated_ns: int, value_ns: int, name: str) -> Claim:
    """A bound that the code that made it makes again."""
    if stated_ns > value_ns:
        return _too_high(stated_ns, value_ns, name)
    unit, gap = unit_of(objective), _gap(result, objective, stated_ns)
    return Claim(
        claim="bound",
        stated=stated_ns,
        rederived=value_ns,
        verdict=Verdict.REPEATED,
        by=name,
        sentence=f"{stated_ns} {unit} stated by {name}, computed again by the code that made it{gap}",
    )


def _searched(result: Result, objective: AnyObjective, stated_ns: int, by: str) -> Claim:
    """A bound that a search closed, beside the best one that can be derived again."""
    how, unit = "computed again", unit_of(objective)
    if isinstance(objective, Objective):
        best = certificates(result.instance, objective)[0]
        value_ns, name = best.value_ns, best.name
        if _is_small(result.instance) and not _objections(result.instance, best):
            how = "re-derived"
    else:
        value_ns, name, _ = closed_form_bound(result.instance, objective)
    least = f"at least {value_ns} {unit} ({name}){_gap(result, objective, value_ns)}"
    return Claim(
        claim="bound",
        stated=stated_ns,
        rederived=value_ns,
        verdict=Verdict.NOT_REDERIVED,
        by=name,
        sentence=f"{stated_ns} {unit} stated by {by}, not re-derived; {how}: {least}",
    )


def _searched_again(result: Result, stage: int, claim: Claim, limits: SearchLimits) -> Claim:
    """The claim of a stage's bound after a search of its own, which starts from the schedule of the file."""
    if claim.verdict is not Verdict.NOT_REDERIVED or not isinstance(claim.stated, int):
        return claim
    from cspsched.exact.model.exact_model import Ceiling
    from cspsched.exact.solver import solve_exactly

    assert result.schedule is not None
    objective = [*(one.objective for one in result.earlier), result.objective][stage]
    ceilings = [Ceiling(objective=one.objective, most_ns=one.primal_ns) for one in result.earlier[:stage]]
    given = [("the file", result.schedule)]
    found = solve_exactly(result.instance, objective, limits, candidates=given, ceilings=ceilings)
    value_ns, bound_ns, unit = found.primal_ns or 0, found.dual_ns or 0, unit_of(objective)
    stated = f"{claim.stated} {unit} stated"
    if value_ns < claim.stated:
        better = f"{found.found_by} has a schedule of {value_ns} {unit}"
        return replace(_refuted(claim.stated, f"{stated}, and {better}"), rederived=bound_ns)
    if bound_ns < claim.stated:
        least = f"at least {bound_ns} {unit} ({found.certificate}){_gap(result, objective, bound_ns)}"
        sentence = f"{stated}, not proven again in time: {least}"
        return replace(claim, rederived=bound_ns, by=found.certificate, sentence=sentence)
    return replace(
        claim,
        rederived=bound_ns,
        by=found.certificate,
        verdict=Verdict.REPEATED,
        sentence=f"{stated}, proven again by {found.certificate}{_gap(result, objective, claim.stated)}",
    )


def _too_high(stated_ns: int, value_ns: int, name: str) -> Claim:
    sentence = f"{stated_ns} stated by {name}, which proves no more than {value_ns}"
    return replace(_refuted(stated_ns, sentence), rederived=value_ns, by=name)


def _refuted(stated_ns: int, sentence: str) -> Claim:
    return Claim(claim="bound", stated=stated_ns, rederived=None, verdict=Verdict.REFUTED, sentence=sentence)


def _gap(result: Result, objective: AnyObjective, bound_ns: int) -> str:
    """How far a bound is from the schedule, as words at the end of a sentence."""
    assert result.schedule is not None
    value_ns = measure(result.instance, result.schedule).objective_ns(objective)
    return f", gap {100 * (value_ns - bound_ns) / value_ns:.3g} %" if value_ns else ""


def _status_claim(result: Result, bounds: list[Claim]) -> Claim:
    """The status against value, bound and why the search stopped."""
    doubts = list(_status_doubts(result))
    verdicts = {bound.verdict for bound in bounds}
    if doubts or (result.status.is_optimal and Verdict.REFUTED in verdicts):
        verdict = Verdict.REFUTED
    elif result.status.is_optimal and not verdicts <= {Verdict.CONFIRMED}:
        verdict = Verdict.NOT_REDERIVED if Verdict.NOT_REDERIVED in verdicts else Verdict.REPEATED
    else:
        verdict = Verdict.CONFIRMED
    told = {
        Verdict.CONFIRMED: "as stated",
        Verdict.REPEATED: "if the code that made the bound is right",
        Verdict.NOT_REDERIVED: "if the search that stated the bound is right",
        Verdict.REFUTED: "; ".join(doubts) or "its bound does not hold",
    }[verdict]
    return Claim(
        claim="status",
        stated=result.status.value,
        rederived=None if verdict is Verdict.REFUTED else result.status.value,
        verdict=verdict,
        sentence=f"{result.verdict}, {told}",
    )


def _status_doubts(result: Result) -> Iterator[str]:
    """Contradictions between the status and the other words of a result."""
    if result.status in (Status.INFEASIBLE, Status.UNKNOWN):
        yield "the file holds a feasible schedule"
    for status, reason in (
        (Status.OPTIMAL, StopReason.PROVEN),
        (Status.OPTIMAL_UP_TO_ROUNDING, StopReason.ROUNDING),
    ):
        if result.status is status and result.stop_reason is not reason:
            yield f"the search stopped for another reason: {result.stop_reason}"
    for stage in result.earlier:
        reason = StopReason.ROUNDING if stage.status is Status.OPTIMAL_UP_TO_ROUNDING else StopReason.PROVEN
        interval_ns = stage.dual_ns, stage.primal_ns
        known = status_of(result.instance, stage.objective, result.schedule, interval_ns, reason)
        if stage.status is not known:
            yield f"stage {stage.objective} states {stage.status}, bound and value make it {known}"
    if result.stop_reason is StopReason.PROVEN and not result.status.is_optimal:
        yield f"the search stopped because it was {result.stop_reason}"
