"""The portfolio: which members run, in which order, for how long; a new search is a row."""

import time

import pytest

from cspsched.exact import portfolio
from cspsched.exact.closed_form import ClosedForm
from cspsched.exact.heuristics.local_search import SLICE
from cspsched.exact.heuristics.member import CELL_S, MOVES_PER_PAIR, LocalSearchMember
from cspsched.exact.members import Company, Leader
from cspsched.exact.model.member import ModelMember
from cspsched.exact.race import NOWHERE, Row
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.problem.objectives import Objective
from cspsched.problem.result import StopReason
from tests.support.instances import RUN_TO_COMPLETION, instance_of

CROWD = instance_of([(4 + i % 3, 6 + i % 5) for i in range(7)], kv_blocks=30)


class Fake:
    """A member that writes down when it runs, and may prove the value of the incumbent."""

    def __init__(self, heard, name="fake", *, proves=False, can=True, reason=StopReason.TIME_LIMIT):
        self.heard, self.name, self.proves, self.can, self.reason = heard, name, proves, can, reason

    def applies(self, record):
        """As it was told."""
        return self.can

    def run(self, record, clock):
        """Say so, with the share of the time."""
        share = clock.time_left() / record.watch.remaining_s
        self.heard.append((self.name, round(share, 1)))
        if self.proves:
            record.raise_bound(self.name, record.incumbent.value_ns, {"name": self.name})
        return self.reason, {"name": self.name}


class FakeLeader(Fake):
    """The same, at the head of the others."""

    def __init__(self, heard, name, company, **given):
        super().__init__(heard, name, **given)
        self._company = company

    def company(self, record):
        """As it was told."""
        return self._company


@pytest.fixture
def solved(monkeypatch):
    """Solve with rows of one's own, and no closed-form bound that would do without."""
    monkeypatch.setattr("cspsched.exact.solver.closed_form_bound", lambda *_: ClosedForm(0, "nothing", {}))

    def solve(rows, workers=1):
        monkeypatch.setattr(portfolio, "PORTFOLIO", rows)
        limits = SearchLimits(time_limit_s=3600, num_workers=workers)
        return solve_exactly(CROWD, Objective.LATENCY, limits)

    return solve


def test_a_new_search_is_a_row(solved):
    """One row with a foreign member is enough for a proof of its name."""
    heard = []
    result = solved([Row(lambda: Fake(heard, "mine", proves=True))])

    assert (result.dual_ns, result.certificate) == (result.primal_ns, "mine")
    assert heard == [("mine", 1.0)]


def test_on_one_worker_members_take_turns_in_the_order_of_the_rows(solved):
    """The first leader that applies, and its companions, each with its share; no member after a proof."""
    heard = []
    solved(
        [
            Row(lambda: Fake(heard, "before"), share=0.2, in_turn=frozenset({Company.ALL})),
            Row(lambda: Fake(heard, "elsewhere"), in_turn=NOWHERE),
            Row(lambda: FakeLeader(heard, "cannot", Company.MODEL, can=False)),
            Row(lambda: FakeLeader(heard, "leader", Company.ALL), share=0.5),
            Row(lambda: FakeLeader(heard, "second", Company.ALL)),
            Row(lambda: Fake(heard, "closes", proves=True), share=0.8),
            Row(lambda: Fake(heard, "late")),
        ]
    )

    assert heard == [("before", 0.2), ("leader", 0.5), ("closes", 0.8)]


@pytest.mark.parametrize(
    ("company", "expected"),
    [
        (Company.MODEL, ["leader", "any", "model"]),
        (Company.SCHEDULES, ["leader", "any", "schedules"]),
    ],
)
def test_beside_a_leader_run_those_of_its_company(solved, monkeypatch, company, expected):
    """What a row says about company decides; a leader without a head start is followed at once."""
    heard = []
    monkeypatch.setattr("cspsched.exact.race.HEAD_START_S", 0.0)
    monkeypatch.setattr("cspsched.exact.race.COMPLETION_HEAD_START_S", 0.0)

    class Slow(FakeLeader):
        def run(self, record, clock):
            ending = super().run(record, clock)
            while len(heard) < len(expected) and not record.watch.is_over:
                time.sleep(0.01)
            return ending

    solved(
        [
            Row(lambda: Slow(heard, "leader", company)),
            Row(lambda: Fake(heard, "any")),
            Row(lambda: Fake(heard, "schedules"), beside=frozenset({Company.SCHEDULES, Company.ALL})),
            Row(lambda: Fake(heard, "model"), beside=frozenset({Company.MODEL, Company.ALL})),
        ],
        workers=2,
    )

    assert [name for name, _ in heard] == expected


def test_a_leader_that_gives_up_leaves_its_time_to_the_last_row(solved):
    """Too large for it, before anything ran beside it: the model takes over."""
    heard = []
    leader = Row(lambda: FakeLeader(heard, "leader", Company.SCHEDULES, reason=StopReason.TOO_LARGE))
    result = solved([leader, Row(lambda: Fake(heard, "model", proves=True))], workers=2)

    assert [name for name, _ in heard] == ["leader", "model"]
    assert result.certificate == "model"


def test_the_last_row_takes_any_instance():
    """Some member is always there: CP-SAT applies to everything, and leads nothing."""
    assert portfolio.PORTFOLIO[-1].make is ModelMember
    assert not isinstance(ModelMember(), Leader)


def test_leaders_stand_in_the_order_of_their_worth():
    """The packing search comes before the search of states, and that before the timed one."""
    leaders = [row.make().name for row in portfolio.PORTFOLIO if isinstance(row.make(), Leader)]

    assert leaders == ["packing search", "state search", "timed state search"]


def test_the_packing_search_takes_the_place_of_the_state_search():
    """Where requests run to completion, on one worker: it proves the optimum, and is alone."""
    instance = instance_of([(2, 4)] * 3, kv_blocks=9, switches=RUN_TO_COMPLETION)
    result = solve_exactly(instance, Objective.LATENCY, SearchLimits(num_workers=1))

    assert result.dual_ns == result.primal_ns
    assert result.provenance["failures"] == []


def test_local_search_of_few_requests_leaves_the_time_to_proofs(monkeypatch):
    """Seven requests have 500 moves for each pair: a second of counted work, of an hour."""
    left_s = []

    class Proof(Fake):
        def run(self, record, clock):
            left_s.append(record.watch.remaining_s)
            return super().run(record, clock)

    monkeypatch.setattr("cspsched.exact.solver.closed_form_bound", lambda *_: ClosedForm(0, "nothing", {}))
    monkeypatch.setattr(portfolio, "PORTFOLIO", [Row(LocalSearchMember), Row(lambda: Proof([], proves=True))])
    limits = SearchLimits(time_limit_s=3600, num_workers=1, deterministic=True)
    result = solve_exactly(CROWD, Objective.LATENCY, limits)

    batches = sum(request.output_tokens for request in CROWD.requests)  # one at a time
    most_s = (MOVES_PER_PAIR * 7**2 + 2 * SLICE) * 7 * batches * CELL_S
    assert 0 < 3600 - left_s[0] <= most_s < 5
    assert result.primal_ns == result.dual_ns
