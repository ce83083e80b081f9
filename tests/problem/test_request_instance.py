"""Requests, limits, switches, instances: refused at the edge, rejected in sentences, told apart by hash."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from cspsched.errors import InfeasibleError, InputError, TraceError
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import MAX_ARRIVAL_NS, MAX_TOKENS, Request
from tests.support.strategies import UNIT, check, check_briefly, instances, make_instance, one_after_another

PINNED = "sha256:0ddb0ae1c67de5708f26c5e4c55dc673f997ff37d1b6a30b76bf7880ef2fc459"
SMALLEST = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)


@pytest.mark.parametrize(
    ("field", "fine", "wrong", "expected"),
    [
        ("prompt_tokens", 1, 0, "expected at least 1"),
        ("output_tokens", 1, 0, "expected at least 1"),
        ("arrival_ns", 0, -1, "expected >= 0"),
        ("prompt_tokens", MAX_TOKENS, MAX_TOKENS + 1, "expected at most 1000000000"),
        ("output_tokens", MAX_TOKENS, MAX_TOKENS + 1, "expected at most 1000000000"),
        ("arrival_ns", MAX_ARRIVAL_NS, MAX_ARRIVAL_NS + 1, "expected at most 9000000000000000000"),
        ("max_tokens", MAX_TOKENS, MAX_TOKENS + 1, "expected at most 1000000000"),
        ("predicted_tokens", 1, 0, "expected at least 1"),
    ],
)
def test_requests_refuse_nonsense(field, fine, wrong, expected):
    """The smallest and largest values are fine, one beyond is refused with request, field and number."""
    assert fine == getattr(replace(SMALLEST, **{field: fine}), field)
    with pytest.raises(TraceError) as caught:
        replace(SMALLEST, **{field: wrong})

    assert str(caught.value) == f"request 'r0': {field} is {wrong}, {expected}"


def test_a_declared_limit_is_at_least_the_output():
    """An output of 5 tokens may declare 5 and not 4."""
    request = replace(SMALLEST, output_tokens=5, max_tokens=5)

    with pytest.raises(TraceError, match="max_tokens is 4, expected at least its output_tokens, 5"):
        replace(request, max_tokens=4)


@pytest.mark.parametrize(("prompt", "output", "peak"), [(1, 1, 1), (5, 1, 5), (1, 5, 5), (32, 1024, 1055)])
def test_peak_leaves_out_the_last_token(prompt, output, peak):
    """The last output token is never processed: I + O - 1."""
    assert peak == replace(SMALLEST, prompt_tokens=prompt, output_tokens=output).peak_kv_tokens


@pytest.mark.parametrize(
    "field", ["kv_blocks", "block_tokens", "max_batch_tokens", "max_batch_requests", "max_model_len"]
)
def test_limits_refuse_nonsense(field):
    """Every limit is at least 1 and below 2^62."""
    limits = make_instance((1, 1)).limits

    assert replace(limits, **{field: 1})
    assert replace(limits, **{field: 2**62 - 1})
    with pytest.raises(InputError, match=f"{field} is 0, expected at least 1"):
        replace(limits, **{field: 0})
    with pytest.raises(InputError, match=f"{field} is {2**62}, expected less than {2**62}"):
        replace(limits, **{field: 2**62})


@pytest.mark.parametrize(
    ("block_tokens", "tokens", "blocks"), [(1, 7, 7), (16, 0, 0), (16, 1, 1), (16, 16, 1), (16, 17, 2)]
)
def test_blocks_are_rounded_up(block_tokens, tokens, blocks):
    """A request that holds m tokens occupies ceil(m / b) blocks."""
    limits = Limits(kv_blocks=10, block_tokens=block_tokens, max_batch_tokens=1, max_batch_requests=1)

    assert blocks == limits.blocks_of(tokens)
    assert 10 * block_tokens == limits.kv_tokens


def test_an_instance_needs_requests():
    """An empty trace is refused."""
    with pytest.raises(InputError, match="the trace has no requests"):
        replace(make_instance((1, 1)), requests=())


def test_request_ids_are_unique():
    """The same name twice is refused."""
    with pytest.raises(InputError, match="request_id 'r0' appears twice, expected unique names"):
        replace(make_instance((1, 1)), requests=(SMALLEST, replace(SMALLEST, prompt_tokens=2)))


@pytest.mark.parametrize(
    ("fits", "too_large", "settings", "reason"),
    [
        (
            (6, 3),
            (6, 4),
            {"kv_blocks": 8},
            "request 'r0' alone needs 9 KV blocks, the device offers 8 "
            "(6 prompt + 4 output - 1 = 9 tokens in blocks of 1)",
        ),
        (
            (6, 3),
            (6, 4),
            {"kv_blocks": 2, "block_tokens": 4},
            "request 'r0' alone needs 3 KV blocks, the device offers 2 "
            "(6 prompt + 4 output - 1 = 9 tokens in blocks of 4)",
        ),
        (
            (6, 3),
            (7, 3),
            {"max_model_len": 8},
            "request 'r0' is longer than max_model_len 8 (7 prompt + 3 output - 1 = 9 tokens)",
        ),
        (
            (6, 3),
            (7, 3),
            {"max_batch_tokens": 6, "chunked_prefill": False},
            "request 'r0' has a prompt of 7 tokens, more than max_batch_tokens 6, and chunked prefill is off",
        ),
    ],
)
def test_rejections_at_the_edge(fits, too_large, settings, reason):
    """A request that just fits is served, one token more is rejected with the arithmetic."""
    served, refused = make_instance(fits, **settings), make_instance(too_large, **settings)

    assert served.rejection_of(served.requests[0]) is None
    assert reason == refused.rejection_of(refused.requests[0]).reason


def test_a_chunked_prompt_may_exceed_the_budget():
    """With chunked prefill a prompt of 7 goes through a budget of 6 in two batches."""
    instance = make_instance((7, 1), max_batch_tokens=6)

    assert instance.rejection_of(instance.requests[0]) is None
    assert one_after_another(instance) == [[(0, 6)], [(0, 1)]]


def test_rejected_requests_are_split_off():
    """The others keep their order, and the reasons come in the order of the trace."""
    instance = make_instance((9, 9), (2, 2), (8, 8), (1, 1), kv_blocks=4)
    kept, rejections = instance.split_rejected()

    assert [request.request_id for request in kept.requests] == ["r1", "r3"]
    assert [rejection.request.request_id for rejection in rejections] == ["r0", "r2"]
    assert (kept, ()) == kept.split_rejected()


def test_an_instance_of_rejected_requests_is_refused():
    """If no request can be served there is no instance, and the first reason is given."""
    with pytest.raises(InfeasibleError, match="no request can be served; the first: request"):
        make_instance((9, 9), (9, 9), kv_blocks=4).split_rejected()


@given(instances())
@check_briefly
def test_small_instances_are_served_completely(instance):
    """The random instances of these tests reject no request, so every one is judged."""
    assert (instance, ()) == instance.split_rejected()


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ({}, "full"),
        ({"chunked_prefill": False}, "no chunking"),
        ({"hybrid_batches": False}, "no hybrid batches"),
        ({"holding": False}, "no holding"),
        ({"preemption": Preemption.NONE}, "no preemption"),
        ({"reservation": True}, "reservation"),
        ({"chunked_prefill": False, "reservation": True}, "no chunking, reservation"),
    ],
)
def test_classes_of_schedules_have_names(switches, name):
    """Every switch that restricts is in the name of the class, and only the widest is called full."""
    assert name == Switches(**switches).policy_class


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"chunked_prefill": True}, False),
        ({"holding": True}, False),
        ({"hybrid_batches": False}, False),
        ({"preemption": Preemption.RECOMPUTE}, False),
        ({"reservation": True}, True),
    ],
)
def test_run_to_completion(changes, expected):
    """Whole prompts, no waiting, no eviction, and prompts beside decodes: then no request ever pauses."""
    base = {"chunked_prefill": False, "holding": False, "preemption": Preemption.NONE}

    assert expected is Switches(**{**base, **changes}).run_to_completion


def test_the_fingerprint_does_not_change_between_versions():
    """The fingerprint of one instance is pinned: another value would orphan all result files."""
    instance = make_instance((2, 4), (2, 4), (2, 4), kv_blocks=9, max_batch_tokens=16)

    assert instance.fingerprint() == PINNED


@given(instances(), instances())
@check
def test_fingerprints_are_equal_exactly_when_instances_are(first, second):
    """Equal instances have equal fingerprints, different ones different."""
    assert (first == second) == (first.fingerprint() == second.fingerprint())
    assert first.fingerprint() == replace(first).fingerprint()


def variants(instance: Instance) -> list[Instance]:
    """The instance changed in one place each."""
    first, *others = instance.requests
    changed_requests = [
        replace(first, request_id="other"),
        replace(first, arrival_ns=1),
        replace(first, prompt_tokens=first.prompt_tokens + 1),
        replace(first, output_tokens=first.output_tokens + 1),
        replace(first, priority=1),
    ]
    changed_limits = [
        replace(instance.limits, **{name: 77})
        for name in ("kv_blocks", "block_tokens", "max_batch_tokens", "max_batch_requests", "max_model_len")
    ]
    changed_switches = [
        replace(instance.switches, **{name: not getattr(instance.switches, name)})
        for name in ("chunked_prefill", "hybrid_batches", "holding", "reservation")
    ]
    return [
        replace(instance, requests=tuple(reversed(instance.requests))),
        replace(instance, requests=(*instance.requests, replace(first, request_id="new"))),
        *(replace(instance, requests=(request, *others)) for request in changed_requests),
        *(replace(instance, limits=limits) for limits in changed_limits),
        *(replace(instance, switches=switches) for switches in changed_switches),
        replace(instance, switches=replace(instance.switches, preemption=Preemption.NONE)),
        replace(instance, cost=replace(UNIT, name="other")),
        replace(instance, cost=replace(UNIT, step=UNIT.step * 2)),
    ]


def test_every_field_is_in_the_fingerprint():
    """Order, names, sizes, limits, switches and costs all matter."""
    instance = make_instance((2, 4), (3, 1))
    prints = [each.fingerprint() for each in [instance, *variants(instance)]]

    assert len(prints) == len(set(prints))
