"""The parts of a decoder layer as torch functions: measured one by one, and put together by the decoder.

Shapes: T tokens, H hidden features, q and kv heads of D features. Every function is pure but `write_kv`.
"""

from __future__ import annotations

from typing import Any

Tensor = Any
"""A torch tensor; torch is an extra and has no names here."""

EPSILON = 1e-5
ROPE_BASE = 500_000.0


def rms_norm(torch: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, EPSILON)


def rope_tables(torch: Any, positions: Tensor, head_dim: int, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embedding, each of shape (T, 1, D / 2)."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.to(torch.float32)[:, None] * ROPE_BASE**-steps
    return angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)


def rope(torch: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads, shape (T, heads, D), by their positions."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def silu_mul(torch: Any, x: Tensor) -> Tensor:
    """Gate and up, side by side in the last axis, to the input of down."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def write_kv(cache: tuple[Tensor, Tensor], slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Store keys and values, shape (T, kv heads, D), at their slots of the cache."""
    for entries, new in zip(cache, (k, v), strict=True):
        entries.index_copy_(0, slots, new)


def split_qkv(qkv: Tensor, q_size: int, kv_size: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as heads: (T, q heads, D), (T, kv heads, D) twice."""
    heads = (part.unflatten(-1, (-1, head_dim)) for part in qkv.split((q_size, kv_size, kv_size), dim=-1))
    q, k, v = heads
    return q, k, v


def greedy(torch: Any, logits: Tensor) -> Tensor:
    """Token of the largest logit."""
    return torch.argmax(logits, dim=-1)


def route(torch: Any, logits: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Weights and experts of each token, shape (T, k) each."""
    weights, experts = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), experts_per_token)
    return (weights / weights.sum(dim=-1, keepdim=True)).to(logits.dtype), experts


def apply_experts(
    torch: Any, x: Tensor, routed: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], *, grouped: bool
) -> Tensor:
    """Mixture of experts: tokens sorted by expert, gate and up, down, and summed back.

    Parameters
    ----------
    weights
        Gate-and-up of shape (E, 2 F, H) and down of shape (E, H, F).
    grouped
        One kernel for all experts; otherwise one after another, which asks the host for their counts.
    """
    share, experts = routed
    num_experts, per_token = len(weights[0]), experts.shape[-1]
    order = experts.flatten().argsort()
    rows = x[order // per_token]
    if grouped:
        # Counted without `bincount`, which waits for the device; no graph may.
        counts = torch.nn.functional.one_hot(experts.flatten(), num_experts).sum(0)
        out = _in_groups(torch, rows, counts.cumsum(0).to(torch.int32), weights)
    else:
        out = _one_by_one(
            torch, rows, torch.bincount(experts.flatten(), minlength=num_experts).tolist(), weights
        )
    weighted = out * share.flatten()[order, None]
    return torch.zeros_like(x).index_add_(0, order // per_token, weighted)


def _in_groups(torch: Any, rows: Tensor, ends: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    hidden = torch._grouped_mm(rows, weights[0].transpose(-2, -1), offs=ends)
    return torch._grouped_mm(silu_mul(torch, hidden), weights[1].transpose(-2, -1), offs=ends)


def _one_by_one(torch: Any, rows: Tensor, counts: list[int], weights: tuple[Tensor, Tensor]) -> Tensor:
    linear, outputs = torch.nn.functional.linear, []
    for expert, part in enumerate(rows.split(counts)):
        if len(part):
            hidden = silu_mul(torch, linear(part, weights[0][expert]))
            outputs.append(linear(hidden, weights[1][expert]))
    return torch.cat(outputs)
