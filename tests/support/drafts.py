"""Schedules as lists, and mutations that may do anything to them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.schedule import Schedule
from tests.oracles.naive_referee import naive_duration


def with_limits(instance: Instance, **limits: int) -> Instance:
    """The instance under other limits."""
    return replace(instance, limits=replace(instance.limits, **limits))


@dataclass
class Draft:
    """A schedule as lists that a mutation may do anything to; entries are [request, tokens, memory]."""

    instance: Instance
    batches: list[list[list[int]]]
    evictions: list[list[tuple[int, bool]]]
    """Request, and whether its KV cache moves to host memory."""
    returns: list[list[int]]
    start_ns: list[int]
    end_ns: list[int]

    @classmethod
    def of(cls, instance: Instance, schedule: Schedule) -> Draft:
        """Take a schedule apart."""
        rows = np.stack([schedule.request, schedule.tokens, schedule.kv_tokens], axis=1)
        evicted = zip(
            schedule.evicted_batch.tolist(),
            schedule.evicted_request.tolist(),
            schedule.evicted_to_host.tolist(),
            strict=True,
        )
        draft = cls(
            instance=instance,
            batches=[part.tolist() for part in np.split(rows, schedule.first_entry[1:-1])],
            evictions=[[] for _ in range(schedule.num_batches)],
            returns=[[] for _ in range(schedule.num_batches)],
            start_ns=schedule.start_ns.tolist(),
            end_ns=schedule.end_ns.tolist(),
        )
        for j, i, to_host in evicted:
            draft.evictions[j].append((i, bool(to_host)))
        for j, i in zip(schedule.restored_batch.tolist(), schedule.restored_request.tolist(), strict=True):
            draft.returns[j].append(i)
        return draft

    def schedule(self) -> Schedule:
        """Put it together again."""
        entries = [entry for batch in self.batches for entry in batch]
        return Schedule(
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            first_entry=np.cumsum([0, *map(len, self.batches)]),
            request=[entry[0] for entry in entries],
            tokens=[entry[1] for entry in entries],
            kv_tokens=[entry[2] for entry in entries],
            evicted_batch=[j for j, evicted in enumerate(self.evictions) for _ in evicted],
            evicted_request=[i for evicted in self.evictions for i, _ in evicted],
            evicted_to_host=[to_host for evicted in self.evictions for _, to_host in evicted],
            restored_batch=[j for j, returned in enumerate(self.returns) for _ in returned],
            restored_request=[i for returned in self.returns for i in returned],
        )

    def restate(self) -> None:
        """State the memory and the times that the decisions imply, so that only the decisions are judged."""
        requests, cost = self.instance.requests, self.instance.cost
        kv, generated, decoding = ([0] * (len(requests) + 1) for _ in range(3))
        host: dict[int, tuple[int, int]] = {}
        clock = 0
        for j, entries in enumerate(self.batches):
            moved = 0
            for i, to_host in self.evictions[j]:
                if to_host:
                    host[i] = (kv[i], decoding[i])
                    moved += self.instance.limits.blocks_of(kv[i])
                kv[i], decoding[i] = 0, False
            for i in self.returns[j]:
                kv[i], decoding[i] = host.pop(i, (0, False))
                moved += self.instance.limits.blocks_of(kv[i])
            clock += -(-moved * cost.swap_block.numerator // cost.swap_block.denominator)
            chunks, contexts, generating = [], [], 0
            for entry in entries:
                i, c, _ = entry
                known = requests[i].prompt_tokens + generated[i]
                if decoding[i]:
                    contexts.append(kv[i])
                else:
                    chunks.append((kv[i], c))
                kv[i] += c
                entry[2] = kv[i]
                decoding[i] = kv[i] == known
                generating += decoding[i]
                generated[i] += decoding[i]
            self.start_ns[j] = max([clock, *(requests[entry[0]].arrival_ns for entry in entries)])
            clock = self.start_ns[j] + naive_duration(cost, chunks, contexts, generating)
            self.end_ns[j] = clock

    def somewhere(self, rng: random.Random) -> tuple[int, int]:
        """Batch and place in it of a random entry."""
        j = rng.choice([j for j, entries in enumerate(self.batches) if entries])
        return j, rng.randrange(len(self.batches[j]))


def drop_entry(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    del draft.batches[j][k]


def duplicate_entry(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    target = rng.choice([j, rng.randrange(len(draft.batches))])
    draft.batches[target].append(list(draft.batches[j][k]))


def move_entry(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    draft.batches[rng.randrange(len(draft.batches))].append(draft.batches[j].pop(k))


def change_tokens(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    draft.batches[j][k][1] += rng.choice([1, -1])


def shift_token(draft: Draft, rng: random.Random) -> None:
    """Take a token from one entry and give it to the next of the same request."""
    j, k = draft.somewhere(rng)
    i = draft.batches[j][k][0]
    later = [entry for entries in draft.batches[j + 1 :] for entry in entries if entry[0] == i]
    if later:
        amount = rng.choice([1, -1])
        draft.batches[j][k][1] -= amount
        later[0][1] += amount


def change_memory(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    draft.batches[j][k][2] += rng.choice([1, -1])


def change_request(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    draft.batches[j][k][0] = rng.randrange(len(draft.instance.requests))


def swap_batches(draft: Draft, rng: random.Random) -> None:
    j, k = (rng.randrange(len(draft.batches)) for _ in range(2))
    for column in rng.sample([draft.batches, draft.evictions, draft.returns], rng.choice([1, 2, 3])):
        column[j], column[k] = column[k], column[j]


def reorder_batch(draft: Draft, rng: random.Random) -> None:
    rng.shuffle(draft.batches[draft.somewhere(rng)[0]])


def split_batch(draft: Draft, rng: random.Random) -> None:
    j, k = draft.somewhere(rng)
    draft.batches[j : j + 1] = [draft.batches[j][:k], draft.batches[j][k:]]
    draft.evictions.insert(j + 1, [])
    draft.returns.insert(j + 1, [])
    draft.start_ns.insert(j + 1, draft.end_ns[j])
    draft.end_ns.insert(j + 1, draft.end_ns[j])


def merge_batches(draft: Draft, rng: random.Random) -> None:
    if len(draft.batches) > 1:
        j = rng.randrange(len(draft.batches) - 1)
        draft.batches[j] += draft.batches.pop(j + 1)
        draft.evictions[j] += draft.evictions.pop(j + 1)
        draft.returns[j] += draft.returns.pop(j + 1)
        del draft.start_ns[j + 1], draft.end_ns[j]


def append_batch(draft: Draft, rng: random.Random) -> None:
    draft.batches.append([[rng.randrange(len(draft.instance.requests)), 1, 1]])
    draft.evictions.append([])
    draft.returns.append([])
    draft.start_ns.append(draft.end_ns[-1])
    draft.end_ns.append(draft.end_ns[-1] + 1)


def shift_start(draft: Draft, rng: random.Random) -> None:
    j, amount = rng.randrange(len(draft.batches)), rng.choice([1, -1])
    draft.start_ns[j] += amount
    if rng.random() < 0.5:
        draft.end_ns[j] += amount


def shift_all(draft: Draft, rng: random.Random) -> None:
    """Run everything from some batch on earlier or later."""
    amount = rng.choice([1, -1])
    for j in range(rng.randrange(len(draft.batches)), len(draft.batches)):
        draft.start_ns[j] += amount
        draft.end_ns[j] += amount


def shorten_duration(draft: Draft, rng: random.Random) -> None:
    draft.end_ns[rng.randrange(len(draft.batches))] -= 1


def evict_somebody(draft: Draft, rng: random.Random) -> None:
    evicted = (rng.randrange(len(draft.instance.requests)), rng.random() < 0.5)
    draft.evictions[rng.randrange(len(draft.batches))].append(evicted)


def forget_eviction(draft: Draft, rng: random.Random) -> None:
    places = [j for j, evicted in enumerate(draft.evictions) if evicted]
    if places:
        draft.evictions[rng.choice(places)].pop()


def redirect_eviction(draft: Draft, rng: random.Random) -> None:
    """Drop what moved to host memory, or move what was dropped."""
    places = [j for j, evicted in enumerate(draft.evictions) if evicted]
    if places:
        evicted = draft.evictions[rng.choice(places)]
        i, to_host = evicted.pop()
        evicted.append((i, not to_host))


def restore_somebody(draft: Draft, rng: random.Random) -> None:
    draft.returns[rng.randrange(len(draft.batches))].append(rng.randrange(len(draft.instance.requests)))


def move_restoration(draft: Draft, rng: random.Random) -> None:
    """Bring a request back from host memory in another batch, or never."""
    places = [j for j, returned in enumerate(draft.returns) if returned]
    if places:
        i = draft.returns[rng.choice(places)].pop()
        if rng.random() < 0.7:
            draft.returns[rng.randrange(len(draft.batches))].append(i)


def tighten_limit(draft: Draft, rng: random.Random) -> None:
    names = ["kv_blocks", "block_tokens", "max_batch_tokens", "max_batch_requests", "host_kv_blocks"]
    name = rng.choice(names)
    value = max(name != "host_kv_blocks", getattr(draft.instance.limits, name) + rng.choice([-1, 1, -2]))
    draft.instance = with_limits(draft.instance, **{name: value})


def turn_switch(draft: Draft, rng: random.Random) -> None:
    switches = draft.instance.switches
    name = rng.choice(["chunked_prefill", "hybrid_batches", "holding", "reservation", "preemption"])
    value: Any = not getattr(switches, name)
    if name == "preemption":
        value = rng.choice(list(Preemption))
    draft.instance = replace(draft.instance, switches=replace(switches, **{name: value}))


def change_request_size(draft: Draft, rng: random.Random) -> None:
    requests = list(draft.instance.requests)
    i = rng.randrange(len(requests))
    name = rng.choice(["prompt_tokens", "output_tokens", "arrival_ns"])
    requests[i] = replace(requests[i], **{name: max(1, getattr(requests[i], name) + rng.choice([-1, 1]))})
    draft.instance = replace(draft.instance, requests=tuple(requests))


MUTATIONS: list[Callable[[Draft, random.Random], None]] = [
    drop_entry, duplicate_entry, move_entry, change_tokens, shift_token, change_memory, change_request,
    swap_batches, reorder_batch, split_batch, merge_batches, append_batch, shift_start, shift_all,
    shorten_duration, evict_somebody, forget_eviction, redirect_eviction, restore_somebody, move_restoration,
    tighten_limit, turn_switch, change_request_size,
]  # fmt: skip

ALWAYS_WRONG = (drop_entry, change_tokens, change_memory, shorten_duration)
"""Whatever these hit, the schedule is broken unless its memory and times are stated anew."""
