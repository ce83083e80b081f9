"""What the installed torch can do here: found by looking at signatures, recorded with every profile."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cspsched.costs.models import LlmModel
from cspsched.errors import UsageError
from cspsched.profiler.operators import Family, operators_of

INSTALL_ADVICE = "pip install 'cspsched[gpu]' (proven with torch 2.13.0: pip install torch==2.13.0)"
PAGED, IN_PLACE, VARLEN, LOOP = "varlen_paged", "flash_in_place", "varlen", "sdpa_loop"
"""Attention over sequences of any length: over pages of KV entries; over entries that lie one behind
another; over entries that are gathered first; one call a sequence."""
DENSE = ("sdpa_flash", "sdpa_cudnn")
"""Attention over fresh prompts of one length, in one dense call."""
COMPILED = ("rmsnorm", "rope", "silu_mul", "residual")
"""Elementwise operators that engines fuse, and that are measured compiled, too."""
DRAWN = "exponential_race"
"""Drawing from the softmax in place of taking the largest logit."""
GROUPED, EXPERT_LOOP = "grouped_mm", "expert_loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Kernels that torch offers.

    Attributes
    ----------
    varlen, paged
        `torch.nn.attention.varlen.varlen_attn`, and its block tables.
    in_place
        The FlashAttention operator beneath it, told how much of each sequence's room is used.
    causal_by_window
        Whether varlen attention is made causal by `window_size=(-1, 0)` and not by `is_causal`.
    grouped_mm
        One matrix product over all experts.
    refused
        Attention that the signatures promise and that a small batch showed not to work here, with why.
    """

    device: str
    varlen: bool
    paged: bool
    in_place: bool
    causal_by_window: bool
    grouped_mm: bool
    varlen_parameters: tuple[str, ...]
    refused: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for the provenance."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
        }


def require_torch(device: str) -> Any:
    """The module torch, if it is installed and has the device (`cpu` or `cuda`).

    Raises
    ------
    UsageError
        If it is not; says what to install.
    """
    try:
        torch = import_module("torch")
    except ModuleNotFoundError:
        raise UsageError(f"profiling needs torch, which is not installed: {INSTALL_ADVICE}") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"torch {torch.__version__} finds no CUDA device here; give --device cpu")
    return torch


def default_device() -> str:
    """`cuda` where torch finds a GPU, else `cpu`; same errors as `require_torch`."""
    return "cuda" if require_torch("cpu").cuda.is_available() else "cpu"


def find_features(torch: Any, device: str) -> Features:
    """Look at the signatures of the installed torch; varlen and grouped kernels are for CUDA only."""
    parameters = _varlen_parameters() if device == "cuda" else ()
    return Features(
        device=device,
        varlen=bool(parameters),
        paged={"block_table", "seqused_k"} <= set(parameters),
        in_place=device == "cuda" and "seqused_k" in _flash_schema(torch),
        causal_by_window="is_causal" not in parameters,
        grouped_mm=device == "cuda" and hasattr(torch, "_grouped_mm"),
        varlen_parameters=parameters,
    )


def _varlen_parameters() -> tuple[str, ...]:
    try:
        varlen = import_module("torch.nn.attention.varlen")
    except ModuleNotFoundError:
        return ()
    return tuple(inspect.signature(varlen.varlen_attn).parameters)


def _flash_schema(torch: Any) -> str:
    """Arguments of the operator; empty where there is none."""
    flash = getattr(torch.ops.aten, "_flash_attention_forward", None)
    return str(flash.default._schema) if flash is not None else ""


def attention_backend(features: Features) -> str:
    """The attention that the decoder runs: pages where torch has them, else the next best."""
    if features.paged:
        return PAGED
    if features.in_place:
        return IN_PLACE
    return VARLEN if features.varlen else LOOP


def operator_backends(model: LlmModel, features: Features) -> Mapping[str, tuple[str, ...]]:
    """For each operator its implementations here; the first is the one that the decoder runs."""
    attention = attention_backend(features)
    is_cuda = features.device == "cuda"
    backends: dict[str, tuple[str, ...]] = {}
    for operator in operators_of(model):
        match operator.family:
            case Family.PREFILL:
                backends[operator.name] = (attention, *(DENSE if is_cuda else ()))
            case Family.DECODE | Family.MIXED:
                backends[operator.name] = (attention,)
            case _:
                compiled = ("compiled",) if is_cuda and operator.name in COMPILED else ()
                backends[operator.name] = ("eager", *compiled)
    backends["sampler"] = ("eager", DRAWN)
    if model.moe is not None:
        backends["experts"] = (GROUPED if features.grouped_mm else EXPERT_LOOP,)
    return backends
