"""How many KV blocks Vidur's memory planner gives a replica (microsoft/vidur@7d47513).

It counts whole requests of the longest length: what is left of one is lost, and the number of blocks depends
on the workload's longest request. Embedding, head, activations and graphs are not counted. With pipeline
stages a request is charged for all layers on every stage, and the number of requests multiplied by the stages
again, which comes to the same up to rounding.

`kv_capacity.py` plans what a real engine has; this is for replaying Vidur's runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cspsched.errors import InputError
from cspsched.units import ceil_div

BYTES_PER_ELEMENT = 2
"""Weights and KV entries are 16-bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurReplica:
    """Sizes of a model on a replica, by Vidur's names in `config.json`."""

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    embedding_dim: int
    mlp_hidden_dim: int
    use_gated_mlp: bool = True
    total_memory_gb: int = 80
    memory_margin_fraction: float = 0.1
    tensor_parallel_size: int = 1
    num_pipeline_stages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurMemory:
    """What the planner finds.

    Attributes
    ----------
    max_batch_size
        Requests of the longest length that a batch has room for.
    request_slots
        Requests of the longest length on the replica: max_batch_size for every pipeline stage.
    num_blocks
        KV blocks.
    """

    max_batch_size: int
    request_slots: int
    num_blocks: int


def plan_vidur_memory(replica: VidurReplica, *, max_tokens: int, block_size: int = 16) -> VidurMemory:
    r"""Plan the memory of a replica for requests of at most max_tokens tokens, prompt and output.

    $\lfloor (A - P) / K \rfloor$ requests with A = GiB x (1 - margin), P the bytes of the weights on a device
    and $K = 4 \cdot d_{head} \lceil kv / TP \rceil \cdot$ max_tokens $\cdot$ layers.

    Raises
    ------
    InputError
        If not a single request of that length fits.
    """
    margin = Fraction(str(replica.memory_margin_fraction))
    available_bytes = replica.total_memory_gb * 2**30 * (1 - margin)
    spare_bytes = available_bytes - parameter_bytes(replica)
    max_batch_size = spare_bytes // request_kv_bytes(replica, max_tokens)
    if max_batch_size < 1:
        raise InputError(
            f"no request of {max_tokens} tokens fits: {float(spare_bytes):.0f} bytes are left beside the "
            f"weights, it takes {request_kv_bytes(replica, max_tokens)}; give num_blocks or a smaller "
            "max_tokens"
        )
    slots = max_batch_size * replica.num_pipeline_stages
    return VidurMemory(
        max_batch_size=max_batch_size,
        request_slots=slots,
        num_blocks=max_tokens // block_size * slots,
    )


def parameter_bytes(replica: VidurReplica) -> Fraction:
    """Bytes of the weights on a device: attention and MLP of the layers of one stage."""
    width, heads, tp = replica.embedding_dim, replica.num_q_heads, replica.tensor_parallel_size
    queries = Fraction(heads, tp)
    kv_heads = ceil_div(replica.num_kv_heads, tp)
    head_dim = Fraction(width, heads)
    matrices = 3 if replica.use_gated_mlp else 2
    layer = width * head_dim * (queries + 2 * kv_heads) + width * head_dim * queries
    layer += Fraction(matrices * width * replica.mlp_hidden_dim, tp)
    return BYTES_PER_ELEMENT * Fraction(replica.num_layers, replica.num_pipeline_stages) * layer


def request_kv_bytes(replica: VidurReplica, max_tokens: int) -> int:
    """KV bytes of a request of the longest length, all layers on one device."""
    kv_heads = ceil_div(replica.num_kv_heads, replica.tensor_parallel_size)
    head_dim = replica.embedding_dim // replica.num_q_heads
    return BYTES_PER_ELEMENT * 2 * head_dim * kv_heads * max_tokens * replica.num_layers
