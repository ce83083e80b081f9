"""Cost models that ship with cspsched, by name or by model and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cspsched.costs.facts import fact_names, fact_path, read_toml
from cspsched.costs.parallelism import Parallelism
from cspsched.problem.cost import CostModel
from cspsched.problem.json_io import read_json

COST_FOLDER = "models/costs"
COST_SUFFIXES = (".toml", ".json")
DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_DEVICE = "h100"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostInfo:
    """What a cost file says about itself.

    Attributes
    ----------
    model, device, parallelism
        What was measured; None where the source does not pin it down.
    fit_error
        By operator, how well the fit meets the measurements; empty for published coefficients.
    leaves_out
        Effects that the cost model does not price.
    """

    name: str
    title: str
    model: str | None
    device: str | None
    parallelism: Parallelism | None
    source: str
    fit_error: Mapping[str, str] = field(default_factory=dict)
    leaves_out: str


def cost_names() -> list[str]:
    """Names of the cost models that ship with cspsched."""
    return fact_names(COST_FOLDER)


def load_cost(name_or_path: str | Path) -> CostModel:
    """Cost model of a shipped name, or of a TOML or JSON file.

    Raises
    ------
    UsageError
        If it is neither a shipped name nor a path that ends in `.toml` or `.json`.
    InputError
        If the file cannot be read, or is no cost model (`CostError`).
    """
    path = cost_path(name_or_path)
    return CostModel.from_json(read_cost(path), str(path))


def describe_cost(name_or_path: str | Path) -> CostInfo:
    """What a cost model is of and how good it is; same arguments and errors as `load_cost`."""
    path = cost_path(name_or_path)
    data = read_cost(path)
    cost = CostModel.from_json(data, str(path))
    return CostInfo(
        name=cost.name,
        title=str(data.get("title", cost.name)),
        model=data.get("model"),
        device=data.get("device"),
        parallelism=Parallelism.of_degrees(data, str(path)),
        source=str(data.get("source", "not named")),
        fit_error=dict(data.get("fit_error", {})),
        leaves_out=str(data.get("leaves_out", "not named")),
    )


def cost_path(name_or_path: str | Path) -> Path:
    """File of a cost model: a path that ends in `.toml` or `.json`, otherwise a shipped name."""
    if Path(name_or_path).suffix in COST_SUFFIXES:
        return Path(name_or_path)
    return fact_path("cost model", COST_FOLDER, str(name_or_path))


def read_cost(path: Path) -> Any:
    """Parsed content of a cost file, TOML or JSON by its name; errors as in `read_toml`."""
    return read_json(path) if path.suffix == ".json" else read_toml(path)
