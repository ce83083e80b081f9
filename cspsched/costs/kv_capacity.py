"""How many KV blocks an engine has: where every byte of a device's memory goes.

The plan follows vLLM V1, which fills `gpu_memory_utilization` of the device with weights, with the memory
that a profiling run of the largest batch needs at its peak, and with KV blocks in what is left.

Measured against one real run only (vLLM 0.19.0, Llama-3.1-8B, RTX 4090, utilization 0.9, 2048 tokens and
256 requests per batch: 2588 blocks of 16 tokens), from which `ENGINE_BYTES` was also taken. How it scales
with other models, devices and batch limits follows from the formulas below and is unmeasured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from math import ceil

from cspsched.costs.devices import Device
from cspsched.costs.models import LlmModel, WeightCounts
from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.costs.weights import FORMATS, PLAIN
from cspsched.errors import InputError
from cspsched.units import ceil_div

SAMPLER_BYTES_PER_LOGIT = 26
"""Live bytes per logit at the peak of the sampler (vLLM's `topk_topp_sampler.py`, sorting path): logits in
bfloat16 (2) and float32 (4), sorted copy (4), its indices (8), probabilities (4), noise or mask (4)."""
ENGINE_BYTES = 350 * 2**20
"""CUDA context, libraries, graphs and fragmentation; calibrated on the one run that the module names."""
VOCABULARY_PADDING = 64
"""vLLM rounds the vocabulary up to a multiple of this before it shards it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPlan:
    """Memory of one tensor-parallel rank, byte by byte.

    Attributes
    ----------
    device_bytes
        Total that the driver reports.
    outside_bytes
        Share that `gpu_memory_utilization` leaves untouched.
    weight_bytes
        Weights by what they are for.
    activation_bytes, engine_bytes
        Peak of the largest batch, and everything that is neither weights, activations nor KV cache.
    block_bytes, block_tokens
        Size of one KV block on this rank, in bytes and in tokens.
    num_blocks
        KV blocks that fit, the null block included.
    """

    device_bytes: int
    outside_bytes: int
    weight_bytes: WeightCounts
    activation_bytes: int
    engine_bytes: int
    block_bytes: int
    block_tokens: int
    num_blocks: int

    @property
    def kv_blocks(self) -> int:
        """Blocks that requests can use: vLLM keeps one as its null block."""
        return self.num_blocks - 1

    @property
    def kv_tokens(self) -> int:
        """Tokens that the usable blocks hold."""
        return self.kv_blocks * self.block_tokens

    @property
    def available_bytes(self) -> int:
        """Bytes left for KV blocks."""
        used = sum(self.weight_bytes) + self.activation_bytes + self.engine_bytes
        return self.device_bytes - self.outside_bytes - used

    def rows(self) -> list[tuple[str, int]]:
        """Label and bytes of every share; the bytes sum to the memory of the device."""
        weights = [(f"weights: {name}", size) for name, size in self.weight_bytes._asdict().items()]
        return [
            ("outside gpu_memory_utilization", self.outside_bytes),
            *weights,
            ("activations of the largest batch", self.activation_bytes),
            ("engine (CUDA context, graphs, libraries)", self.engine_bytes),
            ("KV cache", self.kv_blocks * self.block_bytes),
            ("null block", self.block_bytes),
            ("too small for a block", self.available_bytes - self.num_blocks * self.block_bytes),
        ]


def plan_kv_capacity(
    model: LlmModel,
    device: Device,
    *,
    parallelism: Parallelism = ONE_GPU,
    block_tokens: int = 16,
    gpu_memory_utilization: float = 0.92,
    max_batch_tokens: int,
    max_batch_requests: int,
) -> KvPlan:
    """Plan the memory of one rank.

    Parameters
    ----------
    parallelism
        Ranks that share the weights; KV heads are replicated once tensor-parallel ranks outnumber them.
    gpu_memory_utilization
        Share of the device that the engine may fill, above 0 and at most 1.
    max_batch_tokens, max_batch_requests
        Largest batch, which sets the peak of the activations.

    Raises
    ------
    InputError
        If an argument makes no sense, or what has to be resident leaves no room for two KV blocks.
    """
    sizes = (block_tokens, max_batch_tokens, max_batch_requests)
    _require_sizes(gpu_memory_utilization, sizes)
    usable = int(Decimal(str(gpu_memory_utilization)) * device.memory_bytes)
    weights = weight_bytes(model, parallelism)
    activations = activation_bytes(model, parallelism.tensor, max_batch_tokens, max_batch_requests)
    block = block_tokens * model.kv_bytes_per_token(parallelism.tensor)
    num_blocks = (usable - sum(weights) - activations - ENGINE_BYTES) // block
    if num_blocks < 2:
        raise InputError(_does_not_fit(model, device, parallelism, usable, sum(weights), activations))
    return KvPlan(
        device_bytes=device.memory_bytes,
        outside_bytes=device.memory_bytes - usable,
        weight_bytes=weights,
        activation_bytes=activations,
        engine_bytes=ENGINE_BYTES,
        block_bytes=block,
        block_tokens=block_tokens,
        num_blocks=num_blocks,
    )


def weight_bytes(model: LlmModel, parallelism: Parallelism = ONE_GPU) -> WeightCounts:
    """Bytes of the weights of one rank, with the vocabulary padded as vLLM pads it.

    Linear layers are stored in the model's format; embedding, norms, router and head are in no fewer bits.
    """
    counts = model.weights_per_rank(parallelism)
    vocabulary = ceil_div(model.vocab_size, VOCABULARY_PADDING) * VOCABULARY_PADDING
    padded = ceil_div(vocabulary, parallelism.tensor)
    counts = counts._replace(
        embedding=padded * model.hidden_size, head=padded * model.hidden_size if counts.head else 0
    )
    plain = WeightCounts(*(count * model.dtype_bytes for count in counts))
    if model.moe is None:
        return plain._replace(
            attention=_stored(counts.attention, model.weights, model),
            mlp=_stored(counts.mlp, model.weights, model),
        )
    router = model.num_expert_layers * model.router_weights
    experts = _stored(counts.mlp - router, model.moe.weights or model.weights, model)
    return plain._replace(
        attention=_stored(counts.attention, model.weights, model), mlp=experts + router * model.dtype_bytes
    )


def _stored(count: int, weights: str, model: LlmModel) -> int:
    """Bytes of so many weights in a format."""
    return count * model.dtype_bytes if weights == PLAIN else ceil(count * FORMATS[weights].bytes_per_weight)


def activation_bytes(
    model: LlmModel, tensor_parallel: int, max_batch_tokens: int, max_batch_requests: int
) -> int:
    r"""Peak of the profiling run: residual stream, and the larger of one layer's MLP and the sampler.

    $d C h + \max(d C (h + 3 f / \mathrm{TP}),\ 26 R V)$ bytes with C tokens, R requests, h hidden features,
    f intermediate features of a token, V vocabulary and d bytes an element. MLP and sampler do not run at
    the same time; the sampler sees the whole vocabulary on every rank.
    """
    stream = model.dtype_bytes * max_batch_tokens * model.hidden_size
    width = 3 * ceil_div(model.mlp_width, tensor_parallel)
    layer = stream + model.dtype_bytes * max_batch_tokens * width
    num_logits = min(max_batch_requests, max_batch_tokens) * model.vocab_size
    return stream + max(layer, SAMPLER_BYTES_PER_LOGIT * num_logits)


def _require_sizes(gpu_memory_utilization: float, sizes: Iterable[int]) -> None:
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError(
            f"gpu_memory_utilization is {gpu_memory_utilization}, expected more than 0 and at most 1"
        )
    if min(sizes) < 1:
        raise InputError("block_tokens and the batch limits must be at least 1")


def _does_not_fit(
    model: LlmModel, device: Device, parallelism: Parallelism, usable: int, weights: int, activations: int
) -> str:
    return (
        f"{model.name} does not fit on {device.name} with {parallelism.title}: {weights} bytes "
        f"of weights, {activations} of activations and {ENGINE_BYTES} of engine leave no room for a KV cache "
        f"in the {usable} bytes that may be used; use more tensor parallelism, a larger device or smaller "
        "batch limits"
    )
