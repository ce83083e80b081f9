"""The prefix cache: content of blocks, order of reuse, what a step allows, what the referee accepts."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cspsched.policies.vllm_v1 import VllmSettings, VllmV1
from cspsched.problem.instance import Instance
from cspsched.problem.prefix import BlockContents
from cspsched.problem.schedule import Schedule
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations, occupied_blocks
from cspsched.simulate import CachedPrefix, KernelReplica, PolicyError, simulate
from cspsched.simulate.kernel.layout import Kernel
from cspsched.simulate.kernel.prefix import enter, find_cached, num_free_of, release, reuse, take
from tests.oracles.naive_prefix import NaiveBlocks, texts
from tests.support.command_line import invoke
from tests.support.scripted import Scripted
from tests.support.steps import put_missing, step_after
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


TWICE = shared((5, 2), (5, 2), prefix=(("a", 4),))
"""Two requests of five tokens, four of which they share."""

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


# The blocks


def kernel_of(*prompts: int, prefix: Prefix = (), kv_blocks: int = 4) -> Kernel:
    """Requests that wait for a device with a cache, in blocks of two tokens."""
    instance = shared(*((prompt, 1) for prompt in prompts), prefix=prefix, kv_blocks=kv_blocks)
    policy = Scripted(lambda number, step: None, caches_prefixes=True)
    return KernelReplica(instance, policy, plain=True).kernel


def give(k: Kernel, request: int, count: int) -> None:
    """Give a request so many more blocks."""
    take(k, request, count)
    k.requests[request].blocks += count
    k.now.free_blocks -= count


def fill(k: Kernel, request: int, tokens: int) -> None:
    """Take what so many tokens need and enter what is full."""
    give(k, request, -(-tokens // 2))
    enter(k, request, tokens)


def free(k: Kernel, request: int) -> int:
    """Free what a request holds; how many blocks are free by that."""
    freed = release(k, request)
    k.requests[request].blocks = 0
    k.now.free_blocks += freed
    return freed


def found(k: Kernel, request: int) -> list[int]:
    """Blocks that a request would reuse."""
    first = k.notes[request].first_place
    places = k.cache.places[first : first + find_cached(k, request)]
    return [k.cache.contents[place.content].first for place in places]


def test_what_was_left_is_found_and_taken_again() -> None:
    """Two full blocks of five tokens, free by now; the request holds them again and no other can."""
    k = kernel_of(6, 6)
    fill(k, 0, 5)
    free(k, 0)
    left = found(k, 0)

    assert (len(left), num_free_of(k, 0, 2)) == (2, 2)
    reuse(k, 0, 2)
    assert (k.requests[0].blocks, k.requests[0].kv_tokens, k.now.free_blocks) == (2, 4, 2)
    assert [k.cache.blocks[block].num_holders for block in left] == [1, 1]
    assert found(k, 1) == []


@pytest.mark.parametrize(("known_tokens", "blocks"), [(4, 1), (5, 2), (2, 0), (3, 1)])
def test_the_last_known_token_is_never_cached(known_tokens: int, blocks: int) -> None:
    """Four tokens are there, in two blocks; a request of four tokens has to process one."""
    instance = make_instance((4, 2), (known_tokens, 2), block_tokens=2)
    prefixes = [(("a", 4),), (("a", min(known_tokens, 4)),)]
    step = step_after(with_prefixes(instance, *prefixes), put_missing((0, 4)), caches_prefixes=True)

    assert len(step.find_cached(1).blocks) == blocks


def test_shared_blocks_are_counted_once_and_free_when_the_last_leaves() -> None:
    """Two requests hold the same two blocks."""
    k = kernel_of(4, 5, prefix=(("a", 4),))
    fill(k, 0, 4)

    assert (find_cached(k, 1), num_free_of(k, 1, 2)) == (2, 0)
    reuse(k, 1, 2)
    assert k.now.free_blocks == 2
    assert (free(k, 0), k.now.free_blocks) == (0, 2)
    assert (free(k, 1), k.now.free_blocks) == (2, 4)


def test_blocks_without_content_are_reused_first() -> None:
    """The half-filled block is given away before the full ones, of which the last goes first."""
    k = kernel_of(6, 6, kv_blocks=3)
    fill(k, 0, 5)
    free(k, 0)

    num_found = []
    for _ in range(3):
        give(k, 1, 1)
        num_found.append(find_cached(k, 0))
    assert num_found == [2, 1, 0]


def test_the_oldest_content_goes_first() -> None:
    """First in, first out between requests: what the first left is forgotten before what the second left."""
    k = kernel_of(3, 3, 2, kv_blocks=2)
    fill(k, 0, 2)
    fill(k, 1, 2)
    free(k, 0)
    free(k, 1)
    give(k, 2, 1)

    assert [find_cached(k, request) for request in (0, 1)] == [0, 1]


def test_equal_content_is_kept_twice_and_the_first_is_found() -> None:
    """Both computed it; when the first is overwritten, the second takes its place."""
    k = kernel_of(3, 3, 3, prefix=(("a", 2),), kv_blocks=3)
    fill(k, 0, 2)
    fill(k, 1, 2)
    first = found(k, 2)
    free(k, 0)
    assert (k.now.free_blocks, found(k, 2)) == (2, first)

    give(k, 2, 2)
    assert k.now.free_blocks == 0
    assert len(found(k, 0)) == 1
    assert found(k, 0) != first


# Steps


def test_a_request_starts_with_what_is_cached() -> None:
    """Four of five tokens are there; one is left, which needs a block of its own."""
    step = step_after(TWICE, put_missing((0, 5)), caches_prefixes=True)
    step.reuse(1, step.find_cached(1))
    put_missing((1, 1))(step)

    assert step.hits == {1: 4}
    assert (step.computed_tokens[1], step.held_blocks[1]) == (4, 3)


def test_a_request_that_is_withdrawn_leaves_no_hit() -> None:
    """It was admitted in this very step: no eviction, no hit, and the blocks are the first one's again."""
    step = step_after(TWICE, put_missing((0, 5)), caches_prefixes=True)
    free_blocks = step.free_blocks
    step.reuse(1, step.find_cached(1))
    put_missing((1, 1))(step)

    assert step.preempt(1) == 1
    assert (step.hits, step.evicted, step.computed_tokens[1], step.held_blocks[1]) == ({}, [], 0, 0)
    assert step.free_blocks == free_blocks


def test_blocks_found_free_are_told_from_those_that_are_held() -> None:
    """While r0 runs, to start r1 takes no free block; when r0 has been evicted, it takes two."""
    step = step_after(TWICE, put_missing((0, 5)), caches_prefixes=True)
    blocks, free_blocks = step.find_cached(1).blocks, step.free_blocks
    assert step.find_cached(1).num_free == 0

    step.preempt(0)
    assert step.find_cached(1) == CachedPrefix(blocks, 2)
    step.reuse(1, step.find_cached(1))
    assert step.free_blocks == free_blocks + 3 - 2


def test_nothing_is_found_without_a_cache() -> None:
    """A policy that did not ask for it may ask all the same."""
    step = step_after(TWICE, put_missing((0, 5)))

    assert step.find_cached(1) == CachedPrefix()
    with pytest.raises(PolicyError, match="'r1' reuses cached KV blocks but may not"):
        step.reuse(1, CachedPrefix((0,), 1))


def test_reuse_of_what_was_not_found_is_refused() -> None:
    """Nothing at all, and fewer blocks than there are."""
    step = step_after(TWICE, put_missing((0, 5)), caches_prefixes=True)
    blocks = step.find_cached(1).blocks

    for cached in (CachedPrefix(), CachedPrefix(blocks[:1]), CachedPrefix(blocks[::-1])):
        with pytest.raises(PolicyError, match="'r1' reuses cached KV blocks that were not found for it"):
            step.reuse(1, cached)


def test_reuse_by_a_resident_is_refused() -> None:
    """Cached blocks come first or not at all."""
    step = step_after(TWICE, put_missing((0, 5)), caches_prefixes=True)

    with pytest.raises(PolicyError, match="'r0' reuses cached KV blocks: it holds 3, expected none"):
        step.reuse(0, step.find_cached(0))


def test_blocks_that_are_not_there_are_refused() -> None:
    """More than are free, those of the cache among them; and a second eviction."""
    step = step_after(
        shared((5, 2), (9, 2), prefix=(), kv_blocks=5), put_missing((0, 5)), caches_prefixes=True
    )

    with pytest.raises(PolicyError, match="3 KV blocks asked for, 2 of 5 are free"):
        step.schedule(1, 5, 3)
    step.preempt(0)
    with pytest.raises(PolicyError, match="'r0' is preempted but holds no KV blocks"):
        step.preempt(0)
    step.schedule(1, 9, 5)
    assert step.find_cached(0) == CachedPrefix()


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


def test_an_explanation_refuses_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    """What is measured against optima without hits takes no policy with them."""
    outcome = invoke(
        capsys, "explain", "burst-6", "--policy", "vllm:enable_prefix_caching=true", "--time-limit", "0s"
    )

    assert outcome.code == 2
    assert "enable_prefix_caching" in outcome.err


def test_a_simulation_takes_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    """A bundled trace, with the cache on."""
    assert invoke(capsys, "simulate", "burst-6", "--policy", "vllm:enable_prefix_caching=true").code == 0
