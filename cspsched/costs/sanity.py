"""What a cost model must not say: faster than the device can be, or faster for work cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator

from cspsched.costs.devices import Device
from cspsched.costs.kv_capacity import weight_bytes
from cspsched.costs.models import LlmModel
from cspsched.costs.parallelism import Parallelism
from cspsched.problem.cost import BatchFeatures, CostModel, triangle
from cspsched.units import NS_PER_S

PROMPTS = (4096, 8192, 16_384, 131_072)
CHUNKS = (512, 2048, 8192)
DECODES = (1, 32, 128)
CONTEXT = 512
PREFILL = 8192


def chunk_gain(cost: CostModel) -> tuple[float, int, int]:
    """Largest share of the time of a prompt in one batch that chunks save, the prompt, and the chunk.

    0 for a cost model in which smaller chunks never make a prefill faster.
    """
    found = (0.0, PROMPTS[0], PROMPTS[0])
    for prompt in PROMPTS:
        whole_ns = cost.batch_time_ns(_prefill(0, prompt, prompt))
        for chunk in CHUNKS:
            if chunk < prompt and whole_ns:
                parts = (_prefill(at, chunk, prompt) for at in range(0, prompt, chunk))
                gain = 1 - sum(map(cost.batch_time_ns, parts)) / whole_ns
                found = max(found, (gain, prompt, chunk))
    return found


def complaints(cost: CostModel, model: LlmModel, device: Device, parallelism: Parallelism) -> Iterator[str]:
    """Sentences about what cannot be: decodes that beat the bandwidth, prefills that beat the peak rate.

    The limits: the weights of a rank and the KV cache of all decodes are read once; 2 floating-point
    operations a weight and token, of the weights that a token uses.
    """
    weights = weight_bytes(model, parallelism)
    for number in DECODES:
        is_sparse = model.moe is not None
        read = sum(weights) - weights.embedding - (weights.mlp if is_sparse else 0)
        read += number * CONTEXT * model.kv_bytes_per_token(parallelism.tensor)
        limit_ns = NS_PER_S * read / device.memory_bandwidth_bytes_per_s
        time_ns = cost.batch_time_ns(_decodes(number))
        if time_ns < limit_ns:
            yield (
                f"{cost.name}: a batch of {number} decodes takes {time_ns / 1e6:.2f} ms, and reading weights "
                f"and KV cache alone takes {limit_ns / 1e6:.2f} ms on {device.name}"
            )
    counts = model.weights_per_rank(parallelism)
    mlp = counts.mlp
    if model.moe is not None:
        mlp = mlp * model.moe.experts_per_token // model.moe.num_experts
    flops = 2 * PREFILL * (counts.attention + mlp)
    # Weights of 8 and 4 bits are multiplied at up to 2 and 4 times the rate of 16 bits.
    peak = device.peak_flops_fp16 * (1 if model.weights == "bf16" else 4)
    time_ns, limit_ns = cost.batch_time_ns(_prefill(0, PREFILL, PREFILL)), NS_PER_S * flops / peak
    if time_ns < limit_ns:
        yield (
            f"{cost.name}: a prefill of {PREFILL} tokens takes {time_ns / 1e6:.2f} ms, and its matrix "
            f"products alone take {limit_ns / 1e6:.2f} ms at the peak rate of {device.name}"
        )
    gain, prompt, chunk = chunk_gain(cost)
    if gain > 0:
        yield (
            f"{cost.name}: a prompt of {prompt} tokens is prefilled {gain:.1%} faster in chunks of {chunk} "
            "than in one batch"
        )


def _prefill(before: int, chunk: int, prompt: int) -> BatchFeatures[int]:
    return _features(
        tokens=chunk, prefill_tokens=chunk, prefill_context=before, num_prefills=1,
        prefill_attention=triangle(before + chunk) - triangle(before),
        num_generating=int(before + chunk == prompt),
    )  # fmt: skip


def _decodes(number: int) -> BatchFeatures[int]:
    return _features(
        tokens=number, decode_context=number * CONTEXT, num_generating=number, num_decodes=number
    )


def _features(**counts: int) -> BatchFeatures[int]:
    return BatchFeatures(**{name: counts.get(name, 0) for name in BatchFeatures._fields})
