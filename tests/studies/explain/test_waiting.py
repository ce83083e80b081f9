"""What a request waits for, against a recomputation with dictionaries, batch by batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given

from cspsched.errors import UsageError
from cspsched.referee.history import follow
from cspsched.studies.explain.waiting import Doing, follow_request, position_of
from tests.support.explain_cases import run
from tests.support.strategies import check, feasible_runs, make_instance


def naive_reasons(instance, schedule, request):
    """What the request does in each batch from its arrival to its last token, and where each begins."""
    limits, requests, me = instance.limits, instance.requests, instance.requests[request]
    kv, generated = dict.fromkeys(range(len(requests)), 0), dict.fromkeys(range(len(requests)), 0)
    decoding, host, found = dict.fromkeys(range(len(requests)), False), {}, []
    sizes = list(map(sum, batches_of(schedule, schedule.tokens)))
    budget = max(sizes) if sizes.count(max(sizes)) > 1 else limits.max_batch_tokens
    for batch in range(schedule.num_batches):
        for event, column in enumerate(schedule.evicted_batch.tolist()):
            if column == batch:
                victim = int(schedule.evicted_request[event])
                if schedule.evicted_to_host[event]:
                    host[victim] = kv[victim], decoding[victim]
                kv[victim], decoding[victim] = 0, False
        for event, column in enumerate(schedule.restored_batch.tolist()):
            if column == batch:
                back = int(schedule.restored_request[event])
                kv[back], decoding[back] = host.pop(back)
        entries = dict(
            zip(
                batches_of(schedule, schedule.request)[batch],
                batches_of(schedule, schedule.tokens)[batch],
                strict=True,
            )
        )
        lacking = blocks(me.prompt_tokens + generated[request], limits) - blocks(kv[request], limits)
        phase = Doing.DECODE if decoding[request] else Doing.REFILL if generated[request] else Doing.PREFILL
        waited = generated[request] < me.output_tokens
        for i, tokens in entries.items():
            kv[i] += tokens
        free = limits.kv_blocks - sum(blocks(held, limits) for held in kv.values())
        before = [i for i in range(len(requests)) if (requests[i].arrival_ns, i) < (me.arrival_ns, request)]
        if schedule.end_ns[batch] > me.arrival_ns and waited:
            if request in entries:
                found.append(phase)
            elif schedule.start_ns[batch] < me.arrival_ns:
                found.append(Doing.UNDER_WAY)
            elif lacking > free:
                found.append(Doing.MEMORY)
            elif len(entries) == limits.max_batch_requests:
                found.append(Doing.REQUESTS)
            elif sizes[batch] == budget:
                found.append(Doing.TOKENS)
            elif any((requests[i].arrival_ns, i) > (me.arrival_ns, request) for i in entries):
                found.append(Doing.ORDER)
            elif any(generated[i] < requests[i].output_tokens and i not in entries for i in before):
                found.append(Doing.QUEUE)
            else:
                found.append(Doing.RULES)
        for i in entries:
            if kv[i] == requests[i].prompt_tokens + generated[i]:
                generated[i] += 1
                decoding[i] = True
            if generated[i] == requests[i].output_tokens:
                kv[i] = 0
    return found


def batches_of(schedule, column):
    return [column[first:end].tolist() for first, end in pairwise(schedule.first_entry.tolist())]


def blocks(tokens, limits):
    return -(-tokens // limits.block_tokens)


@check
@given(feasible_runs())
def test_reasons_are_those_of_a_walk(drawn):
    """For every request of any feasible schedule."""
    instance, schedule = drawn
    if instance.switches.reservation:
        return
    history = follow(instance, schedule)
    for request in range(len(instance.requests)):
        spans = follow_request("any", history, request).spans
        each = [span.doing for span in spans for _ in range(span.first_batch, span.last_batch + 1)]

        assert each == naive_reasons(instance, schedule, request)


@check
@given(feasible_runs())
def test_spans_leave_no_gap(drawn):
    """They go from the arrival to the last token, and their tokens are all that were processed."""
    instance, schedule = drawn
    history = follow(instance, schedule)
    for i, request in enumerate(instance.requests):
        spans = follow_request("any", history, i).spans
        last = schedule.batch_of_entry[schedule.request == i].max()

        assert spans[0].begin_ns == request.arrival_ns
        assert all(one.end_ns == other.begin_ns for one, other in pairwise(spans))
        assert spans[-1].end_ns == schedule.end_ns[last]
        assert sum(span.tokens for span in spans) == schedule.tokens[schedule.request == i].sum()


def test_a_request_waits_for_memory_until_another_finishes():
    """Two requests of which one fits: the other waits for its blocks, until the first is finished."""
    instance = make_instance((4, 3), (4, 3), kv_blocks=6)
    history = run(instance, "vllm").whole_run.metrics.history
    timeline = follow_request("vllm", history, 1)

    assert [span.doing for span in timeline.spans] == [Doing.MEMORY, Doing.PREFILL, Doing.DECODE]
    assert timeline.spans[0].finished == ("r0",)
    assert timeline.waited_ns == {Doing.MEMORY: 3}


def test_an_unknown_request_is_told_with_the_nearest():
    """The names that there are, in the error."""
    with pytest.raises(UsageError, match=r"no request 'r9'.*the first is 'r0', the last 'r1'"):
        position_of(make_instance((1, 1), (1, 1)), "r9")
