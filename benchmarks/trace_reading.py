"""CPU time of reading a trace of a million requests, from the file to the columns, with the values checked.

Usage: python benchmarks/trace_reading.py [--requests N] [--repeat N] [--json FILE]

The same requests as native CSV, gzip, Parquet, Azure CSV and JSON lines of LLMServingSim. The best of the
repeats counts, after a first reading of few requests that loads what it needs. Reading has to give back the
arrivals to the nanosecond, the lengths and the names.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cspsched.problem.columns import RequestColumns, Requests
from cspsched.trace import read_trace
from cspsched.trace.detect import format_called
from cspsched.trace.write import write_trace

SEED = 1
FILES = {
    "native CSV": ("native", "native.csv"),
    "native CSV, gzip": ("native", "native.csv.gz"),
    "native Parquet": ("native", "native.parquet"),
    "Azure CSV": ("azure", "azure.csv"),
    "LLMServingSim JSON lines": ("llmservingsim", "lines.jsonl"),
}


def drawn(count: int) -> Requests:
    """Poisson arrivals of 100 requests/s in whole nanoseconds, lognormal lengths."""
    rng = np.random.default_rng(SEED)
    arrival_ns = np.cumsum(rng.exponential(1e7, count)).astype(np.int64)
    columns = RequestColumns.of_fields(
        request_id=[f"r{k}" for k in range(count)],
        arrival_ns=arrival_ns - arrival_ns[0],
        prompt_tokens=1 + rng.lognormal(6, 1, count).astype(np.int64),
        output_tokens=1 + rng.lognormal(5, 1, count).astype(np.int64),
    )
    return Requests(columns)


def best_cpu_s(path: Path, expected: Requests, repeat: int) -> float:
    """Best CPU time of so many readings, each with the right requests."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        read = read_trace(path).requests
        times.append(time.process_time() - start)
        assert isinstance(read, Requests)
        for name in ("arrival_ns", "prompt_tokens", "output_tokens"):
            assert np.array_equal(getattr(read.columns, name), getattr(expected.columns, name)), name
        assert read.columns.request_id == expected.columns.request_id
    return min(times)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    requests, few, rows = drawn(arguments.requests), drawn(10_000), []
    with TemporaryDirectory() as folder:
        for title, (name, file) in FILES.items():
            path = Path(folder) / file
            write_trace(few, path, format_called(name))
            best_cpu_s(path, few, 1)
            write_trace(requests, path, format_called(name))
            size_mb = path.stat().st_size / 1e6
            cpu_s = best_cpu_s(path, requests, arguments.repeat)
            rows.append({"file": title, "requests": arguments.requests, "MB": size_mb, "cpu_s": cpu_s})
            print(
                f"{title:26} {arguments.requests:>9,} requests {size_mb:6.1f} MB {cpu_s:6.2f} CPU s",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
