"""What each request is doing at what time: it queues, prefills, decodes, waits after a preemption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.referee.history import History


class Phase(StrEnum):
    """What a request is doing."""

    QUEUED = "queued"
    """From its arrival to the start of its first batch."""
    PREFILL = "prefill"
    """From its first batch to its first token."""
    DECODE = "decode"
    """From the token of a prefill to the last token, or to an eviction."""
    PREEMPTED = "preempted"
    """From an eviction that drops its KV cache to the start of its next batch."""
    SWAPPED = "swapped"
    """From an eviction to host memory to the start of its next batch."""
    REFILL = "refill"
    """The prefill of a request whose KV cache was dropped before."""


class Span(NamedTuple):
    """One phase of a request. Times in ns; batches that processed the request, and their tokens of it."""

    phase: Phase
    start_ns: int
    end_ns: int
    num_batches: int = 0
    tokens: int = 0


class _Stretch(NamedTuple):
    """Batches of a request in one phase, without an eviction between them."""

    decodes: bool
    refills: bool
    opens: bool
    """It is the first after the arrival or an eviction."""
    to_host: bool
    """It ends by an eviction to host memory."""
    start_ns: int
    end_ns: int
    num_batches: int
    tokens: int


def request_spans(history: History) -> Iterator[list[Span]]:
    """Phases of every request in the order of the instance; they follow each other without a gap.

    The first starts at the arrival, the last ends at the last token. Phases of no length are left out.
    """
    requests, stretches = _stretches(history)
    bounds = np.searchsorted(requests, np.arange(len(history.instance.requests) + 1)).tolist()
    for i, request in enumerate(history.instance.requests):
        spans = _spans(request.arrival_ns, stretches[bounds[i] : bounds[i + 1]])
        yield [span for span in spans if span.end_ns > span.start_ns]


def _spans(arrival_ns: int, stretches: Iterable[_Stretch]) -> Iterator[Span]:
    since, waits = arrival_ns, Phase.QUEUED
    for stretch in stretches:
        if stretch.opens:
            yield Span(waits, since, stretch.start_ns)
            since = stretch.start_ns
        yield Span(_phase(stretch), since, stretch.end_ns, stretch.num_batches, stretch.tokens)
        since = stretch.end_ns
        waits = Phase.SWAPPED if stretch.to_host else Phase.PREEMPTED


def _phase(stretch: _Stretch) -> Phase:
    if stretch.decodes:
        return Phase.DECODE
    return Phase.REFILL if stretch.refills else Phase.PREFILL


def _stretches(history: History) -> tuple[IntArray, list[_Stretch]]:
    """Requests of all stretches, rising, and the stretches; found in columns, for entries are many."""
    schedule = history.schedule
    order = np.argsort(schedule.request, kind="stable")
    request, batch, decodes = schedule.request[order], schedule.batch_of_entry[order], history.decodes[order]
    # One rising number for each entry, in which the place of an eviction can be looked up.
    entry_key = request * schedule.num_batches + batch
    by_request = np.lexsort((schedule.evicted_batch, schedule.evicted_request))
    evicted_batch, to_host = schedule.evicted_batch[by_request], schedule.evicted_to_host[by_request] > 0
    evicted_key = schedule.evicted_request[by_request] * schedule.num_batches + evicted_batch
    resumes = np.searchsorted(entry_key, evicted_key)

    opens = np.diff(request, prepend=-1) != 0
    opens[resumes[resumes < len(opens)]] = True
    begins = opens.copy()
    begins[1:] |= decodes[1:] != decodes[:-1]
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(request)) - 1

    end_ns = schedule.end_ns[batch[last]]
    ended = np.searchsorted(first, resumes) - 1
    end_ns[ended] = schedule.start_ns[evicted_batch]
    goes_to_host = np.zeros(len(first), dtype=bool)
    goes_to_host[ended] = to_host
    columns = (
        decodes[first],
        _dropped_before(evicted_key[~to_host], entry_key[first], request[first] * schedule.num_batches),
        opens[first],
        goes_to_host,
        schedule.start_ns[batch[first]],
        end_ns,
        last - first + 1,
        np.add.reduceat(schedule.tokens[order], first),
    )
    return request[first], list(map(_Stretch, *(column.tolist() for column in columns)))


def _dropped_before(dropped_key: IntArray, here: IntArray, zero: IntArray) -> npt.NDArray[np.bool_]:
    """Whether a KV cache was dropped between a request's first possible key and the one here."""
    later = np.searchsorted(dropped_key, here, side="right") > np.searchsorted(dropped_key, zero)
    return np.asarray(later, dtype=bool)
