"""Cost models composed of measured operators when they are asked for: any model on any device with tables.

The operators are those of an installed aiconfigurator-core (the extra `aic`). What is composed is fitted like
the shipped files, and kept in the user's cache under a name that holds everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cspsched.costs.devices import Device, device_names, load_device
from cspsched.costs.models import LlmModel, usual_name
from cspsched.costs.parallelism import DEGREES, ONE_GPU, Parallelism
from cspsched.costs.presets import cost_names, describe_cost
from cspsched.costs.weights import FORMATS, PLAIN
from cspsched.errors import InputError, UsageError
from cspsched.problem.sources import source_version

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "cspsched costs compose"
DISTRIBUTION = "aiconfigurator-core"
LEAVES_OUT = (
    "CPU work between batches, sampler, embedding lookup, kernel launches outside CUDA graphs; what reading "
    "a chunk's earlier context costs beyond its attention work; interference of prefill and decode in one "
    "kernel. Elementwise kernels are derived from the memory bandwidth, not measured"
)


def default_cost(model: LlmModel, device: str, parallelism: Parallelism = ONE_GPU) -> str:
    """Cost model of a model on a device: a shipped name, or the file of one that is composed of tables.

    Raises
    ------
    UsageError
        If none is shipped, and none can be composed; names those that there are.
    """
    usual = usual_name(model.name, device, parallelism)
    if usual in cost_names():
        return usual
    measured = {
        (info.model, info.device, info.parallelism): info.name
        for info in map(describe_cost, cost_names())
        if info.device is not None and info.parallelism is not None
    }
    if (model.name, device, parallelism) in measured:
        return measured[model.name, device, parallelism]
    try:
        return str(compose_cost(model, load_device(device), parallelism))
    except InputError as reason:
        known = "; ".join(f"{m} on {d} with {how.title}" for m, d, how in sorted(measured, key=str))
        raise UsageError(
            f"no cost model was measured for {model.name} on {device} with {parallelism.title}; "
            f"there are: {known}. None can be composed: {reason}. Name another cost model "
            "or give a file of your own"
        ) from None


def compose_cost(model: LlmModel, device: Device, parallelism: Parallelism = ONE_GPU) -> Path:
    """File of a cost model, composed now if it was not before.

    Raises
    ------
    InputError
        If the extra is not installed, its tables lack the device or shapes of the model, the model's heads
        cannot be shared so, or the cache cannot be written.
    """
    from cspsched.costs.importers.aiconfigurator import installed_tables, tables_for

    if device.operator_tables is None:
        known = ", ".join(name for name in device_names() if load_device(name).operator_tables)
        raise InputError(f"no operator tables of {device.name}; there are some of {known}")
    tables = installed_tables(device.operator_tables, tables_for(model, parallelism))
    name = usual_name(model.name, device.name, parallelism)
    file = cache_folder() / _key(model, device, parallelism, tables) / f"{name}.toml"
    if not file.is_file():
        text = composed_text(model, device, parallelism, tables)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # A file appears whole or not at all: another process may look for it.
            draft = file.with_suffix(f".{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            draft.replace(file)
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}; set XDG_CACHE_HOME") from None
    return file


def cache_folder() -> Path:
    """Where composed cost models are kept; `XDG_CACHE_HOME` moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cspsched" / "costs"


def composed_text(model: LlmModel, device: Device, parallelism: Parallelism, tables: Sequence[Path]) -> str:
    """Cost file of a model on so many devices, composed of tables of one system.

    Raises
    ------
    InputError
        If the tables lack shapes of the model, or the model's heads cannot be shared so.
    """
    from cspsched.costs.estimator import fit_profile
    from cspsched.costs.estimator.write import cost_text
    from cspsched.costs.importers.aiconfigurator import AicTables

    rows = AicTables.read(tables, checked=True).rows(model, device, parallelism)
    name = usual_name(model.name, device.name, parallelism)
    fitted = fit_profile(rows, model, parallelism.tensor, name=name, pipeline_stages=parallelism.pipeline)
    number = "one" if parallelism.num_ranks == 1 else str(parallelism.num_ranks)
    stage = f"one of {parallelism.pipeline} stages of " if parallelism.pipeline > 1 else ""
    described: dict[str, str | int] = {
        "title": (
            f"{stage}{model.title} on {number} {device.title}, {_format(model)}, composed of measured kernels"
        ),
        "model": model.name,
        "device": device.name,
        **{name: n for name, n in parallelism.degrees.items() if n > 1 or name == DEGREES[0]},
        "source": f"{DISTRIBUTION} {_version()}, {device.operator_tables}: {_origins(rows)}",
        "leaves_out": LEAVES_OUT,
    }
    return cost_text(fitted, described, COMMAND)


def _format(model: LlmModel) -> str:
    """Formats of weights and KV cache, for people."""
    names = dict.fromkeys([model.weights, (model.moe and model.moe.weights) or model.weights])
    title = " and ".join(FORMATS[name].title for name in names)
    return title if model.kv_cache == PLAIN else f"{title}, {model.kv_cache} KV cache"


def _origins(rows: pd.DataFrame) -> str:
    """How each operator came about, operators of one origin together."""
    found: dict[str, list[str]] = {}
    for (operator, how), _ in rows.groupby(["op", "kernel_impl"], sort=False):
        found.setdefault(str(how), []).append(str(operator))
    return "; ".join(f"{how}: {', '.join(names)}" for how, names in found.items())


def _key(model: LlmModel, device: Device, parallelism: Parallelism, tables: Sequence[Path]) -> str:
    """Checksum of everything that a composed cost model depends on."""
    parts = {
        "model": asdict(model),
        "device": asdict(device),
        "parallelism": asdict(parallelism),
        "tables": [(str(path), path.stat().st_size) for path in tables],
        "version": _version(),
        "code": source_version(Path(__file__).parent),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "of unknown version"
