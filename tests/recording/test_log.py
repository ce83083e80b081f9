"""Logs of real engines are read as they are: in one or two lines an iteration, gzipped, or cut off."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cspsched.errors import InputError
from cspsched.recording.log import canonical_line, read_recording
from cspsched.recording.values import read_requests
from tests.support.recordings import log_lines, simulated, write_log

FIRST: dict[str, Any] = {
    "it": 0, "sched": [["a", 3, 0], ["b", 1, 7]], "preempted": [["c", 4, 1]], "waiting": 2, "kv_used": 5,
    "t_start": 0.5, "t_end": 0.75, "emitted": ["a"], "finished": [],
}  # fmt: skip
SECOND: dict[str, Any] = {
    "it": 1, "sched": [["a", 1, 3]], "preempted": [], "waiting": 0, "kv_used": 4, "t_start": 0.75,
    "t_end": 1.0, "emitted": ["a"], "finished": ["a"],
}  # fmt: skip


def test_canonical_line_is_the_documented_text() -> None:
    """`rid:n@before;...|preempted,...` and a line end, and the hash is over these lines."""
    assert canonical_line([("a", 3, 0), ("b", 1, 7)], ["c", "d"]) == "a:3@0;b:1@7|c,d\n"


def test_hash_is_over_the_canonical_lines(tmp_path: Path) -> None:
    """SHA-256 of all iterations, in order."""
    write_log(tmp_path / "log.jsonl", [FIRST, SECOND])
    recording = read_recording(tmp_path / "log.jsonl")

    assert recording.sha256 == hashlib.sha256(b"a:3@0;b:1@7|c\na:1@3|\n").hexdigest()


def test_an_iteration_has_every_value_of_its_line(tmp_path: Path) -> None:
    """Entries in order, victims by name, times in nanoseconds; those in host memory wait, too."""
    line = {**FIRST, "swapped": 3, "swapped_in_blocks": 2, "swapped_out_blocks": 5}
    line["preempted"] = [["c", "SWAP"], ["d", "RECOMPUTE"], "e"]
    write_log(tmp_path / "log.jsonl", [line])
    (iteration,) = read_recording(tmp_path / "log.jsonl").iterations

    assert iteration.scheduled == (("a", 3, 0), ("b", 1, 7))
    assert (iteration.preempted, iteration.swapped) == (("c", "d", "e"), {"c"})
    assert (iteration.waiting, iteration.kv_used, iteration.moved_blocks) == (5, 5, 7)
    assert (iteration.start_ns, iteration.end_ns) == (500_000_000, 750_000_000)
    assert (iteration.emitted, iteration.finished, iteration.line) == (("a",), (), 2)


def in_two_lines(line: dict[str, Any]) -> list[dict[str, Any]]:
    later = ("t_start", "t_end", "emitted", "finished")
    return [
        {key: value for key, value in line.items() if key not in later},
        {"it": line["it"], **{key: line[key] for key in later}},
    ]


def test_two_lines_an_iteration_say_the_same_as_one(tmp_path: Path) -> None:
    """What is known when it is scheduled and what comes of it are laid over each other, by `it`."""
    write_log(tmp_path / "one.jsonl", [FIRST, SECOND])
    (first, output), (second, last) = in_two_lines(FIRST), in_two_lines(SECOND)
    # As an engine that decides ahead writes them.
    write_log(tmp_path / "two.jsonl", [first, second, output, last])
    one, two = (read_recording(tmp_path / name) for name in ("one.jsonl", "two.jsonl"))

    assert one.sha256 == two.sha256
    assert [(i.start_ns, i.finished) for i in one.iterations] == [
        (i.start_ns, i.finished) for i in two.iterations
    ]


def test_iterations_without_output_at_the_end_are_left_out(tmp_path: Path) -> None:
    """An engine that is stopped leaves batches in flight; how many is said."""
    write_log(tmp_path / "log.jsonl", [FIRST, in_two_lines(SECOND)[0]])
    recording = read_recording(tmp_path / "log.jsonl")

    assert (len(recording.iterations), recording.num_cut_off) == (1, 1)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_every_cut_of_a_log_is_read_or_refused_with_a_sentence(tmp_path: Path, suffix: str) -> None:
    """Wherever the file ends, what was complete before is what comes out."""
    lines = log_lines(*simulated())
    whole = tmp_path / "whole.jsonl"
    write_log(whole, lines)
    content = whole.read_bytes() if suffix == ".jsonl" else gzip.compress(whole.read_bytes())
    cut = tmp_path / f"cut{suffix}"
    complete = [iteration.scheduled for iteration in read_recording(whole).iterations]
    lengths = []
    for end in range(1, len(content), len(content) // 40):
        cut.write_bytes(content[:end])
        try:
            scheduled = [iteration.scheduled for iteration in read_recording(cut).iterations]
        except InputError:
            scheduled = []
        lengths.append(len(scheduled))
        assert scheduled == complete[: len(scheduled)]

    assert lengths == sorted(lengths)
    assert lengths[-1] >= len(complete) - 3 if suffix == ".jsonl" else lengths[-1] > 0
    assert not read_recording(whole).num_cut_off


def test_completeness_is_told_by_the_last_line(tmp_path: Path) -> None:
    """Only a summary says that what is not there did not happen."""
    write_log(tmp_path / "log.jsonl", [FIRST])
    assert read_recording(tmp_path / "log.jsonl").is_complete

    (tmp_path / "log.jsonl").write_text(json.dumps(FIRST) + "\n")
    assert not read_recording(tmp_path / "log.jsonl").is_complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sched": [["a", 0, 0]]}, "line 2: sched holds ['a', 0, 0]"),
        ({"sched": [["a", 1, -1]]}, "line 2: sched holds ['a', 1, -1]"),
        ({"sched": [["a", True, 0]]}, "line 2: sched holds"),
        ({"sched": "a"}, "line 2: sched is 'a', expected a list"),
        ({"preempted": [[]]}, "line 2: preempted holds an empty list"),
        ({"emitted": [1]}, "line 2: 1 is no name"),
        ({"kv_used": None}, "line 2: kv_used is None"),
        ({"waiting": -1}, "line 2: waiting is -1"),
        ({"t_end": "soon"}, "line 2: t_end is 'soon'"),
        ({"t_start": 1e300}, "line 2: t_start is 1e+300"),
        ({"it": "x"}, "line 2: it is 'x'"),
        ({"new": [{"request_id": 3}]}, "line 2: new holds"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """File, line, key, what was got."""
    write_log(tmp_path / "log.jsonl", [{**FIRST, **change}])

    with pytest.raises(InputError) as caught:
        read_recording(tmp_path / "log.jsonl")
    assert f"log.jsonl {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json\n{}\n", "line 1: no valid JSON"),
        ("[]\n", "line 1: expected a JSON object"),
        ('{"meta": {}}\n', "holds no complete iteration"),
        ('{"it": 3, "t_end": 1.0}\n', "output of iteration 3, which was not scheduled"),
        ('{"meta": {"config": 3}}\n', "config that is no table"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Another file than a log is told from one that is cut off."""
    (tmp_path / "log.jsonl").write_text(text)

    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "log.jsonl")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """With a sentence."""
    with pytest.raises(InputError, match="does not exist"):
        read_recording(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="is a directory"):
        read_recording(tmp_path)


def test_a_recorded_trace_keeps_its_clock_and_shares_prefixes(tmp_path: Path) -> None:
    """Arrivals are not moved to zero; prefix columns become a segment, empty ones nothing."""
    (tmp_path / "t.csv").write_text(
        "request_id,arrival,prompt_tokens,output_tokens,priority,prefix_id,prefix_tokens\n"
        "a,0.1219,1356,53,0,g0,400\nb,0.5,10,2,,,0\n"
    )
    first, second = read_requests(tmp_path / "t.csv")

    assert (first.arrival_ns, first.prefix) == (121_900_000, (("g0", 400),))
    assert (second.arrival_ns, second.prefix, second.priority) == (500_000_000, (), 0)


def test_a_trace_without_a_needed_column_is_refused(tmp_path: Path) -> None:
    """It says which."""
    (tmp_path / "t.csv").write_text("request_id,prompt_tokens,output_tokens\na,1,1\n")

    with pytest.raises(InputError, match="column arrival is missing"):
        read_requests(tmp_path / "t.csv")
