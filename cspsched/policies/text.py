"""The grammar of a policy in a command: `[LABEL=]NAME[:SETTINGS]` or `[LABEL=]FILE.py:CLASS[:SETTINGS]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cspsched.errors import UsageError

_IN_FILE = re.compile(r"(?P<path>.+?\.py)(?::(?P<attribute>[^:]*))?(?::(?P<settings>.*))?", re.DOTALL)
_LABEL = re.compile(r"[\w.+@-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A text in its parts.

    Attributes
    ----------
    label
        What results call the policy; None if that is the policy's own affair.
    name
        Name in the registry, or file and class.
    file, attribute
        The user's own file, and the name of the class in it; None and empty for a policy of the registry.
    settings
        What stands behind the last colon; empty if nothing does.
    """

    label: str | None
    name: str
    file: Path | None = None
    attribute: str = ""
    settings: str

    @classmethod
    def read(cls, text: str) -> PolicyText:
        """Take a text apart.

        An equals sign before any colon ends a label, unless a slash stands before it: that is a path.

        Raises
        ------
        UsageError
            If the label is empty or has other characters than letters, digits and . + @ - _.
        """
        label, policy = _split_label(text.strip())
        match = _IN_FILE.fullmatch(policy)
        if match is None:
            name, _, settings = policy.partition(":")
            return cls(label=label, name=name, settings=settings)
        file, attribute = Path(match["path"]), match["attribute"] or ""
        return cls(
            label=label,
            name=f"{file}:{attribute}",
            file=file,
            attribute=attribute,
            settings=match["settings"] or "",
        )

    def __str__(self) -> str:
        return "=".join(filter(None, (self.label, ":".join(filter(None, (self.name, self.settings))))))


def _split_label(text: str) -> tuple[str | None, str]:
    label, equals, policy = text.partition("=")
    if not equals or ":" in label or "/" in label:
        return None, text
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"policy {text!r}: the label {label!r} is none, expected letters, digits and . + @ - _ before "
            "the equals sign, such as base=vllm:max_num_seqs=16"
        )
    return label, policy.strip()
