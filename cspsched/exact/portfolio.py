"""Solves an instance exactly: incumbents, closed-form bounds, the portfolio, and a result with its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict

from cspsched.compiled.jit import told_of_compiling
from cspsched.exact.closed_form import closed_form_bound
from cspsched.exact.heuristics.first_schedules import first_schedules
from cspsched.exact.heuristics.local_search import LOCAL_SEARCH, can_dispatch
from cspsched.exact.members import (
    MODEL,
    beside,
    is_affordable,
    name_of,
    prepare_states,
    run_counts,
    run_descents,
    run_levels,
    run_local_search,
    run_model,
    run_states,
    run_timed,
)
from cspsched.exact.model.batch_counts import BATCH_COUNTS, SCALE, can_count
from cspsched.exact.model.exact_model import Ceiling
from cspsched.exact.packing.space import PackingSpace, build_packing_space
from cspsched.exact.prices.aggregated_bound import LEVEL_WALKS, can_bound_levels
from cspsched.exact.record import Details, Ending, Proof, Record, best_incumbent
from cspsched.exact.search import Progress, SearchLimits, Watch
from cspsched.exact.states.search import STATE_SEARCH
from cspsched.exact.states.space import MOST_TIME, StateSpace, build_state_space
from cspsched.exact.timed.search import TIMED_SEARCH, TimedSpace, build_timed_space
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.lifting import is_swap_idle, without_swap
from cspsched.problem.objectives import AnyObjective, Objective
from cspsched.problem.result import Result, StopReason, short_details, status_of, tool_versions
from cspsched.problem.schedule import Schedule

HEAD_START_S = 2.0
"""What the state search has for itself: it proves small instances before a model would be built."""
COMPLETION_HEAD_START_S = 6.0
"""The same where requests run to completion: CP-SAT proves less there, and takes seconds to begin."""
MOST_HEAD_START = 0.25
"""The same as a share of the time limit, at most."""
LOCAL_START_S = 0.1
"""What local search has for itself before a model is built."""
LOCAL_SHARE = 0.2
"""Part of the time that local search gets beside members that go on."""
COUNT_SHARE = 0.5
"""Part of the time that questions about counts of batches get before a model is built."""
LEVEL_SHARE = 0.8
"""Part of what is then left that prices of ways through levels get."""
COMPILING = "compiling the search, once after an installation; the time limit waits"
PORTFOLIO = "the portfolio"
FAILED: Ending = (StopReason.FAILED, {})


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
                record.attempt(PORTFOLIO, lambda: _search(record, limits, endings), None)
    except KeyboardInterrupt:
        endings.append((StopReason.INTERRUPTED, {}))
    record.check()
    return _result(record, endings, limits)


def _search(record: Record, limits: SearchLimits, endings: list[Ending]) -> None:
    """Run the members: side by side with two workers, else one after the other."""
    if limits.time_limit_s <= 0:
        endings.append((StopReason.TIME_LIMIT, {}))
        return
    space, timed = _spaces(record)
    if limits.num_workers == 1:
        _take_turns(record, space or timed, limits, endings)
    elif space is not None:
        _race_states(record, space, limits, endings)
    elif timed is not None:
        _race_timed(record, timed, limits, endings)
    else:
        _race_model(record, limits, endings)


def _run(record: Record, name: str, member: Callable[[], Ending]) -> Ending:
    """The ending of a member, also of one that fails."""
    return record.attempt(name, member, FAILED)


def _spaces(record: Record) -> tuple[StateSpace | PackingSpace | None, TimedSpace | None]:
    """What one of the two state searches needs, ready to be searched; twice None where none applies."""
    space = record.attempt(STATE_SEARCH, lambda: _prepared(_state_space(record)), None)
    if space is not None or record.ceilings:
        return space, None
    return None, record.attempt(
        TIMED_SEARCH, lambda: build_timed_space(record.instance, record.objective), None
    )


def _prepared(space: StateSpace | PackingSpace | None) -> StateSpace | PackingSpace | None:
    if space is not None:
        prepare_states(space)
    return space


def _state_space(record: Record) -> StateSpace | PackingSpace | None:
    """What the state search needs, where it is exact: it knows neither mixtures nor swap nor ceilings.

    Requests that run to completion have a search of their own, where its tables can be afforded.
    """
    instance, objective = record.instance, record.objective
    if not isinstance(objective, Objective) or record.ceilings:
        return None
    if instance.switches.preemption.swaps:
        if not is_swap_idle(instance):
            return None
        instance = without_swap(instance)
    upper_ns = record.incumbent.value_ns
    space = build_state_space(instance, objective, upper_ns)
    packing = None if space is None else build_packing_space(space, upper_ns)
    return packing or space


def _can_dispatch(record: Record) -> bool:
    """Whether local search may evict as it does, and has no ceilings to keep to."""
    may_evict = record.instance.switches.preemption is not Preemption.SWAP
    return may_evict and not record.ceilings and can_dispatch(record.instance)


def _take_turns(
    record: Record,
    space: StateSpace | PackingSpace | TimedSpace | None,
    limits: SearchLimits,
    endings: list[Ending],
) -> None:
    """A state search where one applies, in half of the time, then CP-SAT.

    The search of states without times makes better schedules than local search, the others worse ones.
    """
    if not isinstance(space, StateSpace | PackingSpace) and _can_dispatch(record):
        _local(record, limits, LOCAL_SHARE)
    if isinstance(space, StateSpace | PackingSpace):
        endings.append(_states(record, space, share=0.5))
    elif space is not None:
        endings.append(_timed(record, space, share=0.5))
    if _needs_levels(record) and not _is_final(endings):
        endings.append(_levels(record))
    if _can_count(record) and not _is_final(endings):
        endings.append(_counts(record))
    if not record.is_closed and not _is_final(endings):
        endings.append(_model(record, limits))


def _states(record: Record, space: StateSpace | PackingSpace, share: float = 1.0) -> Ending:
    return _run(record, name_of(space), lambda: run_states(record, space, share))


def _timed(record: Record, space: TimedSpace, share: float = 1.0) -> Ending:
    return _run(record, TIMED_SEARCH, lambda: run_timed(record, space, share))


def _levels(record: Record) -> Ending:
    return _run(record, LEVEL_WALKS, lambda: run_levels(record, LEVEL_SHARE))


def _counts(record: Record) -> Ending:
    return _run(record, BATCH_COUNTS, lambda: run_counts(record, COUNT_SHARE))


def _local(record: Record, limits: SearchLimits, share: float) -> Ending:
    return _run(record, LOCAL_SEARCH, lambda: run_local_search(record, limits, share))


def _model(record: Record, limits: SearchLimits) -> Ending:
    return _run(record, MODEL, lambda: run_model(record, limits))


def _can_count(record: Record) -> bool:
    """Whether counts of batches bound the objective, and may give better schedules."""
    may_count = record.objective is Objective.MAKESPAN and not (record.is_closed or record.ceilings)
    return may_count and record.incumbent.value_ns * SCALE < MOST_TIME and can_count(record.instance)


def _needs_levels(record: Record) -> bool:
    """Whether ways through levels bound the objective; for run to completion others prove more."""
    return (
        not (record.is_closed or record.ceilings or record.instance.switches.run_to_completion)
        and record.objective is Objective.MAKESPAN
        and can_bound_levels(record.instance)
    )


def _race_states(
    record: Record, space: StateSpace | PackingSpace, limits: SearchLimits, endings: list[Ending]
) -> None:
    """The state search in a thread, a second member beside it as soon as the instance proves hard.

    CP-SAT is that second where everybody runs to completion. In wider classes neither its bound nor its
    schedules get near those of the state search; a second search for schedules does more.
    """
    completes = record.instance.switches.run_to_completion
    head_start_s = COMPLETION_HEAD_START_S if completes else HEAD_START_S
    if _can_count(record):
        head_start_s = LOCAL_START_S
    with _beside(record, lambda: _prove(record, space)) as future:
        _wait(future, min(head_start_s, MOST_HEAD_START * limits.time_limit_s))
        if not future.done():
            endings.append(_second(record, space, limits))
        if _is_final(endings):
            # What is left of the gap is rounding: small instances are proven without.
            _wait(future, HEAD_START_S)
            record.watch.stop()
        endings.append(future.result())
    if record.is_closed or _is_final(endings) or record.watch.remaining_s <= 0:
        return
    if endings[-1][0] is StopReason.TOO_LARGE:
        endings.append(_model(record, limits))
    elif endings[-1] == FAILED:
        _race_model(record, limits, endings)


def _prove(record: Record, space: StateSpace | PackingSpace) -> Ending:
    """The state search; once it is through, what runs beside it has nothing left to find."""
    ending = _states(record, space)
    if ending[0] is StopReason.ROUNDING:
        record.watch.stop()
    return ending


def _second(record: Record, space: StateSpace | PackingSpace, limits: SearchLimits) -> Ending:
    """What runs beside the state search."""
    if isinstance(space, PackingSpace) or record.instance.switches.run_to_completion:
        ending = _counts(record) if _can_count(record) else None
        if ending is not None and (record.is_closed or _is_final([ending])):
            return ending
        return _model(record, beside(limits))
    if _can_dispatch(record):
        _local(record, limits, LOCAL_SHARE)
    if _needs_levels(record):
        _levels(record)
    return _run(record, name_of(space), lambda: run_descents(record, space))


def _race_timed(record: Record, space: TimedSpace, limits: SearchLimits, endings: list[Ending]) -> None:
    """The timed state search in a thread; CP-SAT beside it as soon as the instance proves hard."""
    with _beside(record, lambda: _timed(record, space)) as future:
        _wait(future, min(HEAD_START_S, MOST_HEAD_START * limits.time_limit_s))
        if not future.done():
            _race_model(record, beside(limits), endings)
        if _is_final(endings):
            record.watch.stop()
        endings.append(future.result())
    if not (record.is_closed or endings[:-1] or _is_final(endings)) and record.watch.remaining_s > 0:
        _race_model(record, limits, endings)


def _race_model(record: Record, limits: SearchLimits, endings: list[Ending]) -> None:
    """CP-SAT, and local search in a thread: for a while, or all the time if no model is affordable.

    Where ways through levels bound the objective they come first; the model is large then, and local search
    finds better schedules.
    """
    needs_levels = _needs_levels(record)
    if not _can_dispatch(record):
        if needs_levels:
            endings.append(_levels(record))
        if _can_count(record):
            endings.append(_counts(record))
        if not record.is_closed and not _is_final(endings):
            endings.append(_model(record, limits))
        return
    share = LOCAL_SHARE if is_affordable(record, limits) and not needs_levels else 1.0
    with _beside(record, lambda: _local(record, limits, share)) as future:
        # A better incumbent means a shorter horizon, and on small instances it is there at once.
        _wait(future, min(LOCAL_START_S, MOST_HEAD_START * limits.time_limit_s))
        if needs_levels:
            endings.append(_levels(record))
        endings.append(_model(record, limits))
        if endings[-1][0] not in (StopReason.TOO_LARGE, StopReason.FAILED):
            record.watch.stop()
        future.result()


@contextmanager
def _beside(record: Record, member: Callable[[], Ending]) -> Iterator[Future[Ending]]:
    """Run a member in a thread; it is asked to stop if anything goes wrong here."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(member)
        try:
            yield future
        except BaseException:
            record.watch.stop()
            raise


def _wait(future: Future[Ending], timeout_s: float) -> None:
    """Wait for a member to end, for some time."""
    with suppress(TimeoutError):
        future.result(timeout=timeout_s)


def _is_final(endings: list[Ending]) -> bool:
    """No further search: what remains of the gap is rounding, or the user asked to stop."""
    return any(reason in (StopReason.ROUNDING, StopReason.INTERRUPTED) for reason, _ in endings)


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
