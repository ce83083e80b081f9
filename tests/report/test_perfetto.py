"""The Perfetto trace: valid by the trace-event format, complete, and equal to the metrics."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from cspsched.referee.rules import occupied_blocks
from cspsched.referee.timing import schedule_asap
from cspsched.report.perfetto import MOST_REQUEST_IDS, trace_events, write_perfetto
from cspsched.report.phases import Phase, request_spans
from cspsched.report.run import Run
from tests.support.command_line import invoke
from tests.support.instances import four_mixed
from tests.support.runs import preempted_run, run_of, simulated, swapped_run
from tests.support.strategies import check, check_briefly, feasible_runs, make_instance

METADATA_ARGUMENTS = {
    "process_name": {"name": str},
    "thread_name": {"name": str},
    "process_sort_index": {"sort_index": int},
    "thread_sort_index": {"sort_index": int},
}
REQUIRED = {
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": Decimal, "dur": Decimal, "args": dict},
    "i": {"name": str, "cat": str, "pid": int, "tid": int, "ts": Decimal, "s": str, "args": dict},
    "C": {"name": str, "pid": int, "tid": int, "ts": Decimal, "args": dict},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
}
"""Keys of the trace-event format that an event of a phase must have, and may have, with their types."""

Event = dict[str, Any]


def events_of(run: Run) -> list[Event]:
    return [json.loads(event, parse_float=Decimal) for event in trace_events(run)]


def nanoseconds(microseconds: Decimal) -> int:
    value = microseconds * 1000
    assert value == int(value)
    return int(value)


def faults(events: list[Event]) -> Iterator[str]:
    """What of the trace-event format the events break."""
    for event in events:
        yield from faults_of_event(event)
    named = {
        (event["name"], event["pid"], event["tid"] if event["name"] == "thread_name" else 0)
        for event in events
        if event["ph"] == "M"
    }
    for event in events:
        for key in (("process_name", event["pid"], 0), ("thread_name", event["pid"], event["tid"])):
            if event["ph"] != "M" and key not in named:
                yield f"no {key[0]} for {event}"
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    for spans in threads.values():
        yield from faults_of_nesting(spans)


def faults_of_event(event: Event) -> Iterator[str]:
    keys = REQUIRED.get(event.get("ph", ""))
    if keys is None:
        yield f"unknown phase in {event}"
        return
    if set(event) != {"ph", *keys} or any(type(event[key]) is not kind for key, kind in keys.items()):
        yield f"keys or types of {event}"
        return
    if min(event.get("ts", 0), event.get("dur", 0)) < 0:
        yield f"negative time in {event}"
    if event["ph"] == "i" and event["s"] not in ("t", "p", "g"):
        yield f"scope of {event}"
    if event["ph"] == "C" and not (event["args"] and all(type(v) is int for v in event["args"].values())):
        yield f"counter without numbers in {event}"
    if event["ph"] == "M":
        wanted = METADATA_ARGUMENTS.get(event["name"])
        if wanted != {key: type(value) for key, value in event["args"].items()}:
            yield f"metadata {event}"


def faults_of_nesting(spans: list[Event]) -> Iterator[str]:
    """Spans of one thread lie apart or within each other; of two with one start the longer comes first."""
    open_until: list[int] = []
    for span in sorted(spans, key=lambda event: event["ts"]):  # stable: ties stay in the order of the file
        start, end = nanoseconds(span["ts"]), nanoseconds(span["ts"] + span["dur"])
        while open_until and open_until[-1] <= start:
            open_until.pop()
        if open_until and end > open_until[-1]:
            yield f"{span} outlasts the span around it"
        open_until.append(end)


def phases(run: Run) -> list[list[tuple[str, int, int, int, int]]]:
    return [[(str(span.phase), *span[1:]) for span in spans] for spans in request_spans(run.history)]


@pytest.fixture
def preempted() -> Run:
    return preempted_run()


@pytest.fixture
def swapped() -> Run:
    return swapped_run()


def test_phases_follow_admissions_tokens_and_evictions(preempted):
    """Queued, prefill in chunks, preempted, refill cut off, preempted, refill, decode: ends at batch ends."""
    first, second = phases(preempted)

    assert first == [
        ("prefill", 0, 20, 2, 3),
        ("preempted", 20, 40, 0, 0),
        ("refill", 40, 50, 1, 2),
        ("preempted", 50, 60, 0, 0),
        ("refill", 60, 70, 1, 4),
        ("decode", 70, 80, 1, 1),
    ]
    assert second == [("queued", 15, 20, 0, 0), ("prefill", 20, 30, 1, 2), ("decode", 30, 60, 1, 1)]


def test_a_swapped_request_goes_on_where_it_was(swapped):
    """Swap is no refill: the request decodes before and after, and is `swapped` in between."""
    assert [span[0] for span in phases(swapped)[0]] == ["prefill", "swapped", "decode"]
    assert [event["name"] for event in events_of(swapped) if event["ph"] == "i"] == ["swap out", "swap in"]
    assert [event["args"]["kv_tokens"] for event in events_of(swapped) if event["ph"] == "i"] == [2, 2]


@given(feasible_runs())
@check
def test_phases_cover_the_life_of_a_request(drawn):
    """On random schedules they join without a gap from arrival to last token, and count every entry."""
    run = run_of(*drawn)
    schedule = run.history.schedule
    finish = (run.metrics.arrival_ns + run.metrics.latency_ns).tolist()
    for i, spans in enumerate(request_spans(run.history)):
        mine = schedule.request == i

        assert [spans[0].start_ns, spans[-1].end_ns] == [drawn[0].requests[i].arrival_ns, finish[i]]
        assert all(one.end_ns == two.start_ns for one, two in pairwise(spans))
        assert sum(span.num_batches for span in spans) == mine.sum()
        assert sum(span.tokens for span in spans) == schedule.tokens[mine].sum()


@given(feasible_runs())
@check
def test_phases_agree_with_a_walk_over_the_batches(drawn):
    """At the middle of every batch of a request its phase is what its entries and evictions say."""
    run = run_of(*drawn)
    schedule, history = run.history.schedule, run.history
    spans = list(request_spans(history))
    is_drop = schedule.evicted_to_host == 0
    drops = zip(
        schedule.evicted_request[is_drop].tolist(), schedule.evicted_batch[is_drop].tolist(), strict=True
    )
    evictions = set(drops)
    batches = schedule.batch_of_entry.tolist()
    for e, (i, j) in enumerate(zip(schedule.request.tolist(), batches, strict=True)):
        dropped = any((i, k) in evictions for k in range(j + 1))
        expected = Phase.DECODE if history.decodes[e] else Phase.REFILL if dropped else Phase.PREFILL
        middle = (int(schedule.start_ns[j]) + int(schedule.end_ns[j])) / 2

        assert [s.phase for s in spans[i] if s.start_ns < middle < s.end_ns] == [expected]


@given(feasible_runs())
@check_briefly
def test_trace_keeps_to_the_format(drawn):
    """Keys, types, names of tracks and nesting are right for every schedule."""
    assert list(faults(events_of(run_of(*drawn)))) == []


@pytest.mark.parametrize("policy", ["vllm", "vllm-v0", "sarathi", "sglang", "infermax", "fastserve"])
def test_trace_of_a_policy_adds_up_to_its_metrics(policy):
    """Batches, tokens, preemptions and latencies read back from the trace are those of the metrics."""
    run = simulated(four_mixed(), policy)
    events, metrics = events_of(run), run.metrics
    batches = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    lives = [event for event in events if event.get("cat") == "request"]
    preemptions = [event for event in events if event["ph"] == "i"]

    assert list(faults(events)) == []
    assert [event["args"]["batch"] for event in batches] == list(range(run.history.schedule.num_batches))
    assert sum(event["args"]["tokens"] for event in batches) == run.history.schedule.tokens.sum()
    assert sum(event["args"]["generated_tokens"] for event in batches) == metrics.output_tokens.sum()
    assert nanoseconds(batches[-1]["ts"] + batches[-1]["dur"]) == metrics.makespan_ns
    assert [event["name"] for event in lives] == ["r0", "r1", "r2", "r3"]
    assert [nanoseconds(event["dur"]) for event in lives] == metrics.latency_ns.tolist()
    assert [event["args"]["ttft_ns"] for event in lives] == metrics.ttft_ns.tolist()
    assert len(preemptions) == run.history.schedule.num_preemptions
    assert sum(event["args"]["kv_tokens"] for event in preemptions) == metrics.recomputed_tokens


def test_some_policy_preempts_in_these_tests():
    """The test above would not see preemptions if there were none."""
    assert simulated(four_mixed(), "vllm").history.schedule.num_preemptions > 0


def test_batches_are_named_by_their_composition(preempted):
    """A batch says how many prefills with how many tokens, and how many decodes; and who is in it."""
    batches = [event for event in events_of(preempted) if event["ph"] == "X" and event["pid"] == 1]

    assert [event["name"] for event in batches][3:5] == ["prefill 1 (2 tok)", "decode 1"]
    assert [event["cat"] for event in batches][3:5] == ["prefill", "decode"]
    assert [event["args"]["request_ids"] for event in batches][3:5] == [["r0"], ["r1"]]
    mixed = run_of(*hybrid())
    assert {"prefill 1 (3 tok) + decode 1"} <= {event["name"] for event in events_of(mixed)}


def hybrid() -> tuple[Instance, Schedule]:
    instance = make_instance((1, 2), (3, 1))
    return instance, schedule_asap(instance, [[(0, 1)], [(0, 1), (1, 3)]], [[], []])


def test_long_lists_of_requests_are_cut_off_and_say_so():
    """A batch of many requests names the first of them and counts the others."""
    count = MOST_REQUEST_IDS + 4
    instance = make_instance(*[(1, 1)] * count)
    run = run_of(instance, schedule_asap(instance, [[(i, 1) for i in range(count)]], [[]]))
    (batch,) = [event for event in events_of(run) if event["ph"] == "X" and event["pid"] == 1]

    assert batch["args"]["request_ids"] == [f"r{i}" for i in range(MOST_REQUEST_IDS)]
    assert batch["args"]["request_ids_left_out"] == 4
    assert batch["args"]["requests"] == count


def counter(run: Run, name: str) -> list[tuple[int, int]]:
    events = [event for event in events_of(run) if event["ph"] == "C" and event["name"] == name]
    return [(nanoseconds(event["ts"]), *event["args"].values()) for event in events]


def test_counters_fall_where_the_replica_is_idle(preempted):
    """Tokens go to 0 between 30 and 40 and at the end; r1 keeps its two KV blocks over the idle time."""
    assert counter(preempted, "tokens") == [
        (0, 2), (10, 1), (20, 2), (30, 0), (40, 2), (50, 1), (60, 4), (70, 1), (80, 0)
    ]  # fmt: skip
    assert counter(preempted, "KV") == [(0, 2), (10, 3), (20, 2), (40, 4), (50, 3), (60, 4), (70, 5), (80, 0)]
    assert counter(preempted, "running") == [(0, 1), (40, 2), (50, 1), (80, 0)]


@given(feasible_runs())
@check_briefly
def test_counters_hold_the_series_of_the_run(drawn):
    """The value of each counter at the start of a batch is that of the series, and 0 after the last."""
    run = run_of(*drawn)
    series = {"tokens": run.history.features.tokens, "KV": occupied_blocks(run.history),
              "running": run.num_running}  # fmt: skip
    for name, expected in series.items():
        times, values = zip(*counter(run, name), strict=True)
        at = np.searchsorted(times, run.history.schedule.start_ns, side="right") - 1

        assert [values[k] for k in at] == expected.tolist()
        assert list(times) == sorted(set(times))
        assert values[-1] == 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ph": "Q"}, "unknown phase"),
        ({"dur": Decimal(-1)}, "negative time"),
        ({"dur": "1"}, "keys or types"),
        ({"colour": "red"}, "keys or types"),
        ({"tid": 99}, "no thread_name"),
        ({"dur": Decimal(1000)}, "outlasts"),
    ],
)
def test_the_validator_finds_faults(preempted, change, fault):
    """Each fault put into a phase of a request is found, so a clean verdict means something."""
    events = events_of(preempted)
    next(event for event in events if event.get("cat") == "phase").update(change)

    assert any(fault in found for found in faults(events))


def test_counter_and_metadata_faults_are_found(preempted):
    """A counter of text and a track name of another key are found."""
    for phase, arguments in (("C", {"blocks": "many"}), ("M", {"title": "replica"})):
        events = events_of(preempted)
        next(event for event in events if event["ph"] == phase).update(args=arguments)

        assert list(faults(events)) != []


@pytest.mark.parametrize("time_ns", [1, 999, 1_000_001, 4_000_000_000_000_001, 2**62 + 1])
def test_times_keep_their_nanoseconds(time_ns):
    """Microseconds have three decimals, exact as text; viewers read floats, and round right for 50 days."""
    instance = make_instance((1, 1), arrivals_ns=[time_ns])
    run = run_of(instance, Schedule.from_batches([[(0, 1)]], [[]], [time_ns], [time_ns + 1]))
    batch = next(event for event in events_of(run) if event["ph"] == "X")

    assert (nanoseconds(batch["ts"]), nanoseconds(batch["dur"])) == (time_ns, 1)
    assert time_ns > 2**52 or round(float(batch["ts"]) * 1000) == time_ns


@pytest.mark.parametrize("name", ["run.json", "deep/run.json.gz"])
def test_file_is_one_json_object_with_its_provenance(preempted, tmp_path, name):
    """Plain or packed, it states schema, policy and fingerprint, and ends with its last brace."""
    write_perfetto(preempted, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("ascii")
    trace = json.loads(text, parse_float=Decimal)

    assert list(trace) == ["displayTimeUnit", "otherData", "traceEvents"]
    assert trace["displayTimeUnit"] == "ns"
    assert trace["otherData"]["schema"] == "cspsched/perfetto/1"
    assert trace["otherData"]["fingerprint"] == preempted.history.instance.fingerprint()
    assert trace["traceEvents"] == events_of(preempted)
    assert text.endswith("]}")


def test_same_run_gives_the_same_bytes(preempted, tmp_path):
    """Neither time nor file name is in the packed file."""
    for name in ("one.json.gz", "two.json.gz"):
        write_perfetto(preempted, tmp_path / name)

    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_names_of_any_script_survive(tmp_path):
    """Quotes, backslashes and letters beyond ASCII in a request's name are escaped and read back."""
    instance = make_instance((1, 1))
    name = 'a "b" \\ 请求 😀'
    instance = replace(instance, requests=(replace(instance.requests[0], request_id=name),))
    run = run_of(instance, schedule_asap(instance, [[(0, 1)]], [[]]))
    events = events_of(run)

    assert name in [event["args"].get("name") for event in events]
    assert [event["name"] for event in events if event.get("cat") == "request"] == [name]


def test_request_tracks_are_sorted_by_arrival():
    """The first to arrive has the first track, whatever its place in the instance."""
    instance = make_instance((1, 1), (1, 1), arrivals_ns=[7, 0])
    schedule = Schedule.from_batches([[(1, 1)], [(0, 1)]], [[], []], [0, 7], [1, 8])
    events = events_of(run_of(instance, schedule))
    names = [event for event in events if event["name"] == "thread_name" and event["pid"] == 3]

    assert [event["args"]["name"] for event in sorted(names, key=lambda e: e["tid"])] == ["r1", "r0"]


def test_command_writes_the_trace(capsys, tmp_path):
    """`simulate --perfetto` writes the events of every batch and request that it counts."""
    path = tmp_path / "new" / "run.json.gz"
    outcome = invoke(capsys, "simulate", "tiny-12", "--json", "--perfetto", path)
    metrics = json.loads(outcome.out)
    events = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)["traceEvents"]

    assert outcome.code == 0
    assert f"wrote {path}; open it in https://ui.perfetto.dev" in outcome.err
    assert list(faults(events)) == []
    assert sum(event["ph"] == "X" and event["pid"] == 1 for event in events) == metrics["num_batches"]
    assert sum(event.get("cat") == "request" for event in events) == metrics["num_requests"]


def test_command_refuses_another_suffix_before_it_runs(capsys, tmp_path):
    """The suffix says how the file is written; the missing trace is not even looked for."""
    outcome = invoke(capsys, "simulate", "missing.csv", "--perfetto", tmp_path / "run.pftrace")

    assert outcome.code == 2
    assert "ends neither in .json nor in .json.gz" in outcome.err


def test_command_refuses_a_place_that_cannot_be_written_before_it_runs(capsys, tmp_path):
    """A file where a folder would have to be is found before the trace is read."""
    Path(tmp_path / "file").write_text("")
    outcome = invoke(capsys, "simulate", "missing.csv", "--perfetto", tmp_path / "file" / "run.json")

    assert outcome.code == 1
    assert "cannot be written" in outcome.err
