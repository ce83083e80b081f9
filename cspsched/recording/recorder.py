"""A recorder around a scheduler of vLLM V1: what it decides goes to a log, what it returns is left alone.

Source of the interface that is used (vllm/v1/core/sched, 0.19 to 0.33): `schedule` returns an output with
`num_scheduled_tokens` (in the scheduler's order), `scheduled_new_reqs` and `scheduled_cached_reqs`;
`_preempt_request` is called for each victim; `update_from_output` appends tokens and frees what has finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from cspsched.errors import UsageError
from cspsched.recording.writer import LogWriter

DIGITS = 9
"""Times are written in seconds with nanoseconds."""
SCHEDULER_KEYS = (
    "max_num_batched_tokens", "max_num_seqs", "max_num_active_seqs", "enable_chunked_prefill",
    "long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "watermark", "policy",
    "async_scheduling", "scheduler_reserve_full_isl", "prefill_schedule_interval",
)  # fmt: skip
CACHE_KEYS = {"num_gpu_blocks": "num_kv_blocks", "enable_prefix_caching": "enable_prefix_caching"}
OWN_KEYS = ("block_size", "max_model_len", "num_lookahead_tokens")
WAITING_QUEUES = ("waiting", "skipped_waiting")
# A version of the engine whose objects are built otherwise must end the recording, not the serving.
UNEXPECTED = (AttributeError, LookupError, TypeError, ValueError)


class Recorder:
    """Lines of one scheduler's log.

    Parameters
    ----------
    scheduler
        The scheduler that is observed, fully built.
    writer
        Where the lines go.
    clock
        Seconds, on the clock of the requests' `arrival_time`.
    """

    def __init__(self, scheduler: Any, writer: LogWriter, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._writer = writer
        self._clock = clock
        self._origin_s = clock()
        self._last_end_s = 0.0
        self._num_scheduled = 0
        self._preempted: list[list[Any]] = []
        self._in_flight: dict[int, tuple[int, float]] = {}
        self._guarded(self._write_meta)

    def preempt(self, request: Any) -> None:
        """Note a victim before its state is dropped."""
        self._guarded(self._note_preemption, request)

    def scheduled(self, output: Any, decided_s: float) -> None:
        """Write what `schedule` returned; `decided_s` is when it was called."""
        self._guarded(self._write_scheduled, output, decided_s)

    def before_update(self, output: Any) -> dict[str, tuple[Any, int]]:
        """Requests of a batch with their numbers of output tokens, before the new ones are appended."""
        found: dict[str, tuple[Any, int]] | None = self._guarded(self._lengths, output)
        return found or {}

    def updated(self, output: Any, before: dict[str, tuple[Any, int]]) -> None:
        """Write what came of a batch."""
        self._guarded(self._write_updated, output, before)

    def close(self) -> None:
        """End the log; what is in flight stays without an output."""
        self._writer.close()

    def now_s(self) -> float:
        """Seconds since the recorder was made."""
        return self._clock() - self._origin_s

    def _guarded(self, act: Callable[..., Any], *arguments: Any) -> Any:
        if not self._writer.is_open:
            return None
        try:
            return act(*arguments)
        except UNEXPECTED as error:
            self._writer.stop(f"the engine is built otherwise than known ({type(error).__name__}: {error})")
            return None

    def _write_meta(self) -> None:
        scheduler = self._scheduler
        config = _present(scheduler.scheduler_config, {key: key for key in SCHEDULER_KEYS})
        config |= _present(scheduler.cache_config, CACHE_KEYS)
        config |= _present(scheduler, {key: key for key in OWN_KEYS})
        meta = {"vllm": _version(), "scheduler": _base_name(scheduler), "config": config}
        self._writer.write({"meta": {**meta, "started_at": self._origin_s}})

    def _note_preemption(self, request: Any) -> None:
        self._preempted.append(
            [request.request_id, int(request.num_computed_tokens), int(request.num_output_tokens)]
        )

    def _write_scheduled(self, output: Any, decided_s: float) -> None:
        tokens = output.num_scheduled_tokens
        if not tokens and not self._preempted:
            return
        started, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        before = {one.req_id: one.num_computed_tokens for one in started}
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        rows = [[name, int(count), int(before[name])] for name, count in tokens.items()]
        number = self._num_scheduled
        self._num_scheduled += 1
        scheduler = self._scheduler
        line = {
            "it": number,
            "sched": rows,
            "preempted": self._preempted,
            "tokens": sum(row[1] for row in rows),
            "kv_tokens": sum(row[1] + row[2] for row in rows),
            "running": len(scheduler.running),
            "waiting": sum(len(getattr(scheduler, name, ())) for name in WAITING_QUEUES),
            "kv_used": _used_blocks(scheduler),
            "t_sched": round(decided_s, DIGITS),
            "new": [self._facts(scheduler.requests[one.req_id]) for one in started],
        }
        self._preempted = []
        if tokens:
            self._in_flight[id(output)] = (number, self.now_s())
        else:
            # Nothing will come back for an empty batch.
            line |= {"t_start": line["t_sched"], "t_end": line["t_sched"], "emitted": [], "finished": []}
        self._writer.write(line)

    def _facts(self, request: Any) -> dict[str, Any]:
        """What an import needs of a request: it knows no other trace."""
        return {
            "request_id": request.request_id,
            "arrival": round(request.arrival_time - self._origin_s, DIGITS),
            "prompt_tokens": int(request.num_prompt_tokens),
            "max_tokens": int(request.max_tokens),
            "priority": int(request.priority),
        }

    def _lengths(self, output: Any) -> dict[str, tuple[Any, int]]:
        requests = self._scheduler.requests
        known = ((name, requests.get(name)) for name in output.num_scheduled_tokens)
        return {name: (request, request.num_output_tokens) for name, request in known if request is not None}

    def _write_updated(self, output: Any, before: dict[str, tuple[Any, int]]) -> None:
        flight = self._in_flight.pop(id(output), None)
        if flight is None:
            return
        number, dispatched_s = flight
        end_s = self.now_s()
        emitted, finished = [], []
        for name, (request, length) in before.items():
            emitted += [name] * (request.num_output_tokens - length)
            if self._scheduler.requests.get(name) is not request or request.is_finished():
                finished.append(name)
        self._writer.write(
            {
                "it": number,
                # A batch that was decided while another ran starts when that one ends.
                "t_start": round(max(dispatched_s, self._last_end_s), DIGITS),
                "t_end": round(end_s, DIGITS),
                "emitted": emitted,
                "finished": finished,
                "kv_used_after": _used_blocks(self._scheduler),
            }
        )
        self._last_end_s = end_s


def recording_class(
    base: type, path_of: Callable[[], str | None], clock: Callable[[], float] = time.time
) -> type:
    """Subclass of a scheduler that writes what it does and does nothing else.

    Parameters
    ----------
    base
        A scheduler class of vLLM V1, or one with the same interface.
    path_of
        Gives the file of the log when a scheduler is made; None records nothing.
    clock
        Seconds, on the clock of the requests' `arrival_time`.

    Raises
    ------
    UsageError
        If the base class lacks the method that preempts a request, without which preemptions would be missed.
    """
    if not hasattr(base, "_preempt_request"):
        raise UsageError(f"{base.__name__} has no _preempt_request; the recorder knows vLLM 0.19 to 0.33")
    parent: Any = base

    class Recording(parent):  # type: ignore[misc]  # its base is only known at run time
        """The base class, observed."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._cspsched = Recorder(self, LogWriter(path_of()), clock)

        def schedule(self, *arguments: Any, **options: Any) -> Any:
            """What the base class schedules."""
            decided_s = self._cspsched.now_s()
            output = super().schedule(*arguments, **options)
            self._cspsched.scheduled(output, decided_s)
            return output

        def _preempt_request(self, request: Any, *arguments: Any, **options: Any) -> Any:
            self._cspsched.preempt(request)
            return super()._preempt_request(request, *arguments, **options)

        def update_from_output(self, output: Any, *arguments: Any, **options: Any) -> Any:
            """What the base class makes of a batch's output."""
            before = self._cspsched.before_update(output)
            result = super().update_from_output(output, *arguments, **options)
            self._cspsched.updated(output, before)
            return result

        def shutdown(self, *arguments: Any, **options: Any) -> Any:
            """What the base class does in the end; the log ends with it."""
            self._cspsched.close()
            return super().shutdown(*arguments, **options)

    return Recording


def _present(source: Any, keys: dict[str, str]) -> dict[str, Any]:
    """Attributes that are there, by our names; what is no plain value is written as text."""
    found = {ours: getattr(source, theirs) for theirs, ours in keys.items() if hasattr(source, theirs)}
    plain = (bool, int, float, str, type(None))
    return {key: value if type(value) in plain else str(value) for key, value in found.items()}


def _used_blocks(scheduler: Any) -> int:
    """KV blocks in use; the pool's null block is none of them."""
    pool = scheduler.kv_cache_manager.block_pool
    return int(pool.num_gpu_blocks) - 1 - int(pool.get_num_free_blocks())


def _base_name(scheduler: Any) -> str:
    return str(type(scheduler).__mro__[1].__name__)


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vllm")
    except PackageNotFoundError:
        return "unknown"
