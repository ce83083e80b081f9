"""The packing search as a member of the portfolio."""

from __future__ import annotations

from cspsched.exact.members import Clock, Company
from cspsched.exact.packing.search import PACKING_SEARCH, compile_packing, search_packing
from cspsched.exact.packing.space import PackingSpace, build_packing_space
from cspsched.exact.record import Ending, Record
from cspsched.exact.states.member import ending_of, state_space, talk_of


class PackingMember:
    """Proves the optimum where requests run to completion and the tables can be afforded."""

    name = PACKING_SEARCH

    def __init__(self) -> None:
        self._space: PackingSpace | None = None

    def applies(self, record: Record) -> bool:
        """Whether the search is exact; then it is compiled, for others wait for it only so long."""
        if not record.instance.switches.run_to_completion:
            return False
        space = record.once(state_space)
        if space is not None:
            self._space = build_packing_space(space, record.incumbent.value_ns)
        if self._space is not None:
            compile_packing(self._space)
        return self._space is not None

    def run(self, record: Record, clock: Clock) -> Ending:
        """Search the states in batches of requests that start."""
        assert self._space is not None
        return ending_of(self.name, search_packing(self._space, talk_of(record, self.name, clock)))

    def company(self, record: Record) -> Company:
        """CP-SAT: it proves something where requests run to completion."""
        return Company.MODEL
