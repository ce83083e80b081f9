"""A small file of every trace format, rendered by hand from rows, and ways to break it.

The rows are those of the cited sources, or written after them; the renderer shares nothing with the package.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of a file, and the requests in it: (name, arrival in ns, prompt, output)."""

    format: str
    layout: str
    """`csv`, `lines`, `list` or `lists`."""
    rows: Sequence[Row]
    arrival: str
    prompt: str
    output: str
    too_fine: object
    """An arrival in a finer unit than the column has."""
    requests: Sequence[tuple[str, int, int, int]]
    name: str | None = None
    """Column of the names."""
    facts: Mapping[str, Any] | None = None

    @property
    def suffix(self) -> str:
        """Of a file's name."""
        return {"csv": ".csv", "lines": ".jsonl", "list": ".json", "lists": ".json"}[self.layout]

    @property
    def content(self) -> bytes:
        """Bytes of the file."""
        return render(self.rows, self.layout, self.facts).encode()

    def changed(self, index: int, column: str, value: object) -> bytes:
        """Bytes of the file with another value in a cell."""
        rows = deepcopy(list(self.rows))
        put(rows[index], column, value)
        return replace(self, rows=rows).content


def put(row: Row, column: str, value: object) -> None:
    """Set a field, which may be in an object in the row."""
    *outer, last = column.split(".") if column not in row else [column]
    for part in outer:
        row = row[part]
    row[last] = value


def render(rows: Sequence[Row], layout: str, facts: Mapping[str, Any] | None = None) -> str:
    """Text of a file with these rows."""
    if layout == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()
    if layout == "lines":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if layout == "list":
        return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    return json.dumps({**(facts or {}), **lists}) + "\n"


def _row(columns: str, *cells: object) -> Row:
    return dict(zip(columns.split("|"), cells, strict=True))


def _aiperf(name: str, start_ns: int, prompt: int, output: int) -> Row:
    return {
        "metadata": {"x_request_id": name, "request_start_ns": start_ns, "benchmark_phase": "profiling"},
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
            "time_to_first_token": {"value": 255.88656799999998, "unit": "ms"},
        },
        "error": None,
    }


def _inference_perf(start: float, prompt: int, output: int, *, is_old: bool = False) -> Row:
    new = {
        "request_metrics": {"text": {"input_tokens": prompt}, "image": None},
        "response_metrics": {"output_tokens": output, "output_token_times": [start + 0.5]},
        "input_tokens": prompt,
    }
    old = {"input_tokens": prompt, "output_tokens": output, "output_token_times": [start + 0.5]}
    info = old if is_old else new
    return {
        "start_time": start,
        "end_time": start + 1.5,
        "request": "{}",
        "response": "",
        "info": info,
        "error": None,
    }


BURSTGPT = "Timestamp|Session ID|Elapsed time|Model|Request tokens|Response tokens|Total tokens|Log Type"
SPLITWISE = "request_id|request_type|application_id|arrival_timestamp|batch_size|prompt_size|token_size"
BAILIAN = "chat_id|parent_chat_id|timestamp|input_length|output_length|type|turn|hash_ids"
LOG = "Conversation log"
BENCH_S = [100.0, 100.25, 102.5]
AIPERF_NS = 1759813207532900363
COMPLETED = {"request_rate": 4.0, "max_concurrency": None, "completed": 3}

SAMPLES = (
    Sample(
        format="native",
        layout="csv",
        rows=[
            _row("request_id|arrival_s|prompt_tokens|output_tokens", *cells)
            for cells in (("a", "0.5", 374, 44), ("b", "1.25", 396, 109), ("c", "4.000000001", 879, 55))
        ],
        arrival="arrival_s",
        prompt="prompt_tokens",
        output="output_tokens",
        name="request_id",
        too_fine=1700000000000,
        requests=[("a", 0, 374, 44), ("b", 750_000_000, 396, 109), ("c", 3_500_000_001, 879, 55)],
    ),
    Sample(
        format="azure",
        layout="csv",
        rows=[
            _row("TIMESTAMP|ContextTokens|GeneratedTokens", *cells)
            for cells in (
                ("2023-11-16 18:15:46.6805900", 374, 44),
                ("2023-11-16 18:15:50.9951690", 396, 109),
                ("2023-11-16 18:15:51.2224670", 879, 55),
            )
        ],
        arrival="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        too_fine=1700000000000,
        requests=[("r0", 0, 374, 44), ("r1", 4_314_579_000, 396, 109), ("r2", 4_541_877_000, 879, 55)],
    ),
    Sample(
        format="burstgpt",
        layout="csv",
        rows=[
            _row(BURSTGPT, "19440110.0", "1722ac82", 43, "GPT-4", 906, 446, 1352, LOG),
            _row(BURSTGPT, "19440161.0", "d5983bf9", 2, "ChatGPT", 36, 29, 65, LOG),
            _row(BURSTGPT, "19440192.0", "a5c69b35", 8, "GPT-4", 1779, 123, 1902, LOG),
        ],
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        too_fine=1700000000000,
        requests=[("r0", 0, 906, 446), ("r1", 51 * 10**9, 36, 29), ("r2", 82 * 10**9, 1779, 123)],
    ),
    Sample(
        format="bailian",
        layout="lines",
        rows=[
            _row(BAILIAN, 159, -1, 61.114, 52, 132, "text", 1, [1089, 1090, 1091, 6326]),
            _row(BAILIAN, 160, 159, 62.5, 40, 80, "text", 2, [1089, 1090, 1092]),
            _row(BAILIAN, 161, -1, 62.75, 9, 7, "search", 1, [13148]),
        ],
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        name="chat_id",
        too_fine=1700000000000,
        requests=[("159", 0, 52, 132), ("160", 1_386_000_000, 40, 80), ("161", 1_636_000_000, 9, 7)],
    ),
    Sample(
        format="mooncake",
        layout="lines",
        rows=[
            _row("timestamp|input_length|output_length|hash_ids", *cells)
            for cells in ((0, 655, 52, [46, 47]), (10535, 672, 26, [46, 48]), (27482, 655, 52, [46, 47]))
        ],
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        too_fine=1700000000000000,
        requests=[("r0", 0, 655, 52), ("r1", 10_535_000_000, 672, 26), ("r2", 27_482_000_000, 655, 52)],
    ),
    Sample(
        format="vidur",
        layout="csv",
        rows=[
            _row("arrived_at|num_prefill_tokens|num_decode_tokens", *cells)
            for cells in ((0.25, 374, 44), (4.5, 396, 109), (4.75, 879, 55))
        ],
        arrival="arrived_at",
        prompt="num_prefill_tokens",
        output="num_decode_tokens",
        too_fine=1700000000000,
        requests=[("r0", 0, 374, 44), ("r1", 4_250_000_000, 396, 109), ("r2", 4_500_000_000, 879, 55)],
    ),
    Sample(
        format="splitwise",
        layout="csv",
        rows=[
            _row(SPLITWISE, 0, 2, 0, 0.0, 1, 374, 44),
            _row(SPLITWISE, 1, 2, 0, 4.5, 1, 396, 109),
            _row(SPLITWISE, 2, 2, 0, 4.75, 1, 879, 55),
        ],
        arrival="arrival_timestamp",
        prompt="prompt_size",
        output="token_size",
        name="request_id",
        too_fine=1700000000000,
        requests=[("0", 0, 374, 44), ("1", 4_500_000_000, 396, 109), ("2", 4_750_000_000, 879, 55)],
    ),
    Sample(
        format="llmservingsim",
        layout="lines",
        rows=[
            _row("input_toks|output_toks|arrival_time_ns|input_tok_ids", *cells)
            for cells in ((374, 44, 0, [1, 2]), (396, 109, 250_000_001, [1]), (879, 55, 10**10, []))
        ],
        arrival="arrival_time_ns",
        prompt="input_toks",
        output="output_toks",
        too_fine=10**20,
        requests=[("r0", 0, 374, 44), ("r1", 250_000_001, 396, 109), ("r2", 10**10, 879, 55)],
    ),
    Sample(
        format="llmservingsim-run",
        layout="lines",
        rows=[
            _row("request_id|input_toks|output_toks|arrival_time|queued_ts", *cells)
            for cells in (
                ("bench-0", 2358, 531, 1787267980.0827403, 27536.660701067),
                ("bench-1", 1034, 769, 1787267980.3478317, 27537.047603549),
                ("bench-2", 1320, 769, 1787267980.4788878, 27537.221809715),
            )
        ],
        arrival="arrival_time",
        prompt="input_toks",
        output="output_toks",
        name="request_id",
        too_fine=1787267980082,
        requests=[
            ("bench-0", 0, 2358, 531),
            ("bench-1", 265_091_400, 1034, 769),
            ("bench-2", 396_147_500, 1320, 769),
        ],
    ),
    Sample(
        format="vllm-bench",
        layout="lists",
        rows=[
            _row("input_lens|output_lens|ttfts|itls|start_times|errors", *cells)
            for cells in zip(
                (550, 12, 80), (9, 40, 3), (0.1, 0.2, 0.3), ([0.01],) * 3, BENCH_S, ("",) * 3, strict=True
            )
        ],
        facts=COMPLETED,
        arrival="start_times",
        prompt="input_lens",
        output="output_lens",
        too_fine=1700000000000,
        requests=[("r0", 0, 550, 9), ("r1", 250_000_000, 12, 40), ("r2", 2_500_000_000, 80, 3)],
    ),
    Sample(
        format="sglang-bench",
        layout="lists",
        rows=[
            _row("input_lens|output_lens|ttfts|start_times|errors", *cells)
            for cells in zip((550, 12, 80), (9, 40, 3), (0.1, 0.2, 0.3), BENCH_S, ("",) * 3, strict=True)
        ],
        facts=COMPLETED | {"backend": "sglang", "sharegpt_output_len": None},
        arrival="start_times",
        prompt="input_lens",
        output="output_lens",
        too_fine=1700000000000,
        requests=[("r0", 0, 550, 9), ("r1", 250_000_000, 12, 40), ("r2", 2_500_000_000, 80, 3)],
    ),
    Sample(
        format="aiperf",
        layout="lines",
        rows=[
            _aiperf("7609a2e7", AIPERF_NS, 550, 9),
            _aiperf("c35e4b1b", AIPERF_NS + 17, 12, 40),
            _aiperf("32ee4f33", AIPERF_NS + 10**9, 80, 3),
        ],
        arrival="metadata.request_start_ns",
        prompt="metrics.input_sequence_length.value",
        output="metrics.output_sequence_length.value",
        name="metadata.x_request_id",
        too_fine=10**20,
        requests=[("7609a2e7", 0, 550, 9), ("c35e4b1b", 17, 12, 40), ("32ee4f33", 10**9, 80, 3)],
    ),
    Sample(
        format="inference-perf",
        layout="list",
        rows=[_inference_perf(*cells) for cells in ((812.5, 550, 9), (812.75, 12, 40), (815.0, 80, 3))],
        arrival="start_time",
        prompt="info.request_metrics.text.input_tokens",
        output="info.response_metrics.output_tokens",
        too_fine=1700000000000,
        requests=[("r0", 0, 550, 9), ("r1", 250_000_000, 12, 40), ("r2", 2_500_000_000, 80, 3)],
    ),
    Sample(
        format="inference-perf-0.2",
        layout="list",
        rows=[
            _inference_perf(*cells, is_old=True)
            for cells in ((812.5, 550, 9), (812.75, 12, 40), (815.0, 80, 3))
        ],
        arrival="start_time",
        prompt="info.input_tokens",
        output="info.output_tokens",
        too_fine=1700000000000,
        requests=[("r0", 0, 550, 9), ("r1", 250_000_000, 12, 40), ("r2", 2_500_000_000, 80, 3)],
    ),
    Sample(
        format="sharegpt",
        layout="list",
        rows=[
            {
                "id": f"QWJhYvA_{k}",
                "arrival_s": arrival,
                "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}],
            }
            for k, (arrival, asked, said) in enumerate(
                ((0, "Hi there", "Hello!"), (1, "x" * 41, "y"), (3, "z", "w" * 8))
            )
        ],
        arrival="arrival_s",
        prompt="conversations",
        output="conversations",
        too_fine=1700000000000,
        requests=[("r0", 0, 2, 2), ("r1", 10**9, 11, 1), ("r2", 3 * 10**9, 1, 2)],
    ),
)

HARMLESS = ("byte-order mark", "CRLF", "no final newline", "unsorted")
"""Variants that are read as the sample is."""
Variant = Callable[[Sample], bytes]


def _truncated(sample: Sample) -> bytes:
    """Cut off within the last row."""
    text = sample.content.decode().rstrip("\n]").rstrip("\n")
    return text[: text.rindex("," if sample.layout == "csv" else '"')].encode()


def _repeated(sample: Sample) -> bytes:
    """Two rows of one name; where there are no names, a row twice."""
    if sample.name is None:
        return replace(sample, rows=[*sample.rows, sample.rows[-1]]).content
    name = next(iter(sample.requests))[0]
    return sample.changed(1, sample.name, int(name) if name.isdecimal() else name)


def _without_rows(sample: Sample) -> bytes:
    if sample.layout == "csv":
        return sample.content.partition(b"\n")[0] + b"\n"
    if sample.layout == "lists":
        facts = sample.facts or {}
        return json.dumps({**facts, **{name: [] for name in sample.rows[0]}}).encode()
    return b"[]\n" if sample.layout == "list" else b"\n"


VARIANTS: dict[str, Variant] = {
    "byte-order mark": lambda sample: "\N{BOM}".encode() + sample.content,
    "CRLF": lambda sample: sample.content.replace(b"\n", b"\r\n"),
    "no final newline": lambda sample: sample.content.rstrip(b"\n"),
    "unsorted": lambda sample: replace(sample, rows=list(sample.rows)[::-1]).content,
    "truncated": _truncated,
    "finer unit": lambda sample: sample.changed(1, sample.arrival, sample.too_fine),
    "repeated": _repeated,
    "NaN": lambda sample: sample.changed(1, sample.prompt, float("nan")),
    "negative": lambda sample: sample.changed(1, sample.output, -3),
    "10^12 tokens": lambda sample: sample.changed(2, sample.prompt, 10**12),
    "mixed types": lambda sample: sample.changed(
        2, sample.output, "many" if sample.layout == "csv" else ["many"]
    ),
    "empty": lambda sample: b"",
    "binary": lambda sample: bytes(range(256)) * 4,
    "UTF-16": lambda sample: sample.content.decode().encode("utf-16"),
    "without rows": _without_rows,
}
"""The bytes of a sample that is broken in a way, or looks so."""
