"""Tries attention kernels on a small batch: a signature promises what a build or a device may not keep.

Whatever raises, or gives other numbers than one plain call a sequence, is not used. That is found out before
anything is measured, where it costs one kernel and not a profile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cspsched.profiler.attention import cache_slots, plan_attention
from cspsched.profiler.backends import IN_PLACE, LOOP, PAGED, VARLEN, Features
from cspsched.profiler.layers import Tensor
from cspsched.profiler.points import Chunk

BATCHES = (
    (Chunk(5, 0), Chunk(1, 300), Chunk(40, 256), Chunk(7, 511)),
    (Chunk(1, 1), Chunk(1, 700), Chunk(1, 255)),
)
"""Chunks beside decodes, and decodes alone, which kernels treat apart; over several pages."""
Q_HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
MOST_DIFFERENCE = 0.03
"""Of outputs near 1 in bfloat16, which has three decimals."""


def working_attention(torch: Any, features: Features) -> Features:
    """The same features without the varlen attention that does not work here; `refused` says why."""
    refused = []
    for name, backend in (("paged", PAGED), ("in_place", IN_PLACE), ("varlen", VARLEN)):
        why = _why_not(torch, backend, features) if getattr(features, name) else None
        if why is not None:
            refused.append(f"{backend}: {why}")
            features = replace(features, **{name: False})  # type: ignore[arg-type]
    return replace(features, refused=tuple(refused))


def _why_not(torch: Any, backend: str, features: Features) -> str | None:
    """What is wrong with a back end; None if it does what it should."""
    try:
        with torch.inference_mode():
            for chunks in BATCHES:
                expected, found = (
                    _attended(torch, name, chunks, features).float() for name in (LOOP, backend)
                )
                difference = float((found - expected).abs().max())
                if not difference <= MOST_DIFFERENCE:
                    return f"outputs differ by {difference:.3g} from those of one call a sequence"
    except Exception as error:  # noqa: BLE001 - torch raises whatever it likes, and any of it is an answer
        return str(error).partition("\n")[0]
    return None


def _attended(torch: Any, backend: str, chunks: tuple[Chunk, ...], features: Features) -> Tensor:
    """Outputs of a batch; tokens, keys and values are the same whichever back end is asked."""
    device, dtype = features.device, torch.bfloat16
    generator = torch.Generator(device=device).manual_seed(1)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    whole = tuple(Chunk(chunk.tokens + chunk.context, 0) for chunk in chunks)
    count, state = sum(chunk.tokens for chunk in whole), torch.get_rng_state()
    k, v = randn(count, KV_HEADS, HEAD_DIM), randn(count, KV_HEADS, HEAD_DIM)
    q = randn(sum(chunk.tokens for chunk in chunks), Q_HEADS, HEAD_DIM)
    cache = tuple(randn(cache_slots(chunks), KV_HEADS, HEAD_DIM) for _ in range(2))
    # Pages are drawn at random, here twice the same: once for all tokens, once for those that are processed.
    filled = plan_attention(torch, backend, whole, device, features)
    torch.set_rng_state(state)
    plan = plan_attention(torch, backend, chunks, device, features)
    for entries, new in zip(cache, (k, v), strict=True):
        entries.index_copy_(0, filled.slots, new)
    return plan(q, (cache[0], cache[1]))
