"""Rows of requests that failed: left out, and told."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cspsched.errors import TraceError
from cspsched.problem.cost import IntArray
from cspsched.trace.format import TraceFormat
from cspsched.trace.table import Table

_NO_TOKENS = re.compile(r"\s*(?:0+(?:\.0*)?)?\s*")
_NO_ERROR = ("", "null", "None")


def without_failed_rows(table: Table, made: TraceFormat) -> tuple[Table, IntArray]:
    """The table with a note of what failed, and the rows that did not.

    Raises
    ------
    TraceError
        If all failed.
    """
    rows = table.all_rows
    if made.failure is None:
        return table, rows
    failed, signs = np.zeros(table.num_rows, dtype=bool), []
    error = made.failure.error_column
    for name in table.columns if error else ():
        if name == error or name.startswith(f"{error}."):
            is_set = np.array([text.strip() not in _NO_ERROR for text in table.columns[name].texts(rows)])
            failed |= is_set
            signs += [f"{error} is set"] if is_set.any() else []
    if made.failure.no_output:
        no_output = _no_output(table, made.output_column, rows)
        signs += [f"{made.output_column} is 0 or missing"] if (no_output & ~failed).any() else []
        failed |= no_output
    if not failed.any():
        return table, rows
    what = f"{failed.sum():,} of {table.num_rows:,} requests failed ({', '.join(dict.fromkeys(signs))})"
    if failed.all():
        raise TraceError(f"{table.source}: {what}, expected at least one that did not")
    return replace(table, notes=(*table.notes, f"{what} and are left out")), rows[~failed]


def _no_output(table: Table, column: str, rows: IntArray) -> npt.NDArray[np.bool_]:
    plain = table.columns[column].whole_numbers(rows)
    if plain is not None:
        return np.asarray(plain == 0)
    return np.array([_NO_TOKENS.fullmatch(text) is not None for text in table.columns[column].texts(rows)])
