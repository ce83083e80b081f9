"""What a policy may do to the batch, at the edge and one step beyond."""

from __future__ import annotations

import pytest

from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance
from cspsched.simulate import PolicyError, Step, simulate
from tests.support.scripted import Scripted
from tests.support.steps import put, step_after
from tests.support.strategies import UNIT, make_instance


def instance_of(*, prompts: tuple[int, ...] = (6, 6), cost: CostModel = UNIT) -> Instance:
    """Requests r0, r1, ... on 5 blocks of 4 tokens, with C = 10 and R = 2."""
    return make_instance(
        *((prompt, 3) for prompt in prompts),
        kv_blocks=5, block_tokens=4, max_batch_tokens=10, max_batch_requests=2, cost=cost,
    )  # fmt: skip


def first_step(*, prompts: tuple[int, ...] = (6, 6)) -> Step:
    """The step in which all have arrived and none has run."""
    return step_after(instance_of(prompts=prompts))


def test_scheduled_requests_keep_their_order() -> None:
    """The batch is in the order of the calls."""
    step = first_step()
    step.schedule(1, 4, 1)
    step.schedule(0, 6, 2)

    assert list(step.batch.items()) == [(1, 4), (0, 6)]
    assert (step.tokens_left, step.requests_left, step.free_blocks) == (0, 0, 2)


@pytest.mark.parametrize("tokens", [0, -1, 7])
def test_only_known_tokens_are_scheduled(tokens: int) -> None:
    """1 to known - computed."""
    with pytest.raises(
        PolicyError,
        match=rf"^policy scripted:by=hand: request 'r0' is scheduled with {tokens} tokens, "
        r"expected 1 to 6 \(at 0 ns\)$",
    ):
        first_step().schedule(0, tokens, 2)


def test_a_request_is_scheduled_once_in_a_batch() -> None:
    """A second call for the same request is refused."""
    step = first_step()
    step.schedule(0, 1, 1)
    with pytest.raises(PolicyError, match="request 'r0' is scheduled twice in one batch"):
        step.schedule(0, 1, 0)


def test_a_request_that_has_not_arrived_is_refused() -> None:
    """The columns of a request that was not submitted are empty."""
    step = step_after(make_instance((6, 3), (6, 3), arrivals_ns=[0, 1000]))

    assert (step.known_tokens[1], step.computed_tokens[1], step.held_blocks[1]) == (0, 0, 0)
    with pytest.raises(PolicyError, match="'r1' is scheduled before its arrival or after its last token"):
        step.schedule(1, 1, 1)


def test_a_request_that_is_served_is_refused() -> None:
    """Its columns are empty again, and its blocks are free."""
    step = step_after(make_instance((6, 1), (6, 3)), put((0, 6, 6)))

    assert (step.known_tokens[0], step.held_blocks[0], step.free_blocks) == (0, 0, 100)
    with pytest.raises(PolicyError, match="'r0' is scheduled before its arrival or after its last token"):
        step.schedule(0, 1, 1)


def test_the_token_budget_binds() -> None:
    """6 + 4 tokens fit into C = 10, 6 + 5 do not."""
    step = first_step()
    step.schedule(0, 6, 2)
    with pytest.raises(PolicyError, match="does not fit into the batch: 4 tokens and 1 requests are left"):
        step.schedule(1, 5, 2)
    step.schedule(1, 4, 1)


def test_the_request_limit_binds() -> None:
    """A third request is refused with R = 2."""
    step = first_step(prompts=(1, 1, 1))
    step.schedule(0, 1, 1)
    step.schedule(1, 1, 1)
    with pytest.raises(PolicyError, match="8 tokens and 0 requests are left, it has 1"):
        step.schedule(2, 1, 1)


@pytest.mark.parametrize("blocks", [-1, 6])
def test_blocks_must_be_free(blocks: int) -> None:
    """More than the pool has, or a negative number, is refused with the policy's name."""
    with pytest.raises(PolicyError, match=f"gets KV blocks that there are not: {blocks} KV blocks asked for"):
        first_step().schedule(0, 6, blocks)


def test_blocks_must_hold_the_tokens() -> None:
    """6 tokens do not fit into one block of 4."""
    with pytest.raises(PolicyError, match="needs room for 6 KV entries and holds 1 blocks"):
        first_step().schedule(0, 6, 1)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_missing_blocks_round_up(tokens: int, blocks: int) -> None:
    """Blocks of 4 tokens."""
    assert blocks == first_step().missing_blocks(0, tokens)


def test_no_block_is_missing_where_more_are_held() -> None:
    """A request that was given its blocks ahead lacks none."""
    assert step_after(instance_of(), put((0, 1, 3))).missing_blocks(0, 5) == 0


def test_preempt_frees_the_blocks_and_forgets_the_kv_cache() -> None:
    """The generated token stays known; computed tokens, blocks and the decode phase are gone."""
    step = step_after(instance_of(), put((0, 6, 2)))
    assert step.decoding[0]

    assert step.preempt(0) == 0
    assert step.evicted == [0]
    assert (
        step.known_tokens[0], step.computed_tokens[0], step.held_blocks[0], step.free_blocks,
    ) == (7, 0, 0, 5)  # fmt: skip
    assert not step.decoding[0]


def test_preempt_takes_a_scheduled_request_out_of_the_batch() -> None:
    """Tokens, place and the block taken in this very step come back."""
    step = step_after(instance_of(prompts=(4, 1)), put((0, 4, 1)))
    step.schedule(0, 1, 1)

    assert step.preempt(0) == 1
    assert dict(step.batch) == {}
    assert (step.tokens_left, step.requests_left, step.free_blocks) == (10, 2, 5)


def test_withdrawing_an_admission_is_no_eviction() -> None:
    """A request admitted in the same step had nothing to lose."""
    step = first_step()
    step.schedule(0, 6, 2)

    assert step.preempt(0) == 6
    assert step.evicted == []
    assert step.free_blocks == 5


def test_only_residents_are_preempted() -> None:
    """A waiting request has nothing to lose."""
    with pytest.raises(PolicyError, match="request 'r1' is preempted but holds no KV blocks"):
        first_step().preempt(1)


def test_features_of_a_mixed_batch() -> None:
    """A first chunk beside a decode, then a last chunk beside the next: each is priced by its phase.

    Each feature of a batch is two digits of its duration.
    """
    functions = ("tokens", "prefill_attention", "prefill_tokens", "prefill_context", "decode_context", "head")
    prices = {name: PiecewiseLinear.linear(100**k) for k, name in enumerate(functions)}
    cost = CostModel(name="digits", prefill_request=100**6, decode_request=100**7, **prices)
    acts = [put((0, 6, 2)), put((0, 1, 0), (1, 2, 1)), put((0, 1, 0), (1, 4, 1))]

    def decide(number: int, step: Step) -> None:
        served = [(request, 1, 0) for request in (0, 1) if step.known_tokens[request]]
        (acts[number] if number < len(acts) else put(*served))(step)

    schedule = simulate(instance_of(cost=cost), Scripted(decide)).schedule
    durations = (schedule.end_ns - schedule.start_ns).tolist()
    first, second = ([duration // 100**k % 100 for k in range(8)] for duration in durations[1:3])

    assert BatchFeatures(*first) == (3, 3, 2, 0, 6, 1, 1, 1)
    assert BatchFeatures(*second) == (5, 3 + 4 + 5 + 6, 4, 2, 7, 2, 1, 1)
    assert schedule.kv_tokens[1:5].tolist() == [7, 2, 8, 6]
    assert schedule.request[5:].tolist() == [1, 1]
