"""Which limit binds in a batch, against the definition followed request by request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspsched.errors import CspschedError
from cspsched.problem.instance import Instance, Preemption, Switches
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from cspsched.simulate import simulate
from cspsched.studies.binding import binding_limits
from tests.support.kernel_cases import draw_case
from tests.support.strategies import make_instance


class Naive:
    """All requests, followed batch by batch."""

    def __init__(self, instance: Instance, schedule: Schedule) -> None:
        self.instance, self.schedule = instance, schedule
        count = len(instance.requests)
        self.kv, self.host, self.generated = [0] * count, [0] * count, [0] * count

    def rows(self) -> list[dict[str, bool]]:
        """What binds in each batch."""
        return [self.row(j) for j in range(self.schedule.num_batches)]

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.instance.limits.block_tokens)

    def row(self, j: int) -> dict[str, bool]:
        schedule, limits = self.schedule, self.instance.limits
        for batch, i, to_host in zip(
            schedule.evicted_batch, schedule.evicted_request, schedule.evicted_to_host, strict=True
        ):
            if batch == j:
                self.host[i], self.kv[i] = self.kv[i] if to_host else 0, 0
        for batch, i in zip(schedule.restored_batch, schedule.restored_request, strict=True):
            if batch == j:
                self.kv[i], self.host[i] = self.host[i], 0
        entries = range(schedule.first_entry[j], schedule.first_entry[j + 1])
        processed = {int(schedule.request[e]): int(schedule.tokens[e]) for e in entries}
        could = []
        for i, request in enumerate(self.instance.requests):
            known = request.prompt_tokens + self.generated[i]
            after = self.kv[i] + processed.get(i, 0)
            has_arrived = request.arrival_ns <= schedule.start_ns[j]
            is_open = self.generated[i] < request.output_tokens
            if has_arrived and is_open and (i not in processed or after < known):
                could.append((i, known, after))
        for i, tokens in processed.items():
            self.kv[i] += tokens
        occupied = sum(
            self.blocks(self.instance.requests[i].peak_kv_tokens)
            if self.instance.switches.reservation and kv
            else self.blocks(kv)
            for i, kv in enumerate(self.kv)
        )
        left = limits.max_batch_tokens - sum(processed.values())
        told = {
            "waits": bool(could),
            "memory": bool(could)
            and all(
                limits.kv_blocks - occupied < self.need(i, known, after, left) for i, known, after in could
            ),
            "tokens": bool(could) and all(left < self.least(i, known, after) for i, known, after in could),
            "requests": any(i not in processed for i, *_ in could)
            and len(processed) == limits.max_batch_requests,
        }
        self.finish(processed)
        return told

    def need(self, i: int, known: int, after: int, left: int) -> int:
        """Blocks that a request needs to go on."""
        switches = self.instance.switches
        if switches.reservation:
            return 0 if after else self.blocks(self.instance.requests[i].peak_kv_tokens)
        if self.host[i]:
            return self.blocks(self.host[i] + 1)
        if not after and not switches.chunked_prefill:
            return self.blocks(known)
        return self.blocks(after + min(known - after, max(left, 1))) - self.blocks(after)

    def least(self, i: int, known: int, after: int) -> int:
        """Tokens that a request needs to go on."""
        return 1 if self.instance.switches.chunked_prefill or after or self.host[i] else known

    def finish(self, processed: dict[int, int]) -> None:
        for i in processed:
            request = self.instance.requests[i]
            self.generated[i] += self.kv[i] == request.prompt_tokens + self.generated[i]
            if self.generated[i] == request.output_tokens:
                self.kv[i] = 0


def assert_as_defined(instance: Instance, schedule: Schedule) -> int:
    """Equal in every batch; returns how many batches some limit binds in."""
    binding = binding_limits(follow(instance, schedule))
    naive = Naive(instance, schedule).rows()

    for name in ("waits", "memory", "tokens", "requests"):
        assert getattr(binding, name).tolist() == [row[name] for row in naive], name
    return sum(row["memory"] or row["tokens"] or row["requests"] for row in naive)


@pytest.mark.parametrize(
    "name", ["vllm", "sarathi", "orca", "infermax", "fastserve swap", "vllm-v0 swap", "tgi", "trail"]
)
def test_limits_bind_as_defined(name):
    """On random instances of every kind each limit binds exactly where it keeps all from going on."""
    found = 0
    for seed in range(40):
        case = draw_case(name, seed)
        if case is None:
            continue
        try:
            schedule = simulate(*case).schedule
        except CspschedError:
            continue
        if not schedule.uses_prefix_cache and not find_violations(case[0], schedule):
            found += assert_as_defined(case[0], schedule)

    assert found > 0


def test_two_prompts_and_one_seat():
    """With one seat the second request is kept out by the number of requests, and by nothing else."""
    instance = make_instance((2, 2), (2, 1), max_batch_requests=1)
    schedule = schedule_asap(instance, [[(0, 2)], [(0, 1)], [(1, 2)]], [[]] * 3)
    binding = binding_limits(follow(instance, schedule))

    assert binding.requests.tolist() == [True, True, False]
    assert binding.shares()["requests"] > binding.shares()["memory"] == binding.shares()["tokens"] == 0


def test_a_batch_that_could_do_more_is_bound_by_nothing():
    """A request that is left out though all limits have room is the policy's own choice."""
    instance = make_instance((2, 1), (2, 1))
    schedule = schedule_asap(instance, [[(0, 2)], [(1, 2)]], [[]] * 2)

    assert binding_limits(follow(instance, schedule)).nothing.tolist() == [True, False]


@pytest.mark.parametrize(("kv_tokens", "binds"), [(5, True), (6, False)])
def test_memory_binds_where_the_least_request_does_not_fit(kv_tokens, binds):
    """Three tokens are held; three more fit into six tokens of KV cache, and not into five."""
    instance = make_instance((3, 1), (3, 1), kv_blocks=kv_tokens, block_tokens=1)
    schedule = schedule_asap(instance, [[(0, 3)], [(1, 3)]], [[]] * 2)

    assert binding_limits(follow(instance, schedule)).memory.tolist() == [binds, False]


@pytest.mark.parametrize(("budget", "binds"), [(4, True), (5, False)])
def test_without_chunks_a_prompt_needs_all_its_tokens(budget, binds):
    """Two tokens of a batch leave room for three in five, and not in four, where a prompt is not cut."""
    instance = make_instance((2, 1), (3, 1), max_batch_tokens=budget)
    whole = replace(instance, switches=Switches(chunked_prefill=False, preemption=Preemption.NONE))
    schedule = schedule_asap(whole, [[(0, 2)], [(1, 3)]], [[]] * 2)

    assert binding_limits(follow(whole, schedule)).tokens.tolist() == [binds, False]
