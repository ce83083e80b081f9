"""The published JSON Schemas, and what they say of some data."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
from referencing import Registry, Resource

NAMES = ("adversary", "comparison", "explanation", "gate", "measured-runs")


def schema(name: str) -> dict[str, Any]:
    """A published JSON Schema."""
    loaded: dict[str, Any] = json.loads(
        (files("cspsched.report") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    )
    return loaded


def validate(data: Any, name: str) -> None:
    """Refuse data that its published schema refuses."""
    known = [schema(one) for one in NAMES]
    registry = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in known])
    jsonschema.Draft202012Validator(schema(name), registry=registry).validate(data)
