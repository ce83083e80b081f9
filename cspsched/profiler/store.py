"""The folder of a profile: parts that survive a kill, one merged table at the end, and where it is all from.

    profile.parquet         all rows of finished runs
    part-0003-0007.parquet  rows of a run that goes on or was killed: interval between sentinels, number
    meta.json               provenance, with the sentinel series and the sha256 of profile.parquet

The Parquet files of the folder hold all rows, at any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspsched.costs.rows import COLUMNS, check_rows, read_frame
from cspsched.errors import InputError
from cspsched.problem.json_io import read_json, require_schema
from cspsched.profiler.rows import KEY_COLUMNS, Row, write_rows

if TYPE_CHECKING:
    import pandas as pd

PROFILE_SCHEMA = "cspsched/profile/1"
TABLE = "profile.parquet"
META = "meta.json"
PARTS = "part-"
Meta = dict[str, Any]


class ProfileFolder:
    """Rows and provenance of a profile on disk.

    Parameters
    ----------
    path
        The folder; made if it does not exist.

    Raises
    ------
    InputError
        If `resume` is off and the folder holds a profile already.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if not resume and ((path / TABLE).exists() or self._part_files()):
            raise InputError(f"{path} holds a profile already; go on with --resume, or give another --output")
        path.mkdir(parents=True, exist_ok=True)
        self._number = len(self._part_files())

    def rows(self) -> pd.DataFrame:
        """All rows there are, of finished and of killed runs, each once."""
        import pandas as pd

        merged = [self.path / TABLE] if (self.path / TABLE).exists() else []
        tables = [self._read(path) for path in (*merged, *self._part_files())]
        if not tables:
            return pd.DataFrame(columns=list(COLUMNS))
        # A kill between merging and tidying up leaves rows twice.
        return pd.concat(tables, ignore_index=True).drop_duplicates(list(KEY_COLUMNS), ignore_index=True)

    def meta(self) -> Meta:
        """Provenance of earlier runs; empty if there are none."""
        return read_meta(self.path) if (self.path / META).exists() else {}

    def append(self, rows: list[Row], interval: int) -> None:
        """Write rows that were measured between two sentinels, at once and whole."""
        if rows:
            # Interval first: the files of an interval can be told without opening any.
            write_rows(rows, self.path / f"{PARTS}{interval:04d}-{self._number:04d}.parquet")
            self._number += 1

    def mark_noisy(self, interval: int) -> None:
        """Flag all rows of an interval over which the sentinel drifted."""
        for path in sorted(self.path.glob(f"{PARTS}{interval:04d}-*.parquet")):
            write_rows(self._read(path).assign(noisy=1), path)

    def write_meta(self, meta: Meta) -> None:
        """Write the provenance, complete or not at all."""
        partial = self.path / f"{META}.partial"
        partial.write_text(json.dumps({"schema": PROFILE_SCHEMA, **meta}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path / META)

    def finish(self, meta: Meta) -> None:
        """Merge all parts into the table and write the provenance with its digest."""
        frame = self.rows()
        table = self.path / TABLE
        if len(frame):
            write_rows(frame, table)
            meta = {**meta, "num_rows": len(frame), "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
        self.write_meta(meta)
        for path in self._part_files():
            path.unlink()

    def _read(self, path: Path) -> pd.DataFrame:
        rows = read_frame(path)
        if list(rows.columns) != list(COLUMNS):
            raise InputError(
                f"{path} has not the columns of a profile; give another --output, or move it away"
            )
        check_rows(rows, str(path))
        return rows

    def _part_files(self) -> list[Path]:
        return sorted(self.path.glob(f"{PARTS}*.parquet"))


def read_meta(path: Path) -> Meta:
    """Provenance of a profile's folder.

    Raises
    ------
    InputError
        If there is none, or it is of another schema.
    """
    data = read_json(path / META)
    require_schema(data, PROFILE_SCHEMA, str(path / META))
    return dict(data)
