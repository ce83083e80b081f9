"""Runs the matrix of a gate: every policy on every trace for every objective, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cspsched.errors import CspschedError, UsageError
from cspsched.exact.watch import Listener
from cspsched.improve.rivals import Rival, Run, run_rivals
from cspsched.policies.base import make_policy
from cspsched.policies.text import PolicyText
from cspsched.problem.instance import Instance, Rejection
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.serving import Serving, make_instance
from cspsched.studies.compare import Comparison, PolicyRow
from cspsched.studies.gate.result import Cell, CellName, GateResult
from cspsched.studies.gate.verdict import GateRules, Side, Value
from cspsched.studies.provenance import provenance_of
from cspsched.studies.reference import ReferenceLimits, find_reference
from cspsched.trace.trace import Trace

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A policy under test.

    Attributes
    ----------
    head
        The policy as it is to be, such as `scheduler.py:Mine`.
    base
        The policy that it is compared with; None: a stored result, or nothing.
    """

    name: str
    head: str
    base: str | None
    rules: GateRules


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A trace with the set-up that it is served by; its name is that of the rows of the matrix."""

    name: str
    trace: Trace
    serving: Serving


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """A case made ready: the servable part of its instance, and the objectives on it."""

    case: Case
    instance: Instance
    rejections: tuple[Rejection, ...]
    objectives: tuple[AnyObjective, ...]


Outcomes = Mapping[str, Run | str]
"""What each policy does on an instance, by its text: a run that the referee accepts, or why there is none."""


def run_gate(
    cases: Sequence[Case],
    contests: Sequence[Contest],
    objectives: Sequence[str],
    *,
    limits: ReferenceLimits | None = None,
    stored: Mapping[CellName, Side] | None = None,
    command: str | None = None,
    on_step: Tell | None = None,
) -> GateResult:
    """Decide every cell on certified statements only.

    What head and base reach is exact: both are simulated on one instance and judged by the referee. An excess
    is within its limit only if the bound proves it. A policy that fails costs its own cells only, and Ctrl-C
    the cells that are not finished.

    Parameters
    ----------
    objectives
        Texts such as `latency` or `misses`.
    limits
        How much goes into each reference; no clock, so that the result repeats to the byte.
    stored
        Sides of an earlier result (`read_stored`), for contests without a base of their own. Where the
        instance is another one, the intervals of the excess are compared.
    command
        What outputs name as the command.

    Raises
    ------
    UsageError
        If there is nothing to run or to decide, a name stands twice, a built-in policy or an objective is
        unknown, or a clock limits the reference.
    """
    limits, tell, stored = limits or ReferenceLimits(), on_step or (lambda _: None), stored or {}
    _refuse(cases, contests, objectives, limits)
    # All traces first: a file that cannot be read may not cost what was computed before it.
    benches = [_bench(case, objectives) for case in cases]
    cells: list[Cell] = []
    comparisons: list[Comparison] = []
    try:
        for bench in benches:
            outcomes = _run_all(bench, contests, tell)
            for objective in bench.objectives:
                found = _compare(bench, _rivals(contests, outcomes, objective), objective, limits, tell)
                if found.is_interrupted:
                    raise KeyboardInterrupt
                facts = provenance_of(
                    bench.instance,
                    outcomes,
                    objective=objective.value,
                    seed=limits.seed,
                    trace=bench.case.trace,
                    serving=bench.case.serving,
                    command=command,
                )
                comparisons.append(replace(found, provenance=facts))
                cells += (_cell(bench, one, outcomes, found, stored) for one in contests)
    except KeyboardInterrupt:
        tell("interrupted: the cells that are not finished are left out")
    return GateResult(
        cells=tuple(cells),
        comparisons=tuple(comparisons),
        seed=limits.seed,
        command=command,
        is_interrupted=len(comparisons) < len(benches) * len(objectives),
    )


def _refuse(
    cases: Sequence[Case], contests: Sequence[Contest], objectives: Sequence[str], limits: ReferenceLimits
) -> None:
    if not limits.repeats:
        raise UsageError("a gate has no clock, or its verdict would not repeat; limit it by steps")
    for what, names in (
        ("trace", [case.name for case in cases]),
        ("policy", [contest.name for contest in contests]),
        ("objective", list(objectives)),
    ):
        if not names:
            raise UsageError(f"a gate needs at least one {what}")
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise UsageError(f"{what} {twice!r} is named twice; give each a name of its own")
    for contest in contests:
        for text in filter(None, (contest.head, contest.base)):
            # What a user's own file does is its own failure; a misspelt name is one of the gate's file.
            if PolicyText.read(text).file is None:
                make_policy(text)


def _bench(case: Case, texts: Sequence[str]) -> _Bench:
    instance, rejections = make_instance(case.trace, case.serving).split_rejected()
    objectives = tuple(_objective(text, instance) for text in texts)
    if len({one.value for one in objectives}) < len(objectives):
        raise UsageError(f"two of the objectives {', '.join(texts)} are the same; name each once")
    return _Bench(case=case, instance=instance, rejections=rejections, objectives=objectives)


def _objective(text: str, instance: Instance) -> AnyObjective:
    first, *others = read_objectives(text, instance)
    if others:
        raise UsageError(
            f"objective {text!r} has {len(others) + 1} stages; a gate takes one, or a weighted sum with +"
        )
    return first


def _run_all(bench: _Bench, contests: Sequence[Contest], tell: Tell) -> Outcomes:
    tell(f"{bench.case.name}: {len(bench.instance.requests)} requests")
    texts = dict.fromkeys(text for one in contests for text in (one.head, one.base) if text)
    return {text: _run(bench.instance, text, tell) for text in texts}


def _run(instance: Instance, text: str, tell: Tell) -> Run | str:
    try:
        (rival,) = run_rivals(instance, Objective.LATENCY, [text], tell)
        return rival.whole_run
    except CspschedError as error:
        return str(error)


def _rivals(contests: Sequence[Contest], outcomes: Outcomes, objective: AnyObjective) -> Iterator[Rival]:
    """The sides that ran, in the order of the contests, head before base."""
    for contest in contests:
        for name, text in ((contest.name, contest.head), (f"{contest.name} (base)", contest.base)):
            run = outcomes[text] if text else None
            if isinstance(run, Run):
                yield Rival(policy=name, value_ns=run.metrics.objective_ns(objective), run=run)


def _compare(
    bench: _Bench, sides: Iterator[Rival], objective: AnyObjective, limits: ReferenceLimits, tell: Tell
) -> Comparison:
    rivals = tuple(sides)
    # Given as schedules, not as policies: a contest may be named like a policy of the reference set.
    reference = find_reference(
        bench.instance, objective, (), rivals, limits=limits, listener=Listener(step=tell)
    )
    return Comparison(
        instance=bench.instance,
        objective=objective,
        rows=tuple(PolicyRow.of(rival, reference) for rival in rivals),
        reference=reference,
        rejections=bench.rejections,
        limits=limits,
    )


def _cell(
    bench: _Bench,
    contest: Contest,
    outcomes: Outcomes,
    comparison: Comparison,
    stored: Mapping[CellName, Side],
) -> Cell:
    objective, reference = comparison.objective, comparison.reference

    def side(text: str) -> Side:
        run = outcomes[text]
        outcome = (
            run
            if isinstance(run, str)
            else Value(
                value_ns=run.metrics.objective_ns(objective),
                best_ns=reference.best_known_ns,
                bound_ns=reference.bound_ns,
            )
        )
        return Side(policy=text, fingerprint=bench.instance.fingerprint(), outcome=outcome)

    name = (bench.case.name, objective.value, contest.name)
    return Cell(
        trace=bench.case.name,
        objective=objective,
        num_requests=len(bench.instance.requests),
        policy=contest.name,
        head=side(contest.head),
        base=side(contest.base) if contest.base else stored.get(name),
        limits=contest.rules.of(objective.value),
    )
