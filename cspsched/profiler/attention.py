"""Attention over a batch of sequences with a KV cache: one class for each implementation.

A plan is made once for a batch, outside of what is timed: engines build the same tables beside the step.
Sequences end with the tokens that are processed, so that query t of a chunk sees n + t + 1 entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
from typing import Any, Protocol

from cspsched.profiler.backends import DENSE, IN_PLACE, LOOP, PAGED, VARLEN, Features
from cspsched.profiler.layers import Tensor
from cspsched.profiler.points import Chunk
from cspsched.units import ceil_div

PAGE_TOKENS = 256
"""Tokens of a page of the KV cache: what FlashAttention's paged kernel takes on every device."""
Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each of shape (slots, kv heads, D)."""


class AttentionPlan(Protocol):
    """Attention of one batch."""

    @property
    def slots(self) -> Tensor:
        """Where the new keys and values of the batch belong, int64 of shape (T,)."""

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D) for queries of the same shape."""


def cache_slots(chunks: Sequence[Chunk]) -> int:
    """Slots that the sequences of a batch take, whole pages each."""
    return sum(_num_pages(chunk) for chunk in chunks) * PAGE_TOKENS


def plan_attention(
    torch: Any, backend: str, chunks: Sequence[Chunk], device: str, features: Features, first_slot: int = 0
) -> AttentionPlan:
    """Attention of a batch by one of the back ends; its sequences lie from `first_slot` (a page's) on."""
    if backend == PAGED:
        return PagedAttention(torch, chunks, device, features, first_slot)
    if backend == IN_PLACE:
        return InPlaceAttention(torch, chunks, device, first_slot)
    if backend == VARLEN:
        return PackedAttention(torch, chunks, device, features, first_slot)
    if backend in DENSE:
        return DenseAttention(torch, backend, chunks, device, first_slot)
    assert backend == LOOP, backend
    return LoopAttention(torch, chunks, device, first_slot)


class LoopAttention:
    """One call a sequence: what a CPU does."""

    def __init__(self, torch: Any, chunks: Sequence[Chunk], device: str, first_slot: int) -> None:
        self._torch = torch
        self._sequences = []
        token, starts = 0, _starts(chunks, first_slot)
        for chunk, start in zip(chunks, starts, strict=True):
            end = start + chunk.context + chunk.tokens
            self._sequences.append((token, token + chunk.tokens, start, end, self._mask(chunk, device)))
            token += chunk.tokens
        self.slots = _new_slots(torch, chunks, starts, device)

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D)."""
        attend = self._torch.nn.functional.scaled_dot_product_attention
        outputs = []
        for first, last, start, end, mask in self._sequences:
            heads = (
                x.transpose(0, 1)[None] for x in (q[first:last], cache[0][start:end], cache[1][start:end])
            )
            is_causal = mask is None and last - first > 1
            out = attend(*heads, attn_mask=mask, is_causal=is_causal, enable_gqa=True)
            outputs.append(out[0].transpose(0, 1))
        return self._torch.cat(outputs)

    def _mask(self, chunk: Chunk, device: str) -> Tensor | None:
        """Lower right triangle; none where the kernel's own causal mask, or no mask, does the same."""
        if chunk.context == 0 or chunk.tokens == 1:
            return None
        size = (chunk.tokens, chunk.context + chunk.tokens)
        return self._torch.ones(size, dtype=self._torch.bool, device=device).tril(chunk.context)


class PagedAttention:
    """FlashAttention over pages in a random order, as an engine's cache becomes after a while."""

    def __init__(
        self, torch: Any, chunks: Sequence[Chunk], device: str, features: Features, first_slot: int
    ) -> None:
        counts = [_num_pages(chunk) for chunk in chunks]
        pages = torch.randperm(sum(counts), dtype=torch.int32) + first_slot // PAGE_TOKENS
        table = torch.zeros((len(chunks), max(counts)), dtype=torch.int32)
        for row, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
            table[row, :count] = pages[end - count : end]
        self.slots = _paged_slots(torch, chunks, table).to(device)
        self._attend = varlen_kernel()
        lengths = [chunk.context + chunk.tokens for chunk in chunks]
        self._lengths = max(chunk.tokens for chunk in chunks), max(lengths)
        self._starts = _cumulative(torch, [chunk.tokens for chunk in chunks], device)
        # The kernel wants the starts of the keys, too, and reads them from the table.
        self._kv_starts = _cumulative(torch, lengths, device)
        self._options = {
            **_causal(features, self._lengths[0]),
            "seqused_k": torch.tensor(lengths, dtype=torch.int32, device=device),
            "block_table": table.to(device),
        }

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D)."""
        k, v = (entries.unflatten(0, (-1, PAGE_TOKENS)) for entries in cache)
        return self._attend(q, k, v, self._starts, self._kv_starts, *self._lengths, **self._options)


class InPlaceAttention:
    """FlashAttention over sequences that lie one behind another, each in whole pages: nothing is copied."""

    def __init__(self, torch: Any, chunks: Sequence[Chunk], device: str, first_slot: int) -> None:
        starts = _starts(chunks, first_slot)
        lengths = [chunk.context + chunk.tokens for chunk in chunks]
        end = starts[-1] + _num_pages(chunks[-1]) * PAGE_TOKENS
        self.slots = _new_slots(torch, chunks, starts, device)
        self._attend = flash_kernel(torch)
        self._lengths = max(chunk.tokens for chunk in chunks), max(lengths)
        self._starts = _cumulative(torch, [chunk.tokens for chunk in chunks], device)
        self._kv_starts = torch.tensor([*starts, end], dtype=torch.int32, device=device)
        self._used = torch.tensor(lengths, dtype=torch.int32, device=device)

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D)."""
        # No dropout, no debug output; a single query needs no mask (see `_causal`).
        last = (0.0, self._lengths[0] > 1, False)
        starts = (self._starts, self._kv_starts)
        return self._attend(q, *cache, *starts, *self._lengths, *last, seqused_k=self._used)[0]


class PackedAttention:
    """FlashAttention over keys and values that are gathered first: for a torch without block tables."""

    def __init__(
        self, torch: Any, chunks: Sequence[Chunk], device: str, features: Features, first_slot: int
    ) -> None:
        starts = _starts(chunks, first_slot)
        lengths = [chunk.context + chunk.tokens for chunk in chunks]
        self.slots = _new_slots(torch, chunks, starts, device)
        self._read = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).to(
            device
        )
        self._attend = varlen_kernel()
        self._lengths = max(chunk.tokens for chunk in chunks), max(lengths)
        self._starts = _cumulative(torch, [chunk.tokens for chunk in chunks], device)
        self._kv_starts = _cumulative(torch, lengths, device)
        self._options = _causal(features, self._lengths[0])
        self._repeats_heads = "enable_gqa" not in features.varlen_parameters

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D)."""
        k, v = (entries[self._read] for entries in cache)
        if self._repeats_heads:
            k, v = (entries.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for entries in (k, v))
        return self._attend(q, k, v, self._starts, self._kv_starts, *self._lengths, **self._options)


class DenseAttention:
    """Fresh prompts of one length through one dense call of a named kernel."""

    def __init__(
        self, torch: Any, backend: str, chunks: Sequence[Chunk], device: str, first_slot: int
    ) -> None:
        module = import_module("torch.nn.attention")
        kernels = module.SDPBackend
        self._choose = module.sdpa_kernel
        self._kernel = {"sdpa_flash": kernels.FLASH_ATTENTION, "sdpa_cudnn": kernels.CUDNN_ATTENTION}[backend]
        self._torch = torch
        self._size = (len(chunks), chunks[0].tokens)
        starts = _starts(chunks, first_slot)
        self.slots = _new_slots(torch, chunks, starts, device)

    def __call__(self, q: Tensor, cache: Cache) -> Tensor:
        """Outputs of shape (T, q heads, D)."""
        count = self._size[0] * self._size[1]
        batch = [x[:count].unflatten(0, self._size).transpose(1, 2) for x in (q, *cache)]
        with self._choose([self._kernel]):
            out = self._torch.nn.functional.scaled_dot_product_attention(
                *batch, is_causal=True, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(0, 1)


def _num_pages(chunk: Chunk) -> int:
    return ceil_div(chunk.context + chunk.tokens, PAGE_TOKENS)


def _starts(chunks: Sequence[Chunk], first_slot: int) -> list[int]:
    """First slot of each sequence, one behind another in whole pages."""
    ends = accumulate(_num_pages(chunk) * PAGE_TOKENS for chunk in chunks)
    return [first_slot, *(first_slot + end for end in ends)][:-1]


def _new_slots(torch: Any, chunks: Sequence[Chunk], starts: Sequence[int], device: str) -> Tensor:
    spans = zip(chunks, starts, strict=True)
    new = [torch.arange(s + chunk.context, s + chunk.context + chunk.tokens) for chunk, s in spans]
    return torch.cat(new).to(device)


def _paged_slots(torch: Any, chunks: Sequence[Chunk], table: Tensor) -> Tensor:
    slots = []
    for row, chunk in enumerate(chunks):
        at = torch.arange(chunk.context, chunk.context + chunk.tokens)
        slots.append(table[row, at // PAGE_TOKENS].to(torch.int64) * PAGE_TOKENS + at % PAGE_TOKENS)
    return torch.cat(slots)


def _cumulative(torch: Any, counts: Sequence[int], device: str) -> Tensor:
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)


def _causal(features: Features, most_queries: int) -> dict[str, Any]:
    """How varlen attention is told of groups of heads, and not to look ahead.

    A single query sees everything. Only where no mask is asked for does FlashAttention 2 take the query heads
    of a group together; a causal decode would read the keys and values once for each of them.
    """
    gqa = {"enable_gqa": True} if "enable_gqa" in features.varlen_parameters else {}
    if most_queries == 1:
        return gqa
    return {**gqa, "window_size": (-1, 0)} if features.causal_by_window else {**gqa, "is_causal": True}


def varlen_kernel() -> Any:
    """Torch's varlen attention; it is loaded when it is asked for."""
    return import_module("torch.nn.attention.varlen").varlen_attn


def flash_kernel(torch: Any) -> Any:
    """Torch's FlashAttention with everything that it returns."""
    return torch.ops.aten._flash_attention_forward
