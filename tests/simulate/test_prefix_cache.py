"""The prefix cache: content of blocks, order of reuse, what a step allows, what the referee accepts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cspsched.simulate.pool import PoolError
from cspsched.simulate.prefix_cache import PrefixCachePool
from cspsched.simulate.state import State

from cspsched.policies.vllm_v1 import VllmSettings, VllmV1
from cspsched.problem.instance import Instance
from cspsched.problem.prefix import BlockContents
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.simulate import CachedPrefix, PolicyError, Step, simulate
from tests.oracles.naive_prefix import NaiveBlocks, texts
from tests.support.command_line import invoke
from tests.support.strategies import EXAMPLES, make_instance
from tests.support.vllm_cases import policy_of, random_case

CACHING = VllmV1(VllmSettings(enable_prefix_caching=True))

Prefix = tuple[tuple[str, int], ...]


def with_prefixes(instance: Instance, *prefixes: Prefix) -> Instance:
    requests = zip(instance.requests, prefixes, strict=True)
    return replace(instance, requests=tuple(replace(one, prefix=prefix) for one, prefix in requests))


def shared(*sizes: tuple[int, int], prefix: Prefix, **limits: int) -> Instance:
    """Requests that all begin alike, in blocks of two tokens."""
    return with_prefixes(make_instance(*sizes, block_tokens=2, **limits), *[prefix] * len(sizes))  # type: ignore[arg-type]


# Content


def test_blocks_are_equal_exactly_where_all_tokens_up_to_their_end_are() -> None:
    """On random prefixes: same name, same text from the beginning; and the other way round."""
    for seed in range(EXAMPLES):
        instance, _ = random_case(random.Random(seed))
        size, contents = instance.limits.block_tokens, BlockContents.of_instance(instance)
        named = [
            (contents.of(i, k), tuple(text[: (k + 1) * size]))
            for i, text in enumerate(texts(instance))
            for k in range(len(text) // size)
        ]
        for name, text in named:
            assert [other == text for _, other in named] == [other == name for other, _ in named]


def test_a_stream_is_shared_as_far_as_both_prompts_go() -> None:
    """Seven and five tokens of a text in blocks of two: two blocks; the third has a token of one's own."""
    contents = BlockContents.of_instance(
        with_prefixes(make_instance((9, 1), (9, 1), block_tokens=2), (("a", 7),), (("a", 5),))
    )

    assert [contents.of(0, k) == contents.of(1, k) for k in range(4)] == [True, True, False, False]


# The pool


def pool_of(prefix: Prefix = (), *, kv_blocks: int = 4) -> PrefixCachePool:
    return PrefixCachePool(shared((9, 9), (9, 9), (9, 9), prefix=prefix, kv_blocks=kv_blocks))


def fill(pool: PrefixCachePool, request: int, tokens: int) -> None:
    """Take what so many tokens need and enter what is full."""
    pool.take(request, -(-tokens // 2))
    pool.enter(request, tokens)


def test_what_was_left_is_found_and_taken_again() -> None:
    """Two full blocks of five tokens, free by now; the request holds them again and nobody else can."""
    pool = pool_of()
    fill(pool, 0, 5)
    pool.release(0)
    cached = pool.find(0, known_tokens=6)
    pool.reuse(0, cached)

    assert (len(cached.blocks), cached.num_free) == (2, 2)
    assert (pool.held[0], pool.free, pool.used, pool.num_holders) == (2, 2, 2, 1)
    assert pool.find(1, known_tokens=6) == CachedPrefix()


@pytest.mark.parametrize(("known_tokens", "blocks"), [(4, 1), (5, 2), (2, 0), (3, 1)])
def test_the_last_known_token_is_never_cached(known_tokens: int, blocks: int) -> None:
    """Four tokens are there, in two blocks; a request of four tokens has to process one."""
    pool = pool_of((("a", 4),))
    fill(pool, 0, 4)

    assert len(pool.find(1, known_tokens).blocks) == blocks


def test_shared_blocks_are_counted_once_and_free_when_the_last_leaves() -> None:
    """Two requests hold the same two blocks."""
    pool = pool_of((("a", 4),))
    fill(pool, 0, 4)
    cached = pool.find(1, known_tokens=5)
    pool.reuse(1, cached)

    assert (cached.num_free, pool.used, pool.num_holders) == (0, 2, 2)
    assert (pool.release(0), pool.used) == (2, 2)
    assert (pool.release(1), pool.used) == (2, 0)


def test_blocks_without_content_are_reused_first() -> None:
    """The half-filled block is given away before the full ones, of which the last goes first."""
    pool = pool_of(kv_blocks=3)
    fill(pool, 0, 5)
    pool.release(0)

    found = []
    for taken in range(3):
        pool.take(1, 1)
        found.append(len(pool.find(0, known_tokens=6).blocks))
        assert pool.used == taken + 1
    assert found == [2, 1, 0]


def test_the_oldest_content_goes_first() -> None:
    """First in, first out between requests: what the first left is forgotten before what the second left."""
    pool = pool_of(kv_blocks=2)
    fill(pool, 0, 2)
    fill(pool, 1, 2)
    pool.release(0)
    pool.release(1)
    pool.take(2, 1)

    assert [len(pool.find(request, known_tokens=3).blocks) for request in (0, 1)] == [0, 1]


def test_equal_content_is_kept_twice_and_the_first_is_found() -> None:
    """Both computed it; when the first is overwritten, the second takes its place."""
    pool = pool_of((("a", 2),), kv_blocks=3)
    fill(pool, 0, 2)
    fill(pool, 1, 2)
    first = pool.find(2, known_tokens=3).blocks
    pool.release(0)
    pool.take(2, 2)

    assert pool.used == 3
    assert pool.find(0, known_tokens=3).blocks != first
    assert len(pool.find(0, known_tokens=3).blocks) == 1


def test_the_pool_refuses_what_makes_no_sense() -> None:
    """Reuse of nothing, or by a request that holds blocks; too many blocks; a second release."""
    pool = pool_of()
    fill(pool, 0, 4)
    with pytest.raises(PoolError, match="0 cached blocks"):
        pool.reuse(1, CachedPrefix())
    with pytest.raises(PoolError, match="for 2 held ones"):
        pool.reuse(0, pool.find(0, known_tokens=5))
    with pytest.raises(PoolError, match="3 KV blocks asked for, 2 of 4 are free"):
        pool.take(1, 3)
    with pytest.raises(PoolError, match="no KV blocks to release"):
        pool.release(1)


# Steps


def step_after(instance: Instance, batch: Sequence[tuple[int, int]], *, caches_prefixes: bool = True) -> Step:
    """A step after a batch of (request, tokens), in which all requests have arrived."""
    state = State(instance, caches_prefixes=caches_prefixes)
    for request in range(len(instance.requests)):
        state.submit(request)
    step = Step(state, clock_ns=0, label="test")
    for request, tokens in batch:
        step.schedule(request, tokens, step.missing_blocks(request, tokens))
    state.process(step.batch)
    return Step(state, clock_ns=1, label="test")


def test_a_request_starts_with_what_is_cached() -> None:
    """Four of five tokens are there; one is left, which needs a block of its own."""
    step = step_after(shared((5, 2), (5, 2), prefix=(("a", 4),)), [(0, 5)])
    step.reuse(1, step.find_cached(1))
    step.schedule(1, 1, step.missing_blocks(1, 1))

    assert step.hits == {1: 4}
    assert (step.computed_tokens[1], step.held_blocks[1]) == (4, 3)


def test_a_request_that_is_withdrawn_leaves_no_hit() -> None:
    """It was admitted in this very step: no eviction, no hit, and the blocks are the first one's again."""
    step = step_after(shared((5, 2), (5, 2), prefix=(("a", 4),)), [(0, 5)])
    step.reuse(1, step.find_cached(1))
    step.schedule(1, 1, step.missing_blocks(1, 1))

    assert step.preempt(1) == 1
    assert (step.hits, step.evicted, step.computed_tokens[1], step.held_blocks[1]) == ({}, [], 0, 0)


def test_nothing_is_found_without_a_cache() -> None:
    """A policy that did not ask for it may ask all the same."""
    step = step_after(shared((5, 2), (5, 2), prefix=(("a", 4),)), [(0, 5)], caches_prefixes=False)

    assert step.find_cached(1) == CachedPrefix()
    with pytest.raises(PolicyError, match="reuses cached KV blocks but may not"):
        step.reuse(1, CachedPrefix((0,), 1))


def test_reuse_by_a_resident_is_refused() -> None:
    """Cached blocks come first or not at all."""
    step = step_after(shared((5, 2), (5, 2), prefix=(("a", 4),)), [(0, 5)])

    with pytest.raises(PolicyError, match="3 held ones"):
        step.reuse(0, step.find_cached(0))


# The referee


def schedule_with_hit(hit_tokens: int = 4, *, hit_request: int = 1, hit_batch: int = 1) -> Schedule:
    """r0 processes its five tokens, then r1 the one that the cache lacks."""
    return replace(
        Schedule.from_batches([[(0, 5)], [(1, 1)]], [[], []], [0, 1], [1, 2]),
        kv_tokens=np.array([5, 1 + hit_tokens]),
        hit_batch=np.array([hit_batch]),
        hit_request=np.array([hit_request]),
        hit_tokens=np.array([hit_tokens]),
    )


def rules(instance: Instance, schedule: Schedule) -> set[str]:
    return {violation.rule for violation in find_violations(instance, schedule)}


def test_a_hit_of_what_was_computed_is_accepted() -> None:
    """Two full blocks of a shared text, by another request, one batch before."""
    assert rules(shared((5, 1), (5, 1), prefix=(("a", 4),)), schedule_with_hit()) == set()


@pytest.mark.parametrize("prefix", [(("b", 4),), (("a", 2), ("b", 2)), (("a", 2), ("a", 2)), (("a", 3),)])
def test_a_hit_of_other_content_is_refused(prefix: Prefix) -> None:
    """Another text, another continuation, the same text again, a text that ends inside the block."""
    instance = with_prefixes(make_instance((5, 1), (5, 1), block_tokens=2), (("a", 4),), prefix)

    messages = [str(violation) for violation in find_violations(instance, schedule_with_hit())]
    assert len(messages) == 1
    assert "nobody has computed" in messages[0]


def test_a_hit_before_the_computation_is_refused() -> None:
    """r1 comes first: in batch 0 nothing was computed yet."""
    early = replace(
        schedule_with_hit(), request=np.array([1, 0]), tokens=np.array([1, 5]), hit_batch=np.array([0])
    )

    assert "prefix cache" in rules(shared((5, 1), (5, 1), prefix=(("a", 4),)), early)


def test_a_hit_of_half_a_block_is_refused() -> None:
    """Three tokens are no number of blocks of two."""
    assert "prefix cache" in rules(shared((4, 1), (4, 1), prefix=(("a", 4),)), schedule_with_hit(3))


@pytest.mark.parametrize(("kv_blocks", "feasible"), [(4, True), (3, False)])
def test_shared_blocks_are_counted_once(kv_blocks: int, feasible: bool) -> None:  # noqa: FBT001
    """Two requests of five tokens, four of them shared: two blocks and one each."""
    instance = shared((5, 2), (5, 1), prefix=(("a", 4),), kv_blocks=kv_blocks)
    schedule = replace(
        Schedule.from_batches([[(0, 5)], [(1, 1)], [(0, 1)]], [[], [], []], [0, 1, 2], [1, 2, 3]),
        kv_tokens=np.array([5, 5, 6]),
        hit_batch=np.array([1]),
        hit_request=np.array([1]),
        hit_tokens=np.array([4]),
    )

    assert rules(instance, schedule) == (set() if feasible else {"capacity"})


@pytest.mark.parametrize(("kv_blocks", "feasible"), [(5, True), (4, False)])
def test_what_is_found_later_occupies_the_device_meanwhile(kv_blocks: int, feasible: bool) -> None:  # noqa: FBT001
    """r0 has left; r1 needs three blocks while the two that r2 will find are kept."""
    instance = with_prefixes(
        make_instance((5, 1), (5, 1), (5, 1), block_tokens=2, kv_blocks=kv_blocks),
        (("a", 4),),
        (),
        (("a", 4),),
    )
    schedule = replace(
        Schedule.from_batches([[(0, 5)], [(1, 5)], [(2, 1)]], [[], [], []], [0, 1, 2], [1, 2, 3]),
        kv_tokens=np.array([5, 5, 5]),
        hit_batch=np.array([2]),
        hit_request=np.array([2]),
        hit_tokens=np.array([4]),
    )

    assert rules(instance, schedule) == (set() if feasible else {"capacity"})


def test_the_referee_agrees_with_its_twin_on_hits_and_blocks() -> None:
    """On schedules of vLLM, and on the same ones told of prompts that share less than they did."""
    refused = 0
    for seed in range(2 * EXAMPLES):
        rng = random.Random(seed)
        instance, arguments = random_case(rng)
        arguments |= {"enable_prefix_caching": True, "async_scheduling": False}
        try:
            schedule = simulate(instance, policy_of(arguments)).schedule
        except PolicyError:
            continue
        changed = rng.randrange(len(instance.requests))
        prefixes = [() if i == changed else one.prefix for i, one in enumerate(instance.requests)]
        for told in (instance, with_prefixes(instance, *prefixes)):
            naive = NaiveBlocks(told, schedule)
            assert ("prefix cache" in rules(told, schedule)) is naive.has_unknown_hit, f"seed {seed}"
            refused += naive.has_unknown_hit
            if schedule.uses_prefix_cache and not naive.has_unknown_hit:
                assert occupied_blocks(follow(told, schedule)).tolist() == naive.occupied, f"seed {seed}"

    assert refused > EXAMPLES // 8


def test_a_hit_of_absurd_length_is_refused_at_once() -> None:
    """A billion tokens are not written out block by block."""
    assert "known tokens" in rules(shared((5, 1), (5, 1), prefix=(("a", 4),)), schedule_with_hit(10**9))


def test_a_request_that_starts_with_hits_is_resident() -> None:
    """Without holding it has to be in every batch from then on, like any other."""
    instance = with_prefixes(make_instance((5, 2), (5, 2), block_tokens=2, holding=False), *[(("a", 4),)] * 2)

    assert find_violations(instance, simulate(instance, CACHING).schedule) == []


# End to end


def test_hits_shorten_a_prefill() -> None:
    """The second prompt is processed from its fifth token on, in the very batch that computes the first."""
    instance = shared((5, 1), (6, 1), prefix=(("a", 4),))
    schedule = simulate(instance, CACHING).schedule

    assert schedule.tokens.tolist() == [5, 2]
    assert (schedule.hit_request.tolist(), schedule.hit_tokens.tolist()) == ([1], [4])


def test_a_comparison_refuses_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    """The bounds know no shared blocks, so there is no excess to print."""
    outcome = invoke(
        capsys, "compare", "--heuristics", "vllm:enable_prefix_caching=true", "--time-limit", "0s"
    )

    assert outcome.code == 2
    assert "enable_prefix_caching" in outcome.err


def test_a_simulation_takes_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    """A bundled trace, with the cache on."""
    assert invoke(capsys, "simulate", "burst-6", "--policy", "vllm:enable_prefix_caching=true").code == 0
