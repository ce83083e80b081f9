"""Writes a fitted cost model as a TOML file that people can read and `load_cost` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from cspsched.costs.estimator.profile import FittedProfile
from cspsched.costs.frontend import Frontend
from cspsched.costs.presets import cost_path
from cspsched.errors import InputError, UsageError
from cspsched.problem.cost import CONSTANT_TERMS, COST_SCHEMA, FUNCTION_TERMS
from cspsched.problem.json_io import read_text


def cost_text(fitted: FittedProfile, described: Mapping[str, str | int], written_by: str) -> str:
    """Text of a cost file.

    Parameters
    ----------
    described
        What the file says about itself: title, model, device, tensor_parallel, source, leaves_out.
    written_by
        For the first line, so that a file that a program writes is not edited by hand.
    """
    cost = fitted.cost
    lines = [f"# Written by {written_by}; do not edit."]
    lines += [f'schema = "{COST_SCHEMA}"', f"name = {json.dumps(cost.name)}"]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in described.items()]
    constants = {name: getattr(cost, name) for name in CONSTANT_TERMS}
    lines += [f'{name}_ns = "{value}"' for name, value in constants.items() if value]
    for name in FUNCTION_TERMS:
        term = getattr(cost, name)
        if not term.is_zero:
            lines += ["", f"[{name}]", f"knots = {list(term.knots)}", f"slopes_ns = {decimals(term.slopes)}"]
    lines += _table("fit_error", fitted.fit_error)
    for end, factors in fitted.band.to_json().items():
        lines += _table(f"band.{end}", factors)
    lines += _table("domain", fitted.domain.largest)
    return "\n".join(lines) + "\n"


def write_cost(
    fitted: FittedProfile, described: Mapping[str, str | int], written_by: str, path: Path
) -> None:
    """Write a cost file; arguments as in `cost_text`.

    Raises
    ------
    UsageError
        If its name does not end in `.toml`.
    InputError
        If it cannot be written.
    """
    if path.suffix != ".toml":
        raise UsageError(f"{path}: a cost file is TOML, expected a name that ends in .toml")
    try:
        path.write_text(cost_text(fitted, described, written_by), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def write_frontend(frontend: Frontend, cost: str | Path | None, written_by: str, path: Path) -> None:
    """Write a frontend, behind the cost model whose file it becomes a part of, or alone.

    Raises
    ------
    InputError
        If the file cannot be written, or the cost file cannot be read.
    """
    text = f"# Written by {written_by}; do not edit.\n"
    source = None if cost is None else cost_path(cost)
    if source is not None and source.suffix == ".toml":
        text = f"{_without_frontend(read_text(source))}\n\n"
    try:
        path.write_text(text + frontend.to_toml(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _without_frontend(text: str) -> str:
    """Text of a TOML file without the table, from its head to the next."""
    return re.sub(r"(?ms)^\[frontend\]$.*?(?=^\[|\Z)", "", text).rstrip()


def decimals(slopes: Sequence[Fraction]) -> str:
    """Slopes as a TOML list of decimal text."""
    return "[" + ", ".join(f'"{float(slope):.10g}"' for slope in slopes) + "]"


def _table(name: str, values: Mapping[str, str | int]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
