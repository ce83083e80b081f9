"""A run in the trace-event format, which ui.perfetto.dev opens.

Format: Trace Event Format (Chromium, JSON object format). Times are microseconds there; their three decimals
keep every nanosecond. Events are written one by one as they are made, so that a long run needs no more
memory than a short one. Nothing follows the last brace, not even a newline: a reader that takes the file in
pieces refuses it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.cost import IntArray
from cspsched.report.phases import Span, request_spans
from cspsched.report.run import Run

PERFETTO_SCHEMA = "cspsched/perfetto/1"
SUFFIXES = (".json", ".json.gz")
REPLICA, BATCHES, PREEMPTIONS = 1, 1, 2
"""Process of the replica and its threads. No two threads share a number, whatever their process."""
REQUESTS, FIRST_REQUEST = 3, 4
"""Process of the requests and the thread of the first of them by arrival."""
MOST_REQUEST_IDS = 16
ROWS_AT_ONCE = 4096
COMPRESSION = 6

_text = json.JSONEncoder(separators=(",", ":")).encode


def require_perfetto_name(path: Path) -> None:
    """Refuse a file name whose suffix does not say whether the trace is compressed.

    Raises
    ------
    UsageError
        If it ends neither in .json nor in .json.gz.
    """
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path} ends neither in .json nor in .json.gz; name the Perfetto trace so")


def write_perfetto(run: Run, path: Path) -> None:
    """Write a run as a trace, compressed if the name ends in .gz; the same run gives the same bytes.

    Raises
    ------
    UsageError
        If the name ends neither in .json nor in .json.gz.
    OSError
        If the file cannot be written.
    """
    require_perfetto_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"schema": PERFETTO_SCHEMA, **run.provenance(), "rejected": len(run.rejections)}
    with _opened(path) as file:
        file.write(f'{{"displayTimeUnit":"ns","otherData":{_text(head)},"traceEvents":[\n')
        events = trace_events(run)
        file.write(next(events))
        file.writelines(f",\n{event}" for event in events)
        file.write("\n]}")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if path.suffix != ".gz":
        with path.open("w", encoding="ascii", newline="\n") as file:
            yield file
        return
    with (
        path.open("wb") as raw,
        # Neither the name nor the time of writing goes into the header: same run, same bytes.
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed,
        TextIOWrapper(packed, encoding="ascii", newline="\n") as file,
    ):
        yield file


def trace_events(run: Run) -> Iterator[str]:
    """Every event as JSON text: names of the tracks, batches, counters, preemptions, requests."""
    names = [_text(request.request_id) for request in run.history.instance.requests]
    yield from _track_names(REPLICA, "replica 0", {BATCHES: '"batches"', PREEMPTIONS: '"preemptions"'})
    yield from _batch_events(run, names)
    yield from _counter_events(run)
    yield from _boundary_events(run, names)
    yield from _request_events(run, names)


def _track_names(process: int, name: str, threads: Mapping[int, str]) -> Iterator[str]:
    yield _metadata(process, process, "process_name", f'"name":"{name}"')
    yield _metadata(process, process, "process_sort_index", f'"sort_index":{process}')
    for position, (thread, thread_name) in enumerate(threads.items()):
        yield _metadata(process, thread, "thread_name", f'"name":{thread_name}')
        yield _metadata(process, thread, "thread_sort_index", f'"sort_index":{position}')


def _batch_events(run: Run, names: list[str]) -> Iterator[str]:
    """One complete event a batch, named by its composition."""
    schedule, features = run.history.schedule, run.history.features
    columns = (
        schedule.start_ns, schedule.end_ns, schedule.first_entry[:-1], schedule.first_entry[1:],
        features.tokens, features.num_prefills, features.prefill_tokens, features.num_decodes,
        features.num_generating, run.held_blocks,
    )  # fmt: skip
    for j, row in enumerate(_rows(columns)):
        start, end, first, last, tokens, prefills, prefill_tokens, decodes, generated, blocks = row
        shown = schedule.request[first : min(last, first + MOST_REQUEST_IDS)].tolist()
        arguments = (
            f'"batch":{j},"tokens":{tokens},"requests":{last - first},"prefills":{prefills},'
            f'"prefill_tokens":{prefill_tokens},"decodes":{decodes},"generated_tokens":{generated},'
            f'"kv_blocks":{blocks},"request_ids":[{",".join(names[i] for i in shown)}],'
            f'"request_ids_left_out":{last - first - len(shown)}'
        )
        kind, name = _composition(prefills, prefill_tokens, decodes)
        yield _complete(REPLICA, BATCHES, start, end, kind, f'"{name}"', arguments)


def _composition(prefills: int, prefill_tokens: int, decodes: int) -> tuple[str, str]:
    """Kind and name of a batch, such as `hybrid`, `prefill 2 (512 tok) + decode 37`."""
    prefill, decode = f"prefill {prefills} ({prefill_tokens} tok)", f"decode {decodes}"
    if not prefills:
        return "decode", decode
    return ("hybrid", f"{prefill} + {decode}") if decodes else ("prefill", prefill)


def _counter_events(run: Run) -> Iterator[str]:
    """Counters where they change: at the start of a batch, and where the replica falls idle."""
    schedule, history = run.history.schedule, run.history
    columns = (
        schedule.start_ns, schedule.end_ns, np.append(schedule.start_ns[1:], -1),
        history.features.tokens, run.held_blocks, run.num_running, run.num_waiting,
        history.per_batch(history.finishes.astype(np.int64)),
    )  # fmt: skip
    shown: dict[str, int] = {}
    for start, end, next_start, tokens, blocks, running, waiting, finished in _rows(columns):
        now = {"tokens": tokens, "KV": blocks, "running": running, "waiting": waiting}
        yield from _changed_counters(shown, start, now)
        if next_start != end:
            # Who has not finished keeps its KV blocks while the replica is idle.
            emptied = {"KV": 0, "running": 0} if running == finished else {"running": running - finished}
            yield from _changed_counters(shown, end, {"tokens": 0, **emptied})


COUNTER_UNITS = {"tokens": "in batch", "KV": "blocks", "running": "requests", "waiting": "requests"}
"""What a counter counts; viewers show it behind the name."""


def _changed_counters(shown: dict[str, int], time_ns: int, now: dict[str, int]) -> Iterator[str]:
    for name, value in now.items():
        if shown.get(name) != value:
            shown[name] = value
            yield (
                f'{{"ph":"C","pid":{REPLICA},"tid":{BATCHES},"ts":{_microseconds(time_ns)},'
                f'"name":"{name}","args":{{"{COUNTER_UNITS[name]}":{value}}}}}'
            )


def _boundary_events(run: Run, names: list[str]) -> Iterator[str]:
    """An instant event for every eviction and for every return from host memory."""
    history, schedule = run.history, run.history.schedule
    start_ns = schedule.start_ns
    evictions = (schedule.evicted_request, schedule.evicted_to_host, history.kv_evicted)
    for time_ns, i, to_host, kv_tokens in _rows((start_ns[schedule.evicted_batch], *evictions)):
        yield _instant(time_ns, "swap out" if to_host else "preempt", names[i], kv_tokens)
    restorations = (schedule.restored_request, history.kv_restored)
    for time_ns, i, kv_tokens in _rows((start_ns[schedule.restored_batch], *restorations)):
        yield _instant(time_ns, "swap in", names[i], kv_tokens)


def _request_events(run: Run, names: list[str]) -> Iterator[str]:
    """A track for each request: its whole life, and within it the phases."""
    requests = run.history.instance.requests
    by_arrival = np.argsort(run.metrics.arrival_ns, kind="stable").tolist()
    threads = {i: FIRST_REQUEST + place for place, i in enumerate(by_arrival)}
    yield from _track_names(REQUESTS, "requests", {threads[i]: names[i] for i in by_arrival})
    times = zip(run.metrics.ttft_ns.tolist(), run.metrics.latency_ns.tolist(), strict=True)
    for i, (spans, (ttft, latency)) in enumerate(zip(request_spans(run.history), times, strict=True)):
        request = requests[i]
        arguments = (
            f'"prompt_tokens":{request.prompt_tokens},"output_tokens":{request.output_tokens},'
            f'"ttft_ns":{ttft},"latency_ns":{latency}'
        )
        start, end = request.arrival_ns, request.arrival_ns + latency
        # Before its phases: of two events that start together the outer one comes first.
        yield _complete(REQUESTS, threads[i], start, end, "request", names[i], arguments)
        yield from (_phase_event(threads[i], span) for span in spans)


def _phase_event(thread: int, span: Span) -> str:
    arguments = f'"batches":{span.num_batches},"tokens":{span.tokens}'
    name = f'"{span.phase}"'
    return _complete(REQUESTS, thread, span.start_ns, span.end_ns, "phase", name, arguments)


def _complete(
    process: int, thread: int, start_ns: int, end_ns: int, kind: str, name: str, arguments: str
) -> str:
    return (
        f'{{"ph":"X","pid":{process},"tid":{thread},"ts":{_microseconds(start_ns)},'
        f'"dur":{_microseconds(end_ns - start_ns)},"cat":"{kind}","name":{name},"args":{{{arguments}}}}}'
    )


def _instant(time_ns: int, what: str, request_name: str, kv_tokens: int) -> str:
    return (
        f'{{"ph":"i","pid":{REPLICA},"tid":{PREEMPTIONS},"ts":{_microseconds(time_ns)},"s":"t",'
        f'"cat":"preemption","name":"{what}",'
        f'"args":{{"request_id":{request_name},"kv_tokens":{kv_tokens}}}}}'
    )


def _metadata(process: int, thread: int, what: str, arguments: str) -> str:
    return f'{{"ph":"M","pid":{process},"tid":{thread},"name":"{what}","args":{{{arguments}}}}}'


def _microseconds(time_ns: int) -> str:
    """A time as text with three decimals: a float would lose nanoseconds of a long run."""
    return f"{time_ns // 1000}.{time_ns % 1000:03d}"


def _rows(columns: Sequence[IntArray]) -> Iterator[tuple[int, ...]]:
    """Rows of columns as Python integers, so many at once that they do not fill the memory."""
    for first in range(0, len(columns[0]), ROWS_AT_ONCE):
        yield from zip(*(column[first : first + ROWS_AT_ONCE].tolist() for column in columns), strict=True)
