"""Rules 1 to 3 followed along a schedule: entry by entry as the rules say, and the same in whole columns.

`walk_entries` is the rule. `walk_columns` is for long schedules: it guesses who generates, namely every entry
that brings its request beyond all the KV entries that it held before, and then holds the guess against the
rule at every entry. The rule determines who generates from first to last, so a guess that fits it everywhere
is what the rule says; where it does not fit, nothing is returned.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule

BoolArray = npt.NDArray[np.bool_]
Value = TypeVar("Value", np.int64, np.bool_)


class Walk(NamedTuple):
    """What a walk finds, as in `History`."""

    kv_before: IntArray
    generated_before: IntArray
    generates: BoolArray
    decodes: BoolArray
    kv_evicted: IntArray
    kv_restored: IntArray
    hit_carries: BoolArray
    on_host: BoolArray


def walk_entries(instance: Instance, schedule: Schedule) -> Walk:
    """The walk entry by entry; the schedule may break rules, and 1 to 3 are applied to whatever is there."""
    prompts = instance.columns.prompt_tokens.tolist()
    kv, generated, decoding = [0] * len(prompts), [0] * len(prompts), [False] * len(prompts)
    before: list[int] = []
    generated_before: list[int] = []
    generates: list[bool] = []
    decodes: list[bool] = []
    on_host: list[bool] = []
    host = [0] * len(prompts)
    decoding_on_host = [False] * len(prompts)
    kv_evicted = np.zeros(schedule.num_preemptions, dtype=np.int64)
    kv_restored = np.zeros(len(schedule.restored_batch), dtype=np.int64)
    hit_carries = np.zeros(len(schedule.hit_batch), dtype=bool)
    evictions = _by_batch(schedule.evicted_batch, schedule.evicted_request)
    restorations = _by_batch(schedule.restored_batch, schedule.restored_request)
    hits = _by_batch(schedule.hit_batch, schedule.hit_request)
    to_host, hit_tokens = schedule.evicted_to_host.tolist(), schedule.hit_tokens.tolist()
    request_column, token_column = schedule.request.tolist(), schedule.tokens.tolist()
    offsets = schedule.first_entry.tolist()
    for j in range(schedule.num_batches):
        for k, i in evictions.get(j, ()):
            kv_evicted[k] = kv[i]
            if to_host[k]:
                host[i], decoding_on_host[i] = kv[i], decoding[i]
            kv[i], decoding[i] = 0, False
        for k, i in restorations.get(j, ()):
            kv_restored[k] = kv[i] = host[i]
            decoding[i], host[i] = decoding_on_host[i], 0
        for k, i in hits.get(j, ()):
            hit_carries[k] = kv[i] > 0
            kv[i] = hit_tokens[k]
        for entry in range(offsets[j], offsets[j + 1]):
            i = request_column[entry]
            on_host.append(host[i] > 0)
            before.append(kv[i])
            generated_before.append(generated[i])
            decodes.append(decoding[i])
            kv[i] += token_column[entry]
            produces = kv[i] == prompts[i] + generated[i]
            generates.append(produces)
            decoding[i] = produces
            generated[i] += produces
    return Walk(
        kv_before=np.array(before, dtype=np.int64),
        generated_before=np.array(generated_before, dtype=np.int64),
        generates=np.array(generates, dtype=bool),
        decodes=np.array(decodes, dtype=bool),
        kv_evicted=kv_evicted,
        kv_restored=kv_restored,
        hit_carries=hit_carries,
        on_host=np.array(on_host, dtype=bool),
    )


def _by_batch(batches: IntArray, requests: IntArray) -> dict[int, list[tuple[int, int]]]:
    """(position in the columns, request) of the events at the boundary before each batch."""
    grouped: dict[int, list[tuple[int, int]]] = {}
    for k, (j, i) in enumerate(zip(batches.tolist(), requests.tolist(), strict=True)):
        grouped.setdefault(j, []).append((k, i))
    return grouped


def walk_columns(instance: Instance, schedule: Schedule) -> Walk | None:
    """The walk in whole columns; None with swap or prefix cache, or if the schedule breaks rule 1 or 2."""
    if len(schedule.restored_batch) or len(schedule.hit_batch) or np.any(schedule.evicted_to_host):
        return None
    prompts = instance.columns.prompt_tokens
    order = _by_request(schedule.request, len(prompts))
    request, tokens = schedule.request[order], schedule.tokens[order]
    first = _differs_from_last(request)
    evicted_at, comes_first = _eviction_places(schedule, order, request)
    broken = np.zeros(len(request), dtype=bool)
    ahead = np.minimum(evicted_at, len(request) - 1)
    broken[ahead[(evicted_at == ahead) & (request[ahead] == schedule.evicted_request)]] = True
    kv_after = _running_sum(tokens, first | broken)
    most_before = _most_before(kv_after, first)
    if most_before is None:
        return None
    generates = (kv_after >= prompts[request]) & (kv_after > most_before)
    ones = generates.astype(np.int64)
    generated_before = _running_sum(ones, first) - ones
    if not np.array_equal(generates, kv_after == prompts[request] + generated_before):
        return None
    decodes = np.concatenate((np.zeros(1, dtype=bool), generates))[:-1]
    decodes &= ~first & ~broken
    return Walk(
        kv_before=_put_back(kv_after - tokens, order),
        generated_before=_put_back(generated_before, order),
        generates=_put_back(generates, order),
        decodes=_put_back(decodes, order),
        kv_evicted=_lost(schedule, evicted_at, comes_first, request, kv_after),
        kv_restored=np.zeros(0, dtype=np.int64),
        hit_carries=np.zeros(0, dtype=bool),
        on_host=np.zeros(len(request), dtype=bool),
    )


def _by_request(request: IntArray, num_requests: int) -> npt.NDArray[np.intp]:
    """Order of the entries by request, each request's in order of the batches: 16 bits at a time."""
    order = np.argsort((request & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(16, max(num_requests - 1, 1).bit_length(), 16):
        digit = (request[order] >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit, kind="stable")]
    return order


def _differs_from_last(request: IntArray) -> BoolArray:
    """The entry is the first of its request."""
    first = np.ones(len(request), dtype=bool)
    first[1:] = request[1:] != request[:-1]
    return first


def _eviction_places(
    schedule: Schedule, order: npt.NDArray[np.intp], request: IntArray
) -> tuple[npt.NDArray[np.intp], BoolArray]:
    """First entry of its request from each eviction on, in the order by request.

    Where there is none, the first of a later request or the number of entries.

    And whether it is the first there of its request; a later one finds nothing.
    """
    width = schedule.num_batches + 1
    evicted = schedule.evicted_request
    if not len(evicted):
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=bool)
    keys = request * width + schedule.batch_of_entry[order]
    place = np.searchsorted(keys, evicted * width + schedule.evicted_batch)
    by_time = np.lexsort((schedule.evicted_batch, place, evicted))
    comes_first = np.ones(len(evicted), dtype=bool)
    same = (np.diff(evicted[by_time]) == 0) & (np.diff(place[by_time]) == 0)
    comes_first[by_time[1:][same]] = False
    return place, comes_first


def _lost(
    schedule: Schedule,
    place: npt.NDArray[np.intp],
    comes_first: BoolArray,
    request: IntArray,
    kv_after: IntArray,
) -> IntArray:
    """KV entries that each evicted request held."""
    evicted = schedule.evicted_request
    if not len(evicted):
        return np.zeros(0, dtype=np.int64)
    before = np.maximum(place - 1, 0)
    is_own = (place > 0) & (request[before] == evicted)
    held: IntArray = np.where(is_own, kv_after[before], 0) * comes_first
    return held


def _running_sum(values: IntArray, begins: BoolArray) -> IntArray:
    """Sum of the values since the last beginning."""
    total = np.cumsum(values)
    origin = np.where(begins, total - values, 0)
    origin = origin[np.maximum.accumulate(np.where(begins, np.arange(len(values)), 0))]
    running: IntArray = total - origin
    return running


def _most_before(kv_after: IntArray, first: BoolArray) -> IntArray | None:
    """Most KV entries that the request had after any earlier batch; None if the numbers are too large."""
    if not len(kv_after):
        return kv_after
    step = int(kv_after.max()) + 1
    rank = np.cumsum(first)
    if step * int(rank[-1] + 1) >= INT64_SAFE:
        return None
    level = rank * step
    most = np.maximum.accumulate(kv_after + level)
    before: IntArray = np.where(first, 0, np.concatenate((most[:1], most[:-1])) - level)
    return before


def _put_back(column: npt.NDArray[Value], order: npt.NDArray[np.intp]) -> npt.NDArray[Value]:
    """A column in the order of the schedule."""
    restored = np.empty_like(column)
    restored[order] = column
    return restored
