"""What a policy may do to the batch, at the edge and one step beyond."""

from __future__ import annotations

from fractions import Fraction

import pytest
from cspsched.simulate.state import State

from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate.step import PolicyError, Step


def state_of(*, prompts: tuple[int, ...] = (6, 6), outputs: int = 3) -> State:
    """Submitted requests r0, r1, ... on 5 blocks of 4 tokens, with C = 10 and R = 2."""
    requests = tuple(
        Request(request_id=f"r{i}", arrival_ns=0, prompt_tokens=prompt, output_tokens=outputs)
        for i, prompt in enumerate(prompts)
    )
    limits = Limits(kv_blocks=5, block_tokens=4, max_batch_tokens=10, max_batch_requests=2)
    cost = CostModel(name="unit", step=Fraction(1))
    state = State(Instance(requests=requests, limits=limits, cost=cost))
    for request in range(len(prompts)):
        state.submit(request)
    return state


def step_of(state: State) -> Step:
    return Step(state, 42, "mine")


def run(state: State, *entries: tuple[int, int, int]) -> None:
    """Run a batch of (request, tokens, blocks)."""
    step = step_of(state)
    for request, tokens, blocks in entries:
        step.schedule(request, tokens, blocks)
    state.process(step.batch)


def test_scheduled_requests_keep_their_order() -> None:
    """The batch is in the order of the calls."""
    step = step_of(state_of())
    step.schedule(1, 4, 1)
    step.schedule(0, 6, 2)

    assert list(step.batch.items()) == [(1, 4), (0, 6)]
    assert (step.tokens_left, step.requests_left, step.free_blocks) == (0, 0, 2)


@pytest.mark.parametrize("tokens", [0, -1, 7])
def test_only_known_tokens_are_scheduled(tokens: int) -> None:
    """1 to known - computed."""
    with pytest.raises(
        PolicyError, match=rf"policy mine: request 'r0' is scheduled with {tokens} tokens, expected 1 to 6"
    ):
        step_of(state_of()).schedule(0, tokens, 2)


def test_a_request_is_scheduled_once_in_a_batch() -> None:
    """A second call for the same request is refused."""
    step = step_of(state_of())
    step.schedule(0, 1, 1)
    with pytest.raises(PolicyError, match="request 'r0' is scheduled twice in one batch"):
        step.schedule(0, 1, 0)


def test_a_request_that_has_not_arrived_is_refused() -> None:
    """The columns of a request that was not submitted are empty."""
    submitted = state_of()
    with pytest.raises(PolicyError, match="'r1' is scheduled before its arrival or after its last token"):
        Step(State(submitted.instance), 0, "mine").schedule(1, 1, 1)


def test_the_token_budget_binds() -> None:
    """6 + 4 tokens fit into C = 10, 6 + 5 do not."""
    step = step_of(state_of())
    step.schedule(0, 6, 2)
    with pytest.raises(PolicyError, match="does not fit into the batch: 4 tokens and 1 requests are left"):
        step.schedule(1, 5, 2)
    step.schedule(1, 4, 1)


def test_the_request_limit_binds() -> None:
    """A third request is refused with R = 2."""
    step = step_of(state_of(prompts=(1, 1, 1)))
    step.schedule(0, 1, 1)
    step.schedule(1, 1, 1)
    with pytest.raises(PolicyError, match="8 tokens and 0 requests are left, it has 1"):
        step.schedule(2, 1, 1)


@pytest.mark.parametrize("blocks", [-1, 6])
def test_blocks_must_be_free(blocks: int) -> None:
    """More than the pool has, or a negative number, is refused with the policy's name."""
    with pytest.raises(PolicyError, match=f"gets KV blocks that there are not: {blocks} KV blocks asked for"):
        step_of(state_of()).schedule(0, 6, blocks)


def test_blocks_must_hold_the_tokens() -> None:
    """6 tokens do not fit into one block of 4."""
    with pytest.raises(PolicyError, match="needs room for 6 KV entries and holds 1 blocks"):
        step_of(state_of()).schedule(0, 6, 1)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_missing_blocks_round_up(tokens: int, blocks: int) -> None:
    """Blocks of 4 tokens."""
    assert blocks == step_of(state_of()).missing_blocks(0, tokens)


def test_no_block_is_missing_where_more_are_held() -> None:
    """A request that was given its blocks ahead lacks none."""
    state = state_of()
    run(state, (0, 1, 3))

    assert step_of(state).missing_blocks(0, 5) == 0


def test_preempt_frees_the_blocks_and_forgets_the_kv_cache() -> None:
    """The generated token stays known; computed tokens, blocks and the decode phase are gone."""
    state = state_of()
    run(state, (0, 6, 2))
    step = step_of(state)

    assert step.preempt(0) == 0
    assert step.evicted == [0]
    assert (
        step.known_tokens[0], step.computed_tokens[0], step.held_blocks[0], step.free_blocks,
    ) == (7, 0, 0, 5)  # fmt: skip
    assert not step.decoding[0]


def test_preempt_takes_a_scheduled_request_out_of_the_batch() -> None:
    """Tokens, place and the block taken in this very step come back."""
    state = state_of(prompts=(4, 1))
    run(state, (0, 4, 1))
    step = step_of(state)
    step.schedule(0, 1, 1)

    assert step.preempt(0) == 1
    assert dict(step.batch) == {}
    assert (step.tokens_left, step.requests_left, step.free_blocks) == (10, 2, 5)


def test_withdrawing_an_admission_is_no_eviction() -> None:
    """A request admitted in the same step had nothing to lose."""
    step = step_of(state_of())
    step.schedule(0, 6, 2)

    assert step.preempt(0) == 6
    assert step.evicted == []
    assert step.free_blocks == 5


def test_only_residents_are_preempted() -> None:
    """A waiting request has nothing to lose."""
    with pytest.raises(PolicyError, match="request 'r1' is preempted but holds no KV blocks"):
        step_of(state_of()).preempt(1)


def test_features_of_a_mixed_batch() -> None:
    """A refill chunk, then a decode beside a last chunk: each is priced by its phase."""
    state = state_of()
    run(state, (0, 6, 2))
    step = step_of(state)
    step.schedule(0, 1, 0)
    step.schedule(1, 2, 1)
    first = state.process(step.batch).features
    step = step_of(state)
    step.schedule(0, 1, 0)
    step.schedule(1, 4, 1)
    second = state.process(step.batch)

    assert first == (3, 3, 2, 0, 6, 1, 1, 1)
    assert second.features == (5, 3 + 4 + 5 + 6, 4, 2, 7, 2, 1, 1)
    assert (second.kv_tokens, second.finished) == ([8, 6], [0])
