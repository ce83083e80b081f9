"""What one tensor-parallel rank computes with: the shapes of a model's shards, run on a single device."""

from __future__ import annotations

from dataclasses import dataclass

from cspsched.costs.models import LlmModel
from cspsched.costs.weights import PLAIN
from cspsched.errors import UsageError
from cspsched.units import ceil_div

DTYPES = {2: "bfloat16", 4: "float32"}
"""Type of weights and KV entries by their bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """A rank's part of a mixture of experts: every expert, a share of its width."""

    num_experts: int
    experts_per_token: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShape:
    """Sizes of one rank's shard; KV heads are replicated once ranks outnumber them.

    Attributes
    ----------
    width
        Intermediate features of the dense MLP; 0 where experts take its place.
    """

    tensor_parallel: int
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    width: int
    vocabulary: int
    qkv_bias: bool
    qk_norm: bool
    dtype_bytes: int
    experts: ExpertShape | None = None

    @property
    def q_size(self) -> int:
        """Query features of a token."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Key features of a token, and as many value features."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Query, key and value features of a token together."""
        return self.q_size + 2 * self.kv_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache of one token in one layer."""
        return 2 * self.kv_size * self.dtype_bytes

    @property
    def dtype(self) -> str:
        """Name of the type of weights and KV entries in torch."""
        return DTYPES[self.dtype_bytes]


def rank_shape(model: LlmModel, tensor_parallel: int = 1) -> RankShape:
    """Shapes of one of `tensor_parallel` ranks.

    Raises
    ------
    UsageError
        If the heads cannot be shared out evenly, or the model has a number type, a format of weights or
        layers that are not profiled.
    """
    if model.weights != PLAIN or (model.moe and model.moe.weights) or model.kv_cache != PLAIN:
        raise UsageError(
            f"{model.name} has weights or KV cache of fewer than 16 bits, which the profiler does not "
            "measure; profile it with 16-bit weights, or compose a cost model of tables (costs compose)"
        )
    is_mixed = model.moe is not None and (model.moe.num_dense_layers or model.moe.num_shared_experts)
    if model.sliding_window is not None or model.has_all_biases or model.mla is not None or is_mixed:
        raise UsageError(
            f"{model.name} has sliding windows, biases, latent attention or shared experts, which the "
            "profiler does not measure; compose a cost model of tables (costs compose)"
        )
    if tensor_parallel < 1 or model.num_heads % tensor_parallel:
        raise UsageError(
            f"tensor parallelism {tensor_parallel} does not divide the {model.num_heads} attention heads "
            f"of {model.name}; give divisors"
        )
    if model.dtype_bytes not in DTYPES:
        raise UsageError(f"{model.name} has {model.dtype_bytes}-byte weights, the profiler knows 2 and 4")
    moe = model.moe
    return RankShape(
        tensor_parallel=tensor_parallel,
        num_layers=model.num_layers,
        hidden=model.hidden_size,
        num_heads=model.num_heads // tensor_parallel,
        num_kv_heads=model.kv_heads_per_rank(tensor_parallel),
        head_dim=model.head_dim,
        width=0 if moe else ceil_div(model.intermediate_size, tensor_parallel),
        vocabulary=ceil_div(model.vocab_size, tensor_parallel),
        qkv_bias=model.qkv_bias,
        qk_norm=model.qk_norm,
        dtype_bytes=model.dtype_bytes,
        experts=None
        if moe is None
        else ExpertShape(
            num_experts=moe.num_experts,
            experts_per_token=moe.experts_per_token,
            width=ceil_div(moe.expert_intermediate_size, tensor_parallel),
        ),
    )
