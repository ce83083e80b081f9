"""Which limit keeps a batch from doing more, batch by batch, whatever rules a policy has of its own.

A request could go on in a batch if it has arrived and is not finished, and either is left out of the batch or
is in it with a chunk that leaves some of its known tokens. A limit binds where it keeps every such request
from going on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.referee.history import History
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.walk import BoolArray

LIMITS = ("memory", "tokens", "requests")


@dataclass(frozen=True, kw_only=True, eq=False)
class Binding:
    """Which limits bind in each batch, shape (num_batches,) each.

    Attributes
    ----------
    waits
        Some request could go on.
    memory
        Some request could go on, and fewer KV blocks are free than any of them needs for as many of its known
        tokens as the budget leaves it; for all that it must hold at once where it may not be in chunks, under
        reservation, or with its KV cache in host memory.
    tokens
        Some request could go on, and fewer tokens of the budget C are left than any of them needs: one, or
        all known ones where a prefill may not be in chunks.
    requests
        Some request is left out, and the batch has R requests.
    duration_ns
        How long the batch takes.
    """

    waits: BoolArray
    memory: BoolArray
    tokens: BoolArray
    requests: BoolArray
    duration_ns: IntArray

    @property
    def nothing(self) -> BoolArray:
        """Some request could go on and no limit binds: a rule of the policy, or a switch, leaves it out."""
        free: BoolArray = self.waits & ~(self.memory | self.tokens | self.requests)
        return free

    @property
    def columns(self) -> dict[str, BoolArray]:
        """Each limit with the batches in which it binds, and `nothing`."""
        return {**{name: getattr(self, name) for name in LIMITS}, "nothing": self.nothing}

    def shares(self) -> dict[str, float]:
        """Share of the time of all batches in which each limit binds; several may bind at once."""
        total = max(int(self.duration_ns.sum()), 1)
        return {name: int(self.duration_ns[binds].sum()) / total for name, binds in self.columns.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Absences:
    """Times in which a request that has arrived holds no KV cache on the device, shape (num_absences,) each.

    Attributes
    ----------
    first, end
        First batch, and the batch after the last.
    tokens
        What it must process to hold its KV cache again; of one in host memory what it holds with one more.
    on_host
        Its KV cache is in host memory.
    peak
        Most tokens that it ever holds.
    """

    first: IntArray
    end: IntArray
    tokens: IntArray
    on_host: BoolArray
    peak: IntArray


def binding_limits(history: History) -> Binding:
    """Which limits bind in each batch of a complete schedule that breaks no rule."""
    schedule, limits, switches = history.schedule, history.instance.limits, history.instance.switches
    sizes = np.diff(schedule.first_entry)
    left = limits.max_batch_tokens - history.features.tokens
    absences = _absences(history)
    batch, kv_tokens, missing = _unfinished_residents(history)
    resident = np.bincount(batch, minlength=len(sizes)) > 0
    chunks = switches.chunked_prefill
    fresh = _least(absences, absences.tokens, ~absences.on_host, len(sizes))
    absent = _least(absences, absences.tokens, np.ones(len(absences.first), dtype=bool), len(sizes)) > 0
    needed = np.where(resident | (fresh == 0) | chunks, 1, fresh)
    peak = -(-absences.peak // limits.block_tokens)
    if switches.reservation:
        blocks = _or_many(_least(absences, peak, np.ones(len(peak), dtype=bool), len(sizes)))
        blocks[resident] = 0
    else:
        held = -(-absences.tokens // limits.block_tokens)
        room = np.maximum(left, 1)
        taken = np.minimum(fresh, room) if chunks else fresh
        blocks = np.minimum(
            _or_many(-(-taken // limits.block_tokens)),
            _or_many(_least(absences, held, absences.on_host, len(sizes))),
        )
        after = kv_tokens + np.minimum(missing, room[batch])
        np.minimum.at(blocks, batch, -(-after // limits.block_tokens) - -(-kv_tokens // limits.block_tokens))
    waits = resident | absent
    partial = history.per_batch((~history.decodes & ~history.generates).astype(np.int64))
    left_out = absent | (np.bincount(batch, minlength=len(sizes)) > partial)
    return Binding(
        waits=waits,
        memory=waits & (limits.kv_blocks - occupied_blocks(history) < blocks),
        tokens=waits & (left < needed),
        requests=left_out & (sizes == limits.max_batch_requests),
        duration_ns=schedule.end_ns - schedule.start_ns,
    )


def _or_many(blocks: IntArray) -> IntArray:
    """A need where there is one; else more than any device has."""
    return np.where(blocks > 0, blocks, INT64_SAFE)


def _absences(history: History) -> _Absences:
    """From every arrival, and from every eviction, to the batch before the request is on the device."""
    schedule, columns = history.schedule, history.instance.columns
    batches, count = schedule.num_batches, len(columns)
    keys = schedule.request * batches + schedule.batch_of_entry
    order = np.argsort(keys, kind="stable")
    arrived = np.minimum(np.searchsorted(schedule.start_ns, columns.arrival_ns), batches)
    request = np.concatenate((np.arange(count), schedule.evicted_request))
    first = np.concatenate((arrived, schedule.evicted_batch))
    entry = order[np.searchsorted(keys[order], request * batches + first)]
    restored = np.append(np.sort(schedule.restored_request * batches + schedule.restored_batch), INT64_SAFE)
    back = restored[np.searchsorted(restored, request * batches + first)] - request * batches
    on_host = np.concatenate((np.zeros(count, dtype=bool), schedule.evicted_to_host == 1))
    tokens = columns.prompt_tokens[request] + history.generated_before[entry]
    tokens[on_host] = history.kv_evicted[on_host[count:]] + 1
    return _Absences(
        first=first,
        end=np.minimum(schedule.batch_of_entry[entry], back),
        tokens=tokens,
        on_host=on_host,
        peak=columns.peak_kv_tokens[request],
    )


def _unfinished_residents(history: History) -> tuple[IntArray, IntArray, IntArray]:
    """Batch, KV entries and missing tokens of residents that could go on.

    They are left out of the batch, or in it with a chunk that generates nothing. A request stays from an
    entry, or from its return from host memory, to its next entry, unless it is evicted before.
    """
    schedule, columns = history.schedule, history.instance.columns
    batches, entries = schedule.num_batches, schedule.batch_of_entry
    partial = ~history.decodes & ~history.generates
    request = np.concatenate((schedule.request, schedule.restored_request))
    # From the entry on where its chunk is a part, else from the batch after it on.
    since = np.concatenate((np.where(partial, entries, entries + 1), schedule.restored_batch))
    begin = np.concatenate((entries + 1, schedule.restored_batch))
    kv_tokens = np.concatenate((history.kv_after, history.kv_restored))
    keys = schedule.request * batches + entries
    order = np.argsort(keys, kind="stable")
    known = (columns.prompt_tokens[schedule.request] + history.generated_before)[order]
    # The next entry tells what is known until then; a request that has none is finished.
    next_entry = np.searchsorted(keys[order], request * batches + begin)
    is_open = next_entry < np.searchsorted(keys[order], (request + 1) * batches)
    next_entry = np.minimum(next_entry, len(keys) - 1)
    evicted = np.sort(schedule.evicted_request * batches + schedule.evicted_batch)
    evicted = np.append(evicted, INT64_SAFE)
    leaves = evicted[np.searchsorted(evicted, request * batches + begin)] - request * batches
    length = (np.minimum(entries[order][next_entry], leaves) - since) * is_open
    stay = np.repeat(np.arange(len(request)), length)
    place = np.arange(len(stay)) - np.repeat(np.cumsum(length) - length, length)
    return since[stay] + place, kv_tokens[stay], (known[next_entry] - kv_tokens)[stay]


def _least(absences: _Absences, needs: IntArray, chosen: BoolArray, num_batches: int) -> IntArray:
    """Least need of the chosen absences that cover each batch, 0 where none does."""
    least = _sweep(absences.first[chosen], absences.end[chosen], needs[chosen], num_batches)
    return np.fromiter(least, dtype=np.int64, count=num_batches)


def _sweep(first: IntArray, end: IntArray, need: IntArray, num_batches: int) -> Iterator[int]:
    order = np.argsort(first, kind="stable")
    coming = list(zip(first[order].tolist(), end[order].tolist(), need[order].tolist(), strict=True))
    position = 0
    absent: list[tuple[int, int]] = []
    for batch in range(num_batches):
        while position < len(coming) and coming[position][0] <= batch:
            heappush(absent, (coming[position][2], coming[position][1]))
            position += 1
        while absent and absent[0][1] <= batch:
            heappop(absent)
        yield absent[0][0] if absent else 0
