"""What the pages in docs say, and which fields of a JSON value they do not name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.support.places import DOCS

CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METRICS = "cspsched/metrics/1"
BOUNDS = "cspsched/bounds/1"
SETTINGS = "settings"
"""Its keys are those of each policy."""


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    return [code for lang, code in CODE_BLOCK.findall(text_of(name)) if lang == language]


def sections() -> dict[str, str]:
    """Text of the formats page by the schemas of its headings; lists share a section."""
    found: dict[str, str] = {}
    for section in re.split(r"^#{2,3} ", text_of("formats.md"), flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        schemas = re.findall(r"`(cspsched/[a-z-]+/\d)`", section if heading == "Lists" else heading)
        found |= dict.fromkeys(schemas, section)
    return found


def undocumented(data: Any, schema: str = "") -> Iterator[str]:
    """Keys of a JSON value, however deep, that the section of its schema does not name."""
    if isinstance(data, list):
        for value in data:
            yield from undocumented(value, schema)
    if not isinstance(data, dict):
        return
    schema = data.get("schema", schema)
    known = sections()
    text = known.get(schema, "") + known[METRICS]
    for key, value in data.items():
        if key != "schema" and f"`{key}`" not in text:
            yield f"{schema}: {key}"
        if key != SETTINGS:
            yield from undocumented(value, BOUNDS if key == "certificate_details" else schema)
