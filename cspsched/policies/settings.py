"""Settings of policies: frozen dataclasses read from text such as `max_num_seqs=256,watermark=0.01`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from types import NoneType, UnionType
from typing import Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from cspsched.errors import UsageError


class DataclassInstance(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Settings = TypeVar("Settings", bound=DataclassInstance)

BOOLEANS = {
    "true": True,
    "on": True,
    "yes": True,
    "1": True,
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""Types that a value of a setting may have, beside an enumeration of texts, and what they are called."""


def split_settings(text: str, policy: str) -> dict[str, str]:
    """Keys and values of `key=value,key=value`; dashes in keys are underscores.

    Raises
    ------
    UsageError
        If a part is no `key=value`, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.lstrip("-").replace("-", "_")
        if not equals or not key or not value:
            raise UsageError(f"policy {policy!r}: setting {part!r} is no key=value, such as max_num_seqs=256")
        if key in pairs:
            raise UsageError(f"policy {policy!r}: setting {key!r} is given twice")
        pairs[key] = value
    return pairs


def read_settings(settings_type: type[Settings], texts: Mapping[str, str], policy: str) -> Settings:
    """Build the settings of a policy from texts; a field's metadata may name `aliases`.

    Raises
    ------
    UsageError
        If a name is unknown (the nearest is named), is given under two names, or a value is of another type
        or out of range.
    """
    names = _field_of_name(settings_type)
    hints = get_type_hints(settings_type)
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in names:
            known = ", ".join(field.name for field in fields(settings_type))
            raise UsageError(
                f"policy {policy!r} has no setting {key!r}{nearest(key, names)}; it knows: {known}"
            )
        field = names[key]
        if field in values:
            raise UsageError(f"policy {policy!r}: {key!r} is another name of {field!r}, which is given too")
        values[field] = _read_value(text, hints[field], f"policy {policy!r}: {key}")
    return settings_type(**values)


def describe_settings(settings: DataclassInstance) -> str:
    """The settings that differ from the defaults, as text that `split_settings` reads; empty if none does."""
    parts = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            parts.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return ",".join(parts)


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A question after the nearest known name, or nothing if none is near."""
    by_letters = {one.lower(): one for one in known}
    match = get_close_matches(name.lower(), list(by_letters), n=1)
    return f", did you mean {by_letters[match[0]]!r}?" if match else ""


def require_at_least(settings: DataclassInstance, minimum: int, *names: str, policy: str) -> None:
    """Refuse fields below a minimum; None means not set.

    Raises
    ------
    UsageError
        If one of the fields is below.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise UsageError(f"policy {policy!r}: {name} is {value}, expected at least {minimum}")


def require_fraction(settings: DataclassInstance, name: str, policy: str) -> None:
    """Refuse a field outside 0 <= x < 1.

    Raises
    ------
    UsageError
        If it is outside.
    """
    value = getattr(settings, name)
    if not 0 <= value < 1:
        raise UsageError(f"policy {policy!r}: {name} is {value}, expected at least 0 and below 1")


def _field_of_name(settings_type: type[DataclassInstance]) -> dict[str, str]:
    """Field of every name and alias."""
    names = {field.name: field.name for field in fields(settings_type)}
    for field in fields(settings_type):
        names |= dict.fromkeys(field.metadata.get("aliases", ()), field.name)
    return names


def _read_value(text: str, hint: Any, where: str) -> Any:
    """A value of the hinted type: int, float, bool, an enumeration of texts, or one of them or None."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        hint = next(option for option in get_args(hint) if option is not NoneType)
    is_choice = isinstance(hint, type) and issubclass(hint, StrEnum)
    if not is_choice and hint not in EXPECTED:
        raise UsageError(
            f"{where} has type {hint}, which no text is read as; use int, float, bool, str or a StrEnum"
        )
    expected = "one of " + ", ".join(hint) if is_choice else EXPECTED[hint]
    near = nearest(text, [str(choice) for choice in hint]) if is_choice else ""
    read = partial(BOOLEANS.__getitem__, text.lower()) if hint is bool else partial(hint, text)
    try:
        return read()
    except (ValueError, KeyError):
        raise UsageError(f"{where} is {text!r}, expected {expected}{near}") from None
