"""Rows of an operator profile: one operator at one point a row, the same columns from every source.

A row holds the time of one call of an operator on one tensor-parallel rank. Which columns say at what point
depends on the operator (`OPERATORS`):

* token operators, `lm_head` and `sampler`: `num_tokens` (for these two the requests that get a token);
* `attn_prefill`: `n_seq` prompts that process `chunk` tokens each after `kv` tokens each;
* `attn_decode`: `n_seq` decodes that read `kv_total` entries together;
* `attn_mixed`: one chunk of `chunk` tokens after `kv`, beside `n_seq` decodes that read `kv_total` together;
* ragged batches of any of the three: `batch_spec`, JSON `{"chunks": [[64, 0], [1, 512]]}` with the tokens and
  the tokens before of each request (one token after others is a decode); chunk and kv are then -1;
* `experts`: `num_tokens`, and in `batch_spec` `{"active_experts": 8}` where that was set;
* collectives: `bytes` of the message, `tp` ranks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.problem.json_io import read_json

if TYPE_CHECKING:
    import pandas as pd

Mask = npt.NDArray[np.bool_]
Feature = Literal["tokens", "sequences", "attention", "message"]
CSV = ".csv"
META = "meta.json"
PARQUET = ".parquet"
COUNTS = ("tp", "num_tokens", "chunk", "kv", "n_seq", "kv_total", "kv_max")
TEXTS = ("profile_id", "model", "family", "dtype", "op", "backend", "kernel_impl", "batch_spec")
TIMES = ("t_us", "t_min_us", "t_p10_us", "t_p90_us")
COLUMNS = (
    "profile_id", "model", "family", "tp", "dtype", "op", "backend", "kernel_impl", "num_tokens", "chunk",
    "kv", "n_seq", "kv_total", "kv_max", "kv_var", "batch_spec", "page_size", "t_us", "t_min_us", "t_p10_us",
    "t_p90_us", "iqr_us", "reps", "noisy", "flops", "bytes", "repeat_index",
)  # fmt: skip
DIGITS = re.compile(r"\d+")
BATCH_SPECS = '{{"chunks": [[64, 0], [1, 512]]}} or {{"active_experts": 8}}'
UNIT_JUMP = 300.0
"""Neighbouring points of one operator never differ by so much; units that were mixed up differ by 1000."""


class Operator(NamedTuple):
    """How an operator takes part in a batch."""

    feature: Feature
    """What its time depends on."""
    per_layer: int
    """Calls in one layer."""
    per_step: int = 0
    """Calls in a batch beside those of its layers."""


OPERATORS = {
    "embed": Operator("tokens", 0, 1),
    "input_norm": Operator("tokens", 1),
    "post_norm": Operator("tokens", 1),
    "rmsnorm": Operator("tokens", 2, 1),
    "qkv_proj": Operator("tokens", 1),
    "qk_norm": Operator("tokens", 1),
    "rope": Operator("tokens", 1),
    "kv_cache_write": Operator("tokens", 1),
    "o_proj": Operator("tokens", 1),
    "residual": Operator("tokens", 2),
    "gate_up": Operator("tokens", 1),
    "silu_mul": Operator("tokens", 1),
    "down": Operator("tokens", 1),
    "router": Operator("tokens", 1),
    "experts": Operator("tokens", 1),
    "shared_expert": Operator("tokens", 1),
    "shared_gate_up": Operator("tokens", 1),
    "shared_silu_mul": Operator("tokens", 1),
    "shared_down": Operator("tokens", 1),
    "final_norm": Operator("tokens", 0, 1),
    "dispatch": Operator("tokens", 1),
    "combine": Operator("tokens", 1),
    "lm_head": Operator("sequences", 0, 1),
    "sampler": Operator("sequences", 0, 1),
    "attn_prefill": Operator("attention", 1),
    "attn_decode": Operator("attention", 1),
    "attn_mixed": Operator("attention", 1),
    "all_reduce": Operator("message", 2),
    "all_gather": Operator("message", 0),
    "reduce_scatter": Operator("message", 0),
    "send_recv": Operator("message", 0),
}
"""Every operator of a profile: what it depends on, and how often it is called. A profile with a `final_norm`
has that for the one norm of a batch; a norm that adds its residual comes without `residual`."""


def make_rows(columns: dict[str, Any]) -> pd.DataFrame:
    """Rows with every column of the schema from those that are known (arrays or single values)."""
    import pandas as pd

    rows = pd.DataFrame(columns)
    for name in COLUMNS:
        if name not in rows:
            rows[name] = "" if name in TEXTS else 0 if name in COUNTS else np.nan
    return rows[list(COLUMNS)]


def read_rows(path: Path) -> pd.DataFrame:
    """Rows of a profile: a Parquet or CSV file, or a folder of part files.

    Raises
    ------
    InputError
        If nothing can be read, or a row makes no sense; names the file and the row.
    """
    import pandas as pd

    if path.is_dir():
        parts = sorted(part for part in path.iterdir() if part.suffix in (PARQUET, CSV))
        if not parts:
            raise InputError(f"{path} holds no {PARQUET} and no {CSV} file, expected rows of a profile")
        return pd.concat([read_rows(part) for part in parts], ignore_index=True)
    rows = read_frame(path)
    missing = [name for name in ("op", "t_us") if name not in rows]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing, so these are no rows of a profile; "
            "bring tables of other tools in with 'cspsched profile import'"
        )
    check_rows(rows, str(path))
    return make_rows(dict(rows))


def preferred_backends(path: Path) -> dict[str, tuple[str, ...]]:
    """Implementations of each operator in a profile's folder, that of its decoder first; empty elsewhere.

    Raises
    ------
    InputError
        If the folder's `meta.json` cannot be read, or names them otherwise.
    """
    meta = path / META
    if not meta.is_file():
        return {}
    data = read_json(meta)
    named = data.get("backends", {}) if isinstance(data, dict) else None
    if not isinstance(named, dict) or not all(isinstance(names, list) for names in named.values()):
        raise InputError(f"{meta}: backends are {named!r}, expected a list of names for each operator")
    return {str(operator): tuple(map(str, names)) for operator, names in named.items()}


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as CSV or Parquet, by the end of the name.

    Raises
    ------
    InputError
        If the name ends otherwise, or the file cannot be written.
    """
    if path.suffix not in (CSV, PARQUET):
        raise InputError(f"{path}: rows are written as {PARQUET} or {CSV}, expected a name that ends so")
    try:
        rows.to_csv(path, index=False) if path.suffix == CSV else rows.to_parquet(path, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def read_frame(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file as it is.

    Raises
    ------
    InputError
        If it is missing, empty, cut off or no such file at all.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"{path} is no file")
    try:
        frame = pd.read_parquet(path) if path.suffix == PARQUET else pd.read_csv(path)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        kind = "Parquet" if path.suffix == PARQUET else "CSV"
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no {kind} table can be read ({reason}); is it the right file?") from None
    if frame.empty:
        raise InputError(f"{path}: the table has no rows")
    return frame


def place_of(index: int, where: str) -> str:
    """Where a row is, for messages: a line of a CSV file, or a row counted from 1."""
    return f"{where} line {index + 2}" if where.endswith(CSV) else f"{where} row {index + 1}"


def refuse(bad: Mask, where: str, sentence: str, values: Any = None) -> None:
    """Raise for the first bad row; `{}` in the sentence stands for its value.

    Raises
    ------
    InputError
        If any row is bad.
    """
    if bad.any():
        first = int(np.argmax(bad))
        value = None if values is None else np.asarray(values, dtype=object)[first]
        raise InputError(f"{place_of(first, where)}: {sentence.format(repr(value))}")


def check_rows(rows: pd.DataFrame, where: str) -> None:
    """Refuse rows that make no sense.

    Raises
    ------
    InputError
        For an unknown operator, a time or a count that is no number, times that are not above 0, counts
        below 0, a batch that is none, and times of one operator in different units; names the file and the
        row.
    """
    operators = np.asarray(rows["op"], dtype=object)
    unknown = np.array([operator not in OPERATORS for operator in operators])
    refuse(unknown, where, f"unknown operator {{}}; known: {', '.join(OPERATORS)}", operators)
    for name in TIMES:
        if name in rows:
            times = numbers(rows[name], where, name, may_lack=name != "t_us")
            refuse(times <= 0, where, f"{name} is {{}}, expected a time above 0", times.tolist())
    for name in COUNTS:
        if name in rows:
            counts = numbers(rows[name], where, name, may_lack=True)
            # -1 stands for a count that a ragged batch does not have.
            refuse(counts < -1, where, f"{name} is {{}}, expected at least 0", counts.tolist())
    if "batch_spec" in rows:
        specs = np.asarray(rows["batch_spec"], dtype=object)
        bad = np.array([isinstance(spec, str) and not _is_batch(spec) for spec in specs])
        sentence = f"batch_spec is {{}}, expected JSON such as {BATCH_SPECS}"
        refuse(bad, where, sentence, specs)
    _refuse_mixed_units(rows, operators, where)


def _is_batch(spec: str) -> bool:
    """Whether a text is a batch: nothing, or JSON with its chunks or its active experts."""
    if not spec:
        return True
    try:
        data = json.loads(spec)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict) or not set(data) <= {"chunks", "active_experts"}:
        return False
    chunks, active = data.get("chunks", [[1, 0]]), data.get("active_experts", 1)
    pairs = isinstance(chunks, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in chunks)
    if not pairs or not chunks:
        return False
    whole = [active, *(count for pair in chunks for count in pair)]
    return (
        all(type(count) is int for count in whole)
        and active > 0
        and all(tokens > 0 and context >= 0 for tokens, context in chunks)
    )


def numbers(column: Any, where: str, name: str, *, may_lack: bool = False) -> npt.NDArray[np.float64]:
    """A column as finite numbers of shape (num_rows,).

    Raises
    ------
    InputError
        If a value is text, infinite, or missing where it may not be.
    """
    import pandas as pd

    values = pd.to_numeric(pd.Series(column).reset_index(drop=True), errors="coerce")
    found = values.to_numpy(np.float64)
    lacking = pd.isna(pd.Series(column).reset_index(drop=True)).to_numpy(np.bool_)
    bad = ~np.isfinite(found) & ~(lacking if may_lack else np.zeros(len(found), dtype=np.bool_))
    refuse(bad, where, f"{name} is {{}}, expected a number", list(column))
    return found


def refuse_mixed_units(
    groups: npt.NDArray[np.int64], sizes: npt.NDArray[np.float64], times: npt.NDArray[np.float64],
    where: str, names: npt.NDArray[np.object_],
) -> None:  # fmt: skip
    """Refuse times in different units: a point a little larger never takes hundreds of times as long.

    Parameters
    ----------
    groups, sizes, times
        Points of one group are compared; shape (num_rows,) each, times in microseconds, above 0.
    names
        What each row is of, for the message.

    Raises
    ------
    InputError
        Names the file and two rows.
    """
    # Rows of one size are sorted by time, so that only a jump between sizes counts.
    order = np.lexsort((times, sizes, groups))
    same = groups[order][1:] == groups[order][:-1]
    steps = times[order][1:] / times[order][:-1]
    growth = np.maximum(sizes[order][1:], 1) / np.maximum(sizes[order][:-1], 1)
    jumps = np.flatnonzero(same & ((steps > UNIT_JUMP * growth**2) | (steps < 1 / UNIT_JUMP)))
    if len(jumps):
        row, before = int(order[jumps[0] + 1]), int(order[jumps[0]])
        raise InputError(
            f"{place_of(row, where)}: {names[row]} takes {times[row]:g} us, and {times[before]:g} us at the "
            f"next smaller point ({place_of(before, where)}); are the times in different units?"
        )


def _refuse_mixed_units(rows: pd.DataFrame, operators: npt.NDArray[np.object_], where: str) -> None:
    """Compare the points of each operator, first those of one implementation and as many ranks."""
    import pandas as pd

    sizes = sum(
        # -1 and what is missing count nothing.
        np.maximum(np.nan_to_num(numbers(rows[name], where, name, may_lack=True)), 0)
        for name in ("num_tokens", "n_seq", "chunk", "kv", "kv_total", "bytes")
        if name in rows
    ) + np.zeros(len(rows))
    if "batch_spec" in rows:
        sizes += [_ragged_size(spec) for spec in rows["batch_spec"]]
    times = numbers(rows["t_us"], where, "t_us")
    for names in (("op", "tp", "backend"), ("op",)):
        kinds = [np.asarray(rows[name], dtype=str) for name in names if name in rows]
        groups = pd.MultiIndex.from_arrays(kinds).factorize()[0].astype(np.int64)
        refuse_mixed_units(groups, sizes, times, where, operators)


def _ragged_size(spec: Any) -> int:
    """Tokens and entries of a ragged batch; 0 for others. What makes no sense is refused when it is read."""
    if not isinstance(spec, str) or '"chunks"' not in spec:
        return 0
    return sum(map(int, DIGITS.findall(spec)))
