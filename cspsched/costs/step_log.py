"""Reads the iteration log of a running vLLM: how long each batch took, without any profiling of operators.

The log is what vLLM prints with `--enable-logging-iteration-details`: `Iteration(12): 1 context requests, 64
context tokens, 8 generation requests, 8 generation tokens, iteration elapsed time: 7.25 ms, ...`. It tells
counts of a batch and nothing of its contexts, so the time of attention over them goes into the other terms.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cspsched.costs.fit import Measurements, batch_features
from cspsched.errors import InputError
from cspsched.problem.json_io import read_text

NS_PER_MS = 1e6
MARK = "Iteration("
LINE = re.compile(
    r"Iteration\((?P<number>\d+)\): (?P<context_requests>\d+) context requests, "
    r"(?P<context_tokens>\d+) context tokens, (?P<generation_requests>\d+) generation requests, "
    r"(?P<generation_tokens>\d+) generation tokens, iteration elapsed time: (?P<elapsed>[0-9.]+) ms"
)


def read_iteration_log(path: Path) -> Measurements:
    """Batches of a log, those without any request left out.

    Raises
    ------
    InputError
        If the file cannot be read, holds no iteration, or one that is cut off or took no time.
    """
    found: list[tuple[int, int, int, int, float]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if MARK in line:
            entry = _entry(line, f"{path} line {number}")
            if entry[1] + entry[3]:
                found.append(entry)
    if not found:
        raise InputError(
            f"{path} holds no iterations; start vLLM with --enable-logging-iteration-details and give its log"
        )
    counts = np.array([entry[:4] for entry in found], dtype=np.int64)
    prefills, prefill_tokens, decodes, decode_tokens = counts.T
    features = batch_features(
        tokens=prefill_tokens + decode_tokens,
        prefill_tokens=prefill_tokens,
        num_prefills=prefills,
        num_decodes=decodes,
        num_generating=decodes,
    )
    return Measurements(features=features, times_ns=np.array([entry[4] for entry in found]) * NS_PER_MS)


def _entry(line: str, where: str) -> tuple[int, int, int, int, float]:
    match = LINE.search(line)
    if match is None:
        raise InputError(f"{where}: an iteration of another form, or cut off: {line.strip()[:80]!r}")
    elapsed = float(match["elapsed"]) if match["elapsed"].count(".") <= 1 else 0.0
    counts = [int(match[name]) for name in ("context_requests", "context_tokens", "generation_requests")]
    tokens = int(match["generation_tokens"])
    if elapsed <= 0 and counts[1] + tokens:
        raise InputError(f"{where}: elapsed time is {match['elapsed']} ms, expected more than 0")
    return counts[0], counts[1], counts[2], tokens, elapsed
