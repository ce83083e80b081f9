"""The state of a search as a file, so that a later run goes on where this one stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cspsched.errors import InputError
from cspsched.improve.plan import Plan, Shape
from cspsched.improve.search import LocalState, SearchState
from cspsched.problem.instance import Instance
from cspsched.problem.json_io import read_json, require_int, require_keys, require_schema, require_text
from cspsched.problem.objectives import Objective

STATE_SCHEMA = "cspsched/improve-state/3"
PLANS, VALUES = ("plan", "best", "anchor"), ("value_ns", "best_ns", "window", "steps")


def write_state(path: Path, instance: Instance, objective: Objective, state: SearchState) -> None:
    """Write a state, all or nothing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = json.dumps(state_to_json(instance, objective, state)) + "\n"
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def read_state(path: Path, instance: Instance, objective: Objective) -> SearchState:
    """Read the state of a search on this very instance and objective.

    Raises
    ------
    InputError
        If the file cannot be read, is malformed, or is of another instance or objective.
    """
    data, where = read_json(path), str(path)
    require_schema(data, STATE_SCHEMA, where)
    fingerprint = instance.fingerprint()
    for name, expected in (("fingerprint", fingerprint), ("objective", objective.value)):
        if data.get(name) != expected:
            raise InputError(
                f"{where}: {name} is {data.get(name)!r}, that of this run is {expected!r}; resume with the "
                "same trace, set-up and objective, or name another file"
            )
    return state_from_json(data, len(instance.requests), where)


def state_to_json(instance: Instance, objective: Objective, state: SearchState) -> dict[str, Any]:
    """Plain values with a schema version."""
    return {
        "schema": STATE_SCHEMA,
        "fingerprint": instance.fingerprint(),
        "objective": objective.value,
        "steps": state.steps,
        "random": _random_to_json(state.rng),
        "best_ns": state.best_ns,
        "best": None if state.best is None else state.best.to_json(),
        "found_by": state.found_by,
        "shape": None if state.shape is None else asdict(state.shape),
        "shape_ns": state.shape_ns,
        "local": None if state.local is None else _local_to_json(state.local),
    }


def state_from_json(data: dict[str, Any], num_requests: int, where: str) -> SearchState:
    """Read what `state_to_json` wrote.

    Raises
    ------
    InputError
        If a value is missing or wrong.
    """
    names = ("steps", "random", "best_ns", "best", "found_by", "shape", "shape_ns", "local")
    require_keys(data, where, required=names)
    state = SearchState(
        rng=_random_from_json(data["random"], f"{where}: random"),
        steps=_count(data, "steps", where),
        found_by=require_text(data, "found_by", where),
        shape_ns=_count(data, "shape_ns", where),
    )
    if state.steps:
        state.best_ns = _count(data, "best_ns", where)
        state.best = Plan.from_json(data["best"], num_requests, f"{where}: best")
        state.shape = Shape.from_json(data["shape"], f"{where}: shape")
    if data["local"] is not None:
        state.local = _local_from_json(data["local"], num_requests, f"{where}: local")
    return state


def _local_to_json(local: LocalState) -> dict[str, Any]:
    return {
        **{name: getattr(local, name).to_json() for name in PLANS},
        **{name: getattr(local, name) for name in VALUES},
        "history_ns": local.history_ns,
    }


def _local_from_json(data: Any, num_requests: int, where: str) -> LocalState:
    require_keys(data, where, required=(*PLANS, *VALUES, "history_ns"), optional=())
    history_ns = data["history_ns"]
    if not isinstance(history_ns, list) or not history_ns or any(type(one) is not int for one in history_ns):
        raise InputError(f"{where}: history_ns must be a list of whole numbers")
    read: dict[str, Any] = {
        name: Plan.from_json(data[name], num_requests, f"{where}: {name}") for name in PLANS
    }
    read |= {name: _count(data, name, where) for name in VALUES}
    return LocalState(**read, history_ns=history_ns)


def _count(data: dict[str, Any], key: str, where: str) -> int:
    value = require_int(data, key, where)
    if value < 0:
        raise InputError(f"{where}: {key} is {value}, expected at least 0")
    return value


def _random_to_json(rng: np.random.Generator) -> dict[str, int]:
    """State of a PCG64 generator as whole numbers."""
    state: Any = rng.bit_generator.state
    return {**state["state"], "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def _random_from_json(data: Any, where: str) -> np.random.Generator:
    names = ("state", "inc", "has_uint32", "uinteger")
    require_keys(data, where, required=names, optional=())
    words = {name: _count(data, name, where) for name in names}
    most = {"state": 2**128, "inc": 2**128, "has_uint32": 2, "uinteger": 2**32}
    if any(words[name] >= most[name] for name in names):
        raise InputError(f"{where}: no state of a PCG64 generator")
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": words["state"], "inc": words["inc"]},
        "has_uint32": words["has_uint32"],
        "uinteger": words["uinteger"],
    }
    return np.random.Generator(bits)
