"""What went wrong in a part that a result does without: a member of the portfolio, or a heuristic."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A part that was passed over, and the exception that ended it."""

    name: str
    error: str
    """Type of the exception."""
    message: str
    where: str
    """File and line that raised it, from the file's folder on."""

    @classmethod
    def of(cls, name: str, error: Exception) -> Failure:
        """The failure behind an exception that was caught."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file = Path(frame.filename)
        return cls(
            name=name,
            error=type(error).__name__,
            message=" ".join(str(error).split()),
            where=f"{file.parent.name}/{file.name}:{frame.lineno}",
        )

    @property
    def sentence(self) -> str:
        """What is passed over, and why, in one line."""
        return f"{self.name} is passed over: {self.error} at {self.where}: {self.message}"

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)
