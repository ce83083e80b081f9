"""Writes the log of a running engine, one JSON line at a time, and gives up rather than disturb it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, TextIO

LOGGER = logging.getLogger(__name__)


class LogWriter:
    """A log that is being written; once something fails, nothing more is.

    Every line is handed to the system at once, so that a killed engine leaves all but its last line whole.
    An existing file is never overwritten: several engine processes need a name with `{pid}` in it.
    """

    def __init__(self, path: str | None) -> None:
        self._file: TextIO | None = None
        if path is None:
            self.stop("no file is named")
            return
        named = Path(path.replace("{pid}", str(os.getpid())))
        try:
            self._file = named.open("x", encoding="utf-8", buffering=1)
        except OSError as error:
            self.stop(f"{named}: {error.strerror}")

    @property
    def is_open(self) -> bool:
        """Whether lines are still written."""
        return self._file is not None

    def write(self, line: dict[str, Any]) -> None:
        """Write a line, or stop for good."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as error:
            self.stop(error.strerror or str(error))

    def stop(self, why: str) -> None:
        """Say once that nothing is recorded from here on."""
        LOGGER.warning("cspsched records no schedule from here on: %s", why)
        self.close()

    def close(self) -> None:
        """End the log."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                # What was still buffered could not be written; that was said above.
                return
