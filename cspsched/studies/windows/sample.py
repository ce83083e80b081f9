"""Windows: a few requests of a policy's run at a random moment, the rest of the machine as a background."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request
from cspsched.referee.history import History
from cspsched.studies.windows.background import Background


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowShape:
    """How large windows are.

    Attributes
    ----------
    size
        Most requests of a window.
    output_tokens
        Most tokens that each is to generate in it.
    ahead
        Batches of the policy's run in which arrivals still belong to the window.
    """

    size: int = 5
    output_tokens: int = 3
    ahead: int = 10

    def __post_init__(self) -> None:
        for name in ("size", "output_tokens", "ahead"):
            if getattr(self, name) < 1:
                raise UsageError(f"windows: {name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSample:
    """Which windows are drawn: how large, how many, by which seed."""

    shape: WindowShape = WindowShape()
    num: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A small instance with the state of a run at a batch boundary.

    Attributes
    ----------
    batch, start_ns
        Batch of the run that would be next, and when it starts; the window's clock is 0 then.
    instance
        Its requests: residents in the order of their last batch, then who waits, then who arrives. None if
        the background leaves them no room.
    num_residents, num_waiting, num_arriving
        How many of each.
    background
        Residents that are not in the window.
    """

    batch: int
    start_ns: int
    instance: Instance | None
    num_residents: int
    num_waiting: int
    num_arriving: int
    background: Background


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """State of a run at the boundary before a batch; requests by their position in the instance.

    Attributes
    ----------
    kv, generated
        Shape (num_requests,): KV entries on the device, and tokens generated.
    residents
        Unfinished requests with KV entries, in the order of their last batches.
    waiting, arriving
        Unfinished requests without KV entries that have arrived, and those that arrive soon, by arrival.
    """

    kv: IntArray
    generated: IntArray
    residents: IntArray
    waiting: IntArray
    arriving: IntArray


def sample_windows(history: History, shape: WindowShape, *, num: int, seed: int) -> list[Window]:
    """Windows at random batches of a run, each batch as likely as any other.

    Who waits or arrives within `shape.ahead` batches comes in first, in order of arrival, with one place left
    to residents; random residents fill the window up. In it

    * a resident has one token to process, that which it generated last (amid its prefill: the rest of that),
      and decodes from there on; what it has on the device stays there;
    * who waits has its whole prompt to process, and what it had generated before an eviction;
    * everybody generates at most `shape.output_tokens` tokens;
    * the other residents are a background: they decode in every batch, and hold what they hold;
    * others who wait stay outside.

    Parameters
    ----------
    history
        Of a feasible schedule without swap and prefix cache.
    """
    if num < 1:
        raise UsageError(f"{num} windows, expected at least 1")
    rng = np.random.default_rng(seed)
    batches = rng.integers(history.schedule.num_batches, size=num)
    return [_window(history, int(batch), shape, rng) for batch in batches]


def moment_before(history: History, batch: int, ahead: int) -> Moment:
    """State of a run at the boundary before a batch, before what is decided there."""
    schedule, requests = history.schedule, history.instance.requests
    end = int(schedule.first_entry[batch])
    last = np.full(len(requests), -1, dtype=np.int64)
    # Of equal indices the last one is written.
    last[schedule.request[:end]] = np.arange(end)
    seen = last >= 0
    kv, generated = np.zeros((2, len(requests)), dtype=np.int64)
    kv[seen] = history.kv_after[last[seen]]
    generated[seen] = (history.generated_before + history.generates)[last[seen]]
    last_batch = np.searchsorted(schedule.first_entry, last, side="right") - 1
    earlier = schedule.evicted_batch < batch
    evicted = schedule.evicted_request[earlier]
    kv[evicted[schedule.evicted_batch[earlier] > last_batch[evicted]]] = 0
    arrivals = np.array([request.arrival_ns for request in requests], dtype=np.int64)
    unfinished = generated < np.array([request.output_tokens for request in requests])
    start_ns = int(schedule.start_ns[batch])
    soon_ns = int(schedule.end_ns[min(batch + ahead, schedule.num_batches) - 1])
    resident = np.flatnonzero(unfinished & (kv > 0))
    by_arrival = np.argsort(arrivals, kind="stable")
    waits = (unfinished & (kv == 0) & (arrivals <= start_ns))[by_arrival]
    arrives = ((arrivals > start_ns) & (arrivals <= soon_ns))[by_arrival]
    return Moment(
        kv=kv,
        generated=generated,
        residents=resident[np.argsort(last[resident])],
        waiting=by_arrival[waits],
        arriving=by_arrival[arrives],
    )


def _window(history: History, batch: int, shape: WindowShape, rng: np.random.Generator) -> Window:
    instance, start_ns = history.instance, int(history.schedule.start_ns[batch])
    moment = moment_before(history, batch, shape.ahead)
    places = shape.size - (1 if len(moment.residents) and shape.size > 1 else 0)
    waiting = moment.waiting[:places]
    arriving = moment.arriving[: places - len(waiting)]
    seats = min(shape.size - len(waiting) - len(arriving), len(moment.residents))
    chosen = np.sort(rng.permutation(len(moment.residents))[:seats])
    background = _background(instance, moment, np.delete(moment.residents, chosen))
    requests = [
        _part(instance.requests[i], int(moment.kv[i]), int(moment.generated[i]), start_ns, shape)
        for i in (*moment.residents[chosen], *waiting, *arriving)
    ]
    return Window(
        batch=batch,
        start_ns=start_ns,
        instance=_instance(instance, background, requests),
        num_residents=len(chosen),
        num_waiting=len(waiting),
        num_arriving=len(arriving),
        background=background,
    )


def _background(instance: Instance, moment: Moment, others: IntArray) -> Background:
    """The other residents; what those of the window have on the device is never free either."""
    blocks = -(-moment.kv[moment.residents] // instance.limits.block_tokens)
    return Background(
        num_decodes=len(others),
        context_tokens=int(moment.kv[others].sum()),
        held_blocks=int(blocks.sum()),
    )


def _part(request: Request, kv: int, generated: int, start_ns: int, shape: WindowShape) -> Request:
    """What is left of a request, at most so many output tokens."""
    return replace(
        request,
        arrival_ns=max(request.arrival_ns - start_ns, 0),
        prompt_tokens=request.prompt_tokens + generated - kv,
        output_tokens=min(request.output_tokens - generated, shape.output_tokens),
        prefix=(),
    )


def _instance(instance: Instance, background: Background, requests: list[Request]) -> Instance | None:
    if not background.leaves_room(instance.limits):
        return None
    window = replace(
        instance,
        requests=tuple(requests),
        limits=background.limits(instance.limits),
        cost=background.cost(instance.cost),
    )
    return None if any(map(window.rejection_of, requests)) else window
