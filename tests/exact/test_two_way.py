"""Two-way check: policies' schedules fit the exact model, and solved schedules replay in the simulator."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.exact.model.batch_model import BatchModel
from cspsched.exact.search import complete_hint
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Switches
from cspsched.problem.objectives import Objective
from cspsched.referee.metrics import measure
from cspsched.simulate import Step, simulate
from tests.support.exact_cases import tiny_instances

full_class = st.just(Switches())


class Replay:
    """A policy that repeats the decisions of a schedule, waiting for arrivals as the engine does."""

    name = label = "replay"

    def __init__(self, schedule):
        self._schedule = schedule

    def new_run(self, instance):
        """Start at the first batch."""
        self._batch = 0
        self._arrived = set()
        return self

    def submit(self, request):
        """Note an arrival."""
        self._arrived.add(request)

    def retire(self, requests):
        """Nothing to forget."""

    def schedule(self, step: Step):
        """Decide the next batch as recorded, once all requests in it have arrived."""
        recorded, j = self._schedule, self._batch
        entries = slice(recorded.first_entry[j], recorded.first_entry[j + 1])
        requests, tokens = recorded.request[entries].tolist(), recorded.tokens[entries].tolist()
        if not self._arrived.issuperset(requests):
            return
        for request in recorded.evicted_request[recorded.evicted_batch == j].tolist():
            step.preempt(request)
        for request, count in zip(requests, tokens, strict=True):
            step.schedule(request, count, step.missing_blocks(request, count))
        self._batch += 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tiny_instances(switches=full_class),
    st.sampled_from(["vllm", "vllm:long_prefill_token_threshold=1", "sarathi:chunk=2"]),
    st.sampled_from(Objective),
)
def test_a_policys_schedule_fits_the_model_at_the_same_price(instance, policy, objective):
    """Fixed as a hint, it is feasible, and the model's objective is the referee's to the nanosecond."""
    schedule = simulate(instance, make_policy(policy)).schedule
    model = BatchModel(instance, objective, schedule.num_batches)
    value = measure(instance, schedule).objective_ns(objective)

    assert complete_hint(model, schedule, 60)[0] == value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tiny_instances(switches=full_class), st.sampled_from(Objective))
def test_a_solved_schedule_replays_to_the_same_times(instance, objective):
    """The simulator, told the decisions of an optimum, comes to the same batches, memory and times."""
    schedule = solve_exactly(instance, objective, SearchLimits(time_limit_s=60)).schedule

    assert simulate(instance, Replay(schedule)).schedule == schedule
