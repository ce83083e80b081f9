"""The entry points: all certificates of an objective, the best one, and what the exact solver asks for."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from cspsched.bounds.certificate import Certificate, best_first
from cspsched.bounds.critical_path import solo_times_ns
from cspsched.bounds.flow import flow_certificates, quick_flow_certificates
from cspsched.bounds.makespan import batch_floors, makespan_certificates
from cspsched.bounds.parts.tables import Tables
from cspsched.errors import UsageError
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import Objective


def certificates(
    instance: Instance, objective: Objective, *, time_left: Callable[[], float] | None = None
) -> tuple[Certificate, ...]:
    """All certificates of an objective, the best first.

    They hold for every feasible schedule, whatever the switches: for chunking, holding, hybrid batches,
    preemption by recompute and by swap, and reservation, clairvoyant or not.

    Parameters
    ----------
    instance
        Every request must fit the limits (`Instance.split_rejected`); bounds of an instance without feasible
        schedules mean nothing.
    objective
        What is bounded: makespan, latency or TTFT.
    time_left
        Clock in seconds: at 0 no further certificate is begun; the first, which is cheap, always is.

    Raises
    ------
    UsageError
        If it is anything else: a mixture has no certificates of its own.
    """
    _require(objective, *Objective)
    tables = Tables(instance)
    if objective is Objective.MAKESPAN:
        return best_first(makespan_certificates(tables))
    found = []
    for certificate in flow_certificates(tables, objective):
        found.append(certificate)
        if time_left is not None and time_left() <= 0:
            break
    return best_first(found)


def best_bound(
    instance: Instance, objective: Objective, *, time_left: Callable[[], float] | None = None
) -> Certificate:
    """The certificate with the largest value; see `certificates`."""
    return certificates(instance, objective, time_left=time_left)[0]


def quick_flow_bound_ns(instance: Instance, objective: Objective) -> int:
    """Lower bound on a sum of latencies or of TTFT in nanoseconds, by the certificates that search no prices.

    Mostly the best one of a few dozen requests, in a tenth of the time.
    """
    _require(objective, Objective.LATENCY, Objective.TTFT)
    return best_first(list(quick_flow_certificates(Tables(instance), objective)))[0].value_ns


def solo_ns(instance: Instance, objective: Objective = Objective.LATENCY) -> list[int]:
    """Lower bound on each request's latency (or TTFT) in nanoseconds, as if it were alone on the machine.

    No schedule ends request i before `arrival_ns + solo_ns[i]`; with the objective TTFT, none emits its first
    token before that. In the order of `instance.requests`. Any other objective is a `UsageError`.
    """
    _require(objective, Objective.LATENCY, Objective.TTFT)
    return list(solo_times_ns(Tables(instance), objective))


def batch_floor(instance: Instance) -> list[tuple[Fraction, Fraction]]:
    """Pairs (alpha, work), alpha > 0: the batch times of a feasible schedule sum to at least alpha B + work.

    B is the number of batches of that schedule, so a schedule of at most U nanoseconds without idle time has
    at most (U - work) / alpha batches, for each pair. At least one pair.
    """
    return batch_floors(Tables(instance))


def _require(objective: object, *known: Objective) -> None:
    """Refuse what would be bounded as if it were something else."""
    if not isinstance(objective, Objective) or objective not in known:
        raise UsageError(
            f"objective {objective!s} is none of {', '.join(known)} (cspsched.Objective); mixtures are "
            "bounded by cspsched.solve, with a time limit of 0 if there is to be no search"
        )
