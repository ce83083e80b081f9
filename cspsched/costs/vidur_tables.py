"""Batch time as Vidur composes it from its tables (microsoft/vidur@7d47513): the float table-cost mode.

The composition knows the square root of a sum of squared chunks and a rounded mean, so it is no sum of the
terms of `problem.cost`: no solver and no bound prices with it. It serves to replay Vidur's own runs.

A table is an array of milliseconds per layer with one array of keys for each of its axes, as in the `.npz`
files of the recorded runs: `attn_rope` with `attn_rope__num_tokens`, `attn_decode` with `attn_decode__batch`
and `attn_decode__kv`, `attn_prefill` with `attn_prefill__kv` and `attn_prefill__chunk`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.units import ceil_div

TOKEN_MULTIPLE = 8
"""Token counts are rounded up to a multiple of this before most tables are asked."""
KV_MULTIPLE = 64
"""KV lengths are rounded up to a multiple of this before the attention tables are asked."""
S_PER_MS = 1e-3
LAYER_OPERATORS = (
    "attn_pre_proj", "attn_post_proj", "attn_rope", "input_layernorm",
    "mlp_up_proj", "mlp_down_proj", "mlp_act", "add",
)  # fmt: skip
POST_NORM = "post_attention_layernorm"

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurModel:
    """What the composition must know beside the tables.

    Attributes
    ----------
    num_layers, tensor_parallel, pipeline_stages
        Layers of the whole model, and over how many devices and stages they are spread.
    is_gqa
        Whether there are fewer KV heads than query heads.
    has_post_norm
        Whether a layer has a norm after its attention.
    decode_overhead, prefill_overhead
        Share added to attention over several requests with grouped queries.
    launch_ms, skew_ms
        Added to an all-reduce: once, and times tensor_parallel to the power of 1.25.
    """

    num_layers: int
    tensor_parallel: int = 1
    pipeline_stages: int = 1
    is_gqa: bool = False
    has_post_norm: bool = True
    decode_overhead: float = 0.1
    prefill_overhead: float = 0.1
    launch_ms: float = 0.02
    skew_ms: float = 0.0


class VidurTables:
    """Tables of one model, device and parallelism.

    Parameters
    ----------
    tables
        Arrays by name, with their keys.
    model
        How the operators are put together.
    where
        Where the tables are from, for messages.

    Raises
    ------
    InputError
        If a table that the model needs is missing or malformed.
    """

    def __init__(self, tables: Mapping[str, npt.NDArray[np.generic]], model: VidurModel, where: str) -> None:
        self._where = where
        self._model = model
        names = (*LAYER_OPERATORS, *((POST_NORM,) if model.has_post_norm else ()))
        by_tokens = [_token_table(tables, name, where) for name in names]
        if model.tensor_parallel > 1:
            overhead = model.launch_ms + model.skew_ms * model.tensor_parallel**1.25
            by_tokens += [_token_table(tables, "all_reduce", where) + overhead] * 2
        self._kv_save = _token_table(tables, "attn_kv_cache_save", where)
        self._max_tokens = min(map(len, [*by_tokens, self._kv_save]))
        self._layer: Table = np.sum([table[: self._max_tokens] for table in by_tokens], axis=0)
        self._decode = _table(tables, "attn_decode", (_counts("batch"), _multiples("kv")), where)
        self._prefill = _table(tables, "attn_prefill", (_multiples("kv"), _counts("chunk")), where)
        staged = model.pipeline_stages > 1
        self._send = _token_table(tables, "send_recv", where) if staged else np.zeros(self._max_tokens)

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return self._model.pipeline_stages

    @classmethod
    def read(cls, path: Path, model: VidurModel) -> VidurTables:
        """Tables of an `.npz` file; nothing in it is ever unpickled.

        Raises
        ------
        InputError
            If the file cannot be read, or a table is missing or malformed.
        """
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it is a single array")
            with loaded:
                tables = {name: loaded[name] for name in loaded.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: no tables can be read, expected an .npz file ({error})") from None
        return cls(tables, model, str(path))

    def stage_times_s(self, prefills: Sequence[tuple[int, int]], decodes: Sequence[int]) -> list[float]:
        """Seconds that a batch takes on each pipeline stage.

        Parameters
        ----------
        prefills
            For each prefill its tokens in the batch, and those processed before.
        decodes
            For each decode the tokens processed before, the last generated one included.

        Raises
        ------
        InputError
            If the batch is larger than the tables (a KeyError in Vidur).
        """
        num_tokens = sum(tokens for tokens, _ in prefills) + len(decodes)
        rounded = ceil_div(num_tokens, TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        if rounded > self._max_tokens:
            raise self._beyond(f"{num_tokens} tokens", f"{self._max_tokens} tokens")
        layer_ms = self._layer[rounded - 1] + self._kv_save[num_tokens - 1]
        layer_ms += self._decode_ms(decodes) + self._prefill_ms(prefills)
        stages = self._model.pipeline_stages
        stage_ms = float(layer_ms) * (self._model.num_layers / stages)
        sending_ms = stage_ms + float(self._send[rounded - 1])
        return [sending_ms * S_PER_MS] * (stages - 1) + [stage_ms * S_PER_MS]

    def _decode_ms(self, decodes: Sequence[int]) -> float:
        """Attention of the decodes: their number, and their mean length cut to an integer and rounded up."""
        if not decodes:
            return 0.0
        kv = ceil_div(int(sum(decodes) / len(decodes)), KV_MULTIPLE)
        most, longest = self._decode.shape
        if len(decodes) > most or kv >= longest:
            what = f"{len(decodes)} decodes of {kv * KV_MULTIPLE} tokens"
            raise self._beyond(what, f"{most} decodes of {(longest - 1) * KV_MULTIPLE} tokens")
        overhead = self._model.decode_overhead if self._model.is_gqa and len(decodes) > 1 else 0.0
        return float(self._decode[len(decodes) - 1, kv]) * (1 + overhead)

    def _prefill_ms(self, prefills: Sequence[tuple[int, int]]) -> float:
        """Attention of the prefills: their rounded lengths summed, and the root of their squares summed."""
        if not prefills:
            return 0.0
        kv = sum(ceil_div(before, KV_MULTIPLE) for _, before in prefills)
        chunk = round(math.sqrt(sum(tokens * tokens for tokens, _ in prefills)))
        longest, most = self._prefill.shape
        if chunk > most or kv >= longest:
            what = f"a prefill of {chunk} tokens after {kv * KV_MULTIPLE}"
            raise self._beyond(what, f"{most} tokens after {(longest - 1) * KV_MULTIPLE}")
        overhead = self._model.prefill_overhead if self._model.is_gqa and len(prefills) > 1 else 0.0
        return float(self._prefill[kv, chunk - 1]) * (1 + overhead)

    def _beyond(self, what: str, most: str) -> InputError:
        return InputError(f"{self._where}: a batch counts as {what}, the tables end at {most}")


def _counts(axis: str) -> tuple[str, int, int]:
    return axis, 1, 1


def _multiples(axis: str) -> tuple[str, int, int]:
    return axis, 0, KV_MULTIPLE


def _token_table(tables: Mapping[str, npt.NDArray[np.generic]], name: str, where: str) -> Table:
    return _table(tables, name, (_counts("num_tokens"),), where)


def _table(
    tables: Mapping[str, npt.NDArray[np.generic]],
    name: str,
    axes: Sequence[tuple[str, int, int]],
    where: str,
) -> Table:
    """A table whose axes (name, first key, step) have exactly the keys that look-ups by position rely on."""
    if name not in tables:
        raise InputError(f"{where}: table {name!r} is missing")
    values = np.asarray(tables[name])
    if values.dtype.kind not in "fiu" or values.ndim != len(axes) or not values.size:
        raise InputError(
            f"{where}: table {name!r} is {values.ndim}-dimensional {values.dtype}, "
            f"expected numbers along {', '.join(axis for axis, _, _ in axes)}"
        )
    if not np.all(np.isfinite(values)) or values.min() < 0:
        raise InputError(f"{where}: table {name!r} has times that are negative or no numbers")
    for (axis, first, step), size in zip(axes, values.shape, strict=True):
        keys = tables.get(f"{name}__{axis}")
        if keys is None or not np.array_equal(keys, first + step * np.arange(size)):
            raise InputError(f"{where}: {name}__{axis} must be {first}, {first + step}, ... ({size} keys)")
    return values.astype(np.float64)
