"""A profile: what a kind of traffic looks like, where the numbers come from, and how well they fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import read_json, require_schema, validation_sentences
from cspsched.resources import shipped_file, shipped_names
from cspsched.trace.generators.arrivals import Renewal
from cspsched.trace.generators.clients import Client, Population
from cspsched.trace.generators.lengths import Lengths
from cspsched.trace.generators.rate import RateShape
from cspsched.trace.generators.record import FitError, NotNegative, Positive, Record
from cspsched.trace.generators.sessions import Sessions

PROFILE_SCHEMA = "cspsched/trace-profile/1"
_FOLDER, _SUFFIX = "traces/profiles", ".json"


class Dispersion(Record):
    """Variance over mean of the arrivals in windows: of the trace, and of a long trace of the profile."""

    window_s: Positive
    trace: NotNegative
    profile: NotNegative


class Profile(Record):
    """What a kind of traffic looks like; all randomness is in the seed."""

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """Where the numbers come from, and the licence of the data."""
    fit_date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    notes: tuple[str, ...] = ()
    """What is assumed, and what the profile leaves out."""
    rate_per_s: Positive | None = None
    """Mean rate, where the caller gives none."""
    arrivals: Renewal = Renewal()
    """Rhythm once the changes of the rate are taken out."""
    arrivals_error: FitError | None = None
    rate: RateShape = RateShape()
    lengths: Lengths | None = None
    """None if the source has none."""
    clients: Annotated[tuple[Client, ...], Field(min_length=1)] | Population | None = None
    sessions: Sessions | None = None
    dispersion: tuple[Dispersion, ...] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.clients and self.sessions:
            raise ValueError("has clients and sessions, expected one of them")
        return self

    def with_lengths_of(self, other: Profile) -> Profile:
        """The same arrivals with the lengths of another profile.

        Raises
        ------
        UsageError
            If the other has none, either.
        """
        if other.lengths is None:
            raise UsageError(f"profile {other.name} has no lengths, expected one that has")
        notes = (*self.notes, f"lengths of {other.name}: {other.source}")
        return self.model_copy(update={"lengths": other.lengths, "notes": notes})

    def to_json(self) -> dict[str, Any]:
        """Plain values with a schema version, without what there is none of."""
        return {"schema": PROFILE_SCHEMA, **self.model_dump(mode="json", exclude_none=True)}

    def to_text(self) -> str:
        """Text of a JSON file, the numbers of a list on one line."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        return re.sub(r"\[[\s\d.,e+-]*\]", lambda found: "".join(found[0].split()).replace(",", ", "), text)

    @classmethod
    def from_json(cls, data: Any, where: str) -> Profile:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If it is no profile; the sentence names the key.
        """
        require_schema(data, PROFILE_SCHEMA, where)
        values = {key: value for key, value in data.items() if key != "schema"}
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(f"{where}: {validation_sentences(error)[0]}") from None


def shipped_profiles() -> list[str]:
    """Sorted names of the shipped profiles."""
    return shipped_names(_FOLDER, _SUFFIX)


def load_profile(name: str | Path) -> Profile:
    """Profile of a shipped name or of a JSON file.

    Raises
    ------
    UsageError
        If there is neither.
    InputError
        If the file is no profile.
    """
    path = shipped_file(_FOLDER, str(name), _SUFFIX) or Path(name)
    if path.suffix != _SUFFIX and not path.exists():
        raise UsageError(
            f"no shipped profile is called {str(name)!r}; there are {', '.join(shipped_profiles())} (a file "
            "of your own ends in .json)"
        )
    return Profile.from_json(read_json(path), str(path))
