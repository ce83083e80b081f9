"""The state search as members of the portfolio: one that proves, and one that helps it to schedules."""

from __future__ import annotations

from cspsched.exact.members import Clock, Company
from cspsched.exact.record import Ending, Record
from cspsched.exact.states.search import (
    STATE_SEARCH,
    StateOutcome,
    Talk,
    compile_states,
    descend_patiently,
    search_states,
)
from cspsched.exact.states.space import StateSpace, build_state_space
from cspsched.problem.lifting import is_swap_idle, without_swap
from cspsched.problem.objectives import Objective


class StateMember:
    """Proves the optimum over states without times."""

    name = STATE_SEARCH

    def applies(self, record: Record) -> bool:
        """Whether the search is exact; then it is compiled, for others wait for it only so long."""
        space = record.once(state_space)
        if space is not None:
            compile_states(space)
        return space is not None

    def run(self, record: Record, clock: Clock) -> Ending:
        """Search the states."""
        return ending_of(self.name, search_states(_space(record), talk_of(record, self.name, clock)))

    def company(self, record: Record) -> Company:
        """CP-SAT where it is strong; elsewhere a second search for schedules does more."""
        return Company.MODEL if record.instance.switches.run_to_completion else Company.SCHEDULES


class PatientDescents:
    """Looks for better schedules among the states, beside the search that proves."""

    name = STATE_SEARCH

    def applies(self, record: Record) -> bool:
        """Whether there are states to search."""
        return record.once(state_space) is not None

    def run(self, record: Record, clock: Clock) -> Ending:
        """Descend through the states, again and again."""
        return ending_of(self.name, descend_patiently(_space(record), talk_of(record, self.name, clock)))


def state_space(record: Record) -> StateSpace | None:
    """Tables of the state search where it is exact: it knows neither mixtures nor swap nor ceilings."""
    instance, objective = record.instance, record.objective
    if not isinstance(objective, Objective) or record.ceilings:
        return None
    if instance.switches.preemption.swaps:
        if not is_swap_idle(instance):
            return None
        instance = without_swap(instance)
    return build_state_space(instance, objective, record.incumbent.value_ns)


def _space(record: Record) -> StateSpace:
    space = record.once(state_space)
    assert space is not None
    return space


def ending_of(name: str, outcome: StateOutcome) -> Ending:
    """Return why a search of states stopped, and how many it expanded."""
    return outcome.stop_reason, {"name": name, "states": outcome.num_states}


def talk_of(record: Record, name: str, clock: Clock) -> Talk:
    """What a search of states hears of the record, and where it tells what it finds."""
    return Talk(
        time_left=clock.time_left,
        upper_ns=lambda: record.watch.best_ns,
        tell_bound=lambda bound_ns: record.raise_bound(name, bound_ns, {"name": name}),
        tell_schedule=lambda decisions: record.offer(name, decisions),
        spend=record.watch.spend,
    )
