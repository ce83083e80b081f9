"""The portfolio: a row for each search, in the order in which they run; a new search is a file and a row."""

from __future__ import annotations

from cspsched.exact.heuristics.member import LocalSearchMember
from cspsched.exact.members import Company
from cspsched.exact.model.count_member import CountMember
from cspsched.exact.model.member import ModelMember
from cspsched.exact.packing.member import PackingMember
from cspsched.exact.prices.member import AggregatedPathsMember
from cspsched.exact.race import NOWHERE, Row
from cspsched.exact.states.member import PatientDescents, StateMember
from cspsched.exact.timed.member import TimedMember

PORTFOLIO = (
    Row(
        LocalSearchMember,
        share=0.2,
        in_turn=frozenset({Company.ALL}),  # other searches of states make better schedules than it does
        beside=frozenset({Company.SCHEDULES, Company.ALL}),
        in_background=True,
    ),
    Row(PackingMember, share=0.5),
    Row(StateMember, share=0.5),
    Row(TimedMember, share=0.5),
    Row(AggregatedPathsMember, share=0.8),
    Row(CountMember, share=0.5, is_quick=True),
    Row(PatientDescents, in_turn=NOWHERE, beside=frozenset({Company.SCHEDULES})),
    Row(ModelMember, beside=frozenset({Company.MODEL, Company.ALL})),
)
"""The last one takes any instance, and the time that the others leave."""
