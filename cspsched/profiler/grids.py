"""Which points are measured, and in which order: a grid file, read and laid out for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cspsched.costs.facts import fact_names, fact_path, read_toml
from cspsched.costs.models import LlmModel
from cspsched.errors import InputError
from cspsched.problem.json_io import require_keys
from cspsched.profiler.backends import DENSE
from cspsched.profiler.operators import Family, Operator, operators_of
from cspsched.profiler.points import Chunk, Point, tokens_chunk

GRID_FOLDER = "profiling/grids"
RAGGED_SIGMA = (0.4, 1.4)
"""Spread of the logarithm of ragged lengths: the longest of 32 is 2 to 14 times the mean."""
Section = TypeVar("Section")
Batches = list[tuple[Chunk, ...]]


class Tier(IntEnum):
    """What comes first: a run that is cut short has all that is above."""

    COARSE = 0
    FINE = 1
    ALTERNATIVE = 2
    """Other implementations of the same operator, on the whole grid."""


class Planned(NamedTuple):
    """A point and how early it is measured."""

    tier: Tier
    point: Point


@dataclass(frozen=True, kw_only=True)
class CountGrid:
    """Counts of tokens or of rows; `random` more are drawn log-uniformly up to `max`."""

    coarse: tuple[int, ...]
    fine: tuple[int, ...]
    random: int = 0
    max: int = 0


@dataclass(frozen=True, kw_only=True)
class PrefillGrid:
    """Single chunks by context, equal batches of fresh prompts, ragged draws."""

    coarse_chunks: tuple[int, ...]
    coarse_contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    contexts: tuple[int, ...]
    coarse_batches: tuple[int, ...]
    batches: tuple[int, ...]
    batch_chunks: tuple[int, ...]
    ragged: int


@dataclass(frozen=True, kw_only=True)
class DecodeGrid:
    """Equal batches by context, ragged draws of the same means."""

    coarse_batches: tuple[int, ...]
    coarse_contexts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    ragged: int


@dataclass(frozen=True, kw_only=True)
class MixedGrid:
    """Draws of one chunk beside ragged decodes."""

    draws: int
    max_chunk: int
    max_context: int
    max_decodes: int
    mean_decode_context: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid file; `digest` is that of its text and tells grids apart in a profile's provenance."""

    name: str
    digest: str
    max_kv_tokens: int
    max_prefill_tokens: int
    tokens: CountGrid
    sequences: CountGrid
    prefill: PrefillGrid
    decode: DecodeGrid
    mixed: MixedGrid


def load_grid(name_or_path: str) -> Grid:
    """Grid of a shipped name (`gpu`, `cpu`, `smoke`), or of a TOML file.

    Raises
    ------
    UsageError
        If nothing of that name ships.
    InputError
        If the file is no grid.
    """
    is_path = name_or_path.endswith(".toml")
    path = Path(name_or_path) if is_path else fact_path("grid", GRID_FOLDER, name_or_path)
    data = read_toml(path)
    limits, sections = ("max_kv_tokens", "max_prefill_tokens"), tuple(SECTIONS)
    require_keys(data, str(path), required=(*limits, *sections), optional=("title",))
    values: dict[str, Any] = {name: _count(data[name], f"{path}: {name}") for name in limits}
    values |= {name: _section(kind, data[name], f"{path}: {name}") for name, kind in SECTIONS.items()}
    return Grid(name=path.stem, digest=hashlib.sha256(path.read_bytes()).hexdigest(), **values)


def grid_names() -> list[str]:
    """Names of the grids that ship."""
    return fact_names(GRID_FOLDER)


def plan_points(
    grid: Grid,
    model: LlmModel,
    tensor_parallel: Sequence[int],
    backends: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> list[Planned]:
    """All points of a grid in the order of measuring: tier, degree of parallelism, then at random.

    Random order keeps a drift of the clock from looking like an effect of size.

    Parameters
    ----------
    backends
        For each operator its implementations, first the one that the decoder runs; none leaves it out.
    """
    rng = np.random.default_rng(seed)
    layout = _layout(grid, model, rng)
    planned: list[Planned] = []
    for tier, degree in product(Tier, tensor_parallel):
        group = [
            Point(operator.name, degree, backend, chunks, experts)
            for operator in operators_of(model)
            for batch_tier, chunks, experts in layout[operator.name]
            for backend in _backends(backends.get(operator.name, ()), tier, batch_tier)
            if _suits(operator, backend, chunks)
        ]
        order = rng.permutation(len(group))
        planned += [Planned(tier, group[k]) for k in order]
    return planned


def _backends(names: Sequence[str], tier: Tier, batch_tier: Tier) -> Sequence[str]:
    """Implementations that are due for a batch in a tier."""
    if tier is Tier.ALTERNATIVE:
        return names[1:]
    return names[:1] if tier is batch_tier else ()


def _suits(operator: Operator, backend: str, chunks: Sequence[Chunk]) -> bool:
    """Dense kernels take fresh prompts of one length only."""
    is_fresh = len(set(chunks)) == 1 and chunks[0].context == 0
    return operator.family is not Family.PREFILL or backend not in DENSE or is_fresh


Layout = list[tuple[Tier, tuple[Chunk, ...], int]]


def _layout(grid: Grid, model: LlmModel, rng: np.random.Generator) -> dict[str, Layout]:
    """For each operator its batches with their tiers, and the experts that are active."""
    by_family = {
        Family.TOKEN: _counts(grid.tokens, rng),
        Family.SEQUENCE: [
            (tier, (Chunk(1, 0),) * chunks[0].tokens) for tier, chunks in _counts(grid.sequences, rng)
        ],
        Family.PREFILL: _tiered(_coarse_prefills(grid), _fine_prefills(grid, rng)),
        Family.DECODE: _tiered(_coarse_decodes(grid), _fine_decodes(grid, rng)),
        Family.MIXED: _tiered([], _mixed(grid, rng)),
    }
    layout = {
        operator.name: [(tier, chunks, 0) for tier, chunks in by_family[operator.family]]
        for operator in operators_of(model)
    }
    if "experts" in layout:
        layout["experts"] = list(_with_experts(by_family[Family.TOKEN], model))
    return layout


def _with_experts(batches: Iterable[tuple[Tier, tuple[Chunk, ...]]], model: LlmModel) -> Iterator[Any]:
    """Tokens spread over all experts, over a quarter of them, or over as few as a token needs."""
    assert model.moe is not None
    least, most = model.moe.experts_per_token, model.moe.num_experts
    for tier, chunks in batches:
        reach = min(most, chunks[0].tokens * least)
        for active in sorted({least, max(least, reach // 4), reach}):
            yield tier, chunks, active


def _tiered(coarse: Batches, fine: Batches) -> list[tuple[Tier, tuple[Chunk, ...]]]:
    """Batches with their tiers, each once."""
    first = dict.fromkeys(coarse)
    rest = dict.fromkeys(batch for batch in fine if batch not in first)
    return [*((Tier.COARSE, batch) for batch in first), *((Tier.FINE, batch) for batch in rest)]


def _counts(grid: CountGrid, rng: np.random.Generator) -> list[tuple[Tier, tuple[Chunk, ...]]]:
    drawn = np.exp(rng.uniform(0, np.log(max(grid.max, 1)), grid.random)).astype(int)
    fine = [*grid.fine, *map(int, drawn)]
    return _tiered([tokens_chunk(n) for n in grid.coarse], [tokens_chunk(n) for n in fine])


def _coarse_prefills(grid: Grid) -> Batches:
    prefill = grid.prefill
    batches = _single_chunks(grid, prefill.coarse_chunks, prefill.coarse_contexts)
    return batches + _equal_prompts(grid, prefill.coarse_batches)


def _fine_prefills(grid: Grid, rng: np.random.Generator) -> Batches:
    prefill = grid.prefill
    batches = _single_chunks(grid, prefill.chunks, prefill.contexts) + _equal_prompts(grid, prefill.batches)
    for _ in range(prefill.ragged):
        size, mean = (int(rng.choice(values)) for values in (prefill.batches, prefill.batch_chunks))
        batches.append(tuple(Chunk(length, 0) for length in ragged_lengths(rng, size, mean)))
    return [batch for batch in batches if _fits(grid, batch)]


def _single_chunks(grid: Grid, chunks: Iterable[int], contexts: Iterable[int]) -> Batches:
    pairs = product(chunks, contexts)
    return [(Chunk(c, n),) for c, n in pairs if c + n <= grid.max_prefill_tokens]


def _equal_prompts(grid: Grid, batches: Iterable[int]) -> Batches:
    pairs = product(batches, grid.prefill.batch_chunks)
    return [(Chunk(length, 0),) * size for size, length in pairs if size * length <= grid.max_prefill_tokens]


def _coarse_decodes(grid: Grid) -> Batches:
    return _equal_decodes(grid, grid.decode.coarse_batches, grid.decode.coarse_contexts)


def _fine_decodes(grid: Grid, rng: np.random.Generator) -> Batches:
    decode = grid.decode
    batches = _equal_decodes(grid, decode.batches, decode.contexts)
    equal = [batch for batch in batches if len(batch) > 1]
    for k in rng.integers(len(equal), size=decode.ragged):
        contexts = ragged_lengths(rng, len(equal[k]), equal[k][0].context)
        batches.append(tuple(Chunk(1, context) for context in contexts))
    return [batch for batch in batches if _fits(grid, batch)]


def _equal_decodes(grid: Grid, batches: Iterable[int], contexts: Iterable[int]) -> Batches:
    equal = [(Chunk(1, context),) * size for size, context in product(batches, contexts)]
    return [batch for batch in equal if _fits(grid, batch)]


def _mixed(grid: Grid, rng: np.random.Generator) -> Batches:
    """One chunk first, then the decodes."""
    mixed, batches = grid.mixed, []
    for _ in range(mixed.draws):
        chunk = int(np.exp(rng.uniform(np.log(min(64, mixed.max_chunk)), np.log(mixed.max_chunk))))
        context = int(rng.integers(2)) * int(rng.integers(1, mixed.max_context + 1))
        decodes = int(np.exp(rng.uniform(0, np.log(mixed.max_decodes))))
        contexts = ragged_lengths(rng, decodes, mixed.mean_decode_context)
        batches.append((Chunk(chunk, context), *(Chunk(1, n) for n in contexts)))
    return [batch for batch in batches if _fits(grid, batch)]


def ragged_lengths(rng: np.random.Generator, size: int, mean: int) -> list[int]:
    """Log-normal lengths, each at least 1, whose sum is otherwise at most size x mean; in a random order."""
    drawn = rng.lognormal(0, rng.uniform(*RAGGED_SIGMA), size)
    return [max(1, int(value)) for value in drawn * (mean / drawn.mean())]


def _fits(grid: Grid, batch: Iterable[Chunk]) -> bool:
    return sum(chunk.tokens + chunk.context for chunk in batch) <= grid.max_kv_tokens + len(tuple(batch))


SECTIONS: dict[str, type] = {
    "tokens": CountGrid,
    "sequences": CountGrid,
    "prefill": PrefillGrid,
    "decode": DecodeGrid,
    "mixed": MixedGrid,
}


def _section(kind: type[Section], data: Any, where: str) -> Section:
    """A table with exactly the fields of a section, whole numbers or lists of them."""
    names = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    optional = ("random", "max")
    require_keys(data, where, required=[name for name in names if name not in optional], optional=optional)
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in names:
            raise InputError(f"{where}: unknown key {name!r}")
        is_list = str(names[name].type).startswith("tuple")
        values[name] = _counts_of(value, f"{where}.{name}") if is_list else _count(value, f"{where}.{name}")
    return kind(**values)


def _counts_of(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {value!r}, expected a list of whole numbers")
    return tuple(_count(item, where) for item in value)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{where} is {value!r}, expected a whole number of at least 0")
    return value
