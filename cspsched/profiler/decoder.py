"""A whole decoder with random weights, put together from the functions that are measured one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from cspsched.profiler import layers
from cspsched.profiler.attention import AttentionPlan, Cache, cache_slots, plan_attention
from cspsched.profiler.backends import GROUPED, attention_backend, operator_backends
from cspsched.profiler.compositions import Composition
from cspsched.profiler.layers import Tensor
from cspsched.profiler.points import Chunk
from cspsched.profiler.timing import Call
from cspsched.profiler.workbench import WEIGHT_SCALE, Workbench


class LayerWeights(NamedTuple):
    """Weights of one layer; the MLP is dense or of experts, with the router in front."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norms: tuple[Tensor, Tensor] | None
    out: Tensor
    post_norm: Tensor
    router: Tensor | None
    gate_up: Tensor
    down: Tensor


class Batch(NamedTuple):
    """Inputs of a step, on the device."""

    tokens: Tensor
    rope: tuple[Tensor, Tensor]
    plans: tuple[AttentionPlan, ...]
    """One for the whole batch, or one for its prefills and one for its decodes."""
    sizes: tuple[int, ...]
    """Tokens of each plan."""
    slots: Tensor
    last_rows: Tensor
    """Rows of the requests that generate."""


class Decoder:
    """Random weights (`layers`, `embedding`, `head`, `final_norm`) and KV caches on a workbench's device.

    Parameters
    ----------
    kv_tokens
        KV entries for which there is room, whole pages for each sequence of a batch.
    unified
        Whether one attention kernel takes prefills and decodes together, or one each.
    """

    def __init__(self, bench: Workbench, *, kv_tokens: int, unified: bool = False) -> None:
        self._bench, self._torch, self._unified = bench, bench.torch, unified
        self._shape = bench.shape(1)
        self._attention = attention_backend(bench.features)
        experts = operator_backends(bench.model, bench.features).get("experts", ("",))
        self._grouped = experts[0] == GROUPED
        shape = self._shape
        self.embedding = self._random(shape.vocabulary, shape.hidden)
        self.head = self.embedding
        if not bench.model.tied_embeddings:
            self.head = self._random(shape.vocabulary, shape.hidden)
        self.final_norm = self._ones(shape.hidden)
        self.layers = [self._layer_weights() for _ in range(shape.num_layers)]
        size = (kv_tokens, shape.num_kv_heads, shape.head_dim)
        self._caches: list[Cache] = [(bench.randn(*size), bench.randn(*size)) for _ in self.layers]

    def step(self, composition: Composition) -> Call:
        """The step of a batch as a call without arguments; the same call may be made again and again."""
        return partial(self.forward, self.batch(composition))

    def forward(self, batch: Batch) -> Tensor:
        """Token that each generating request gets, shape (num_generating,)."""
        torch = self._torch
        x = torch.nn.functional.embedding(batch.tokens, self.embedding)
        for weights, cache in zip(self.layers, self._caches, strict=True):
            normed = layers.rms_norm(torch, x, weights.input_norm)
            x = x + self._attend(weights, cache, batch, normed)
            x = x + self._mlp(weights, layers.rms_norm(torch, x, weights.post_norm))
        rows = layers.rms_norm(torch, x, self.final_norm)[batch.last_rows]
        return layers.greedy(torch, torch.nn.functional.linear(rows, self.head)) if len(rows) else rows

    def _attend(self, weights: LayerWeights, cache: Cache, batch: Batch, x: Tensor) -> Tensor:
        torch, shape, linear = self._torch, self._shape, self._torch.nn.functional.linear
        qkv = linear(x, weights.qkv, weights.qkv_bias)
        q, k, v = layers.split_qkv(qkv, shape.q_size, shape.kv_size, shape.head_dim)
        if weights.head_norms is not None:
            q, k = (
                layers.rms_norm(torch, y, norm) for y, norm in zip((q, k), weights.head_norms, strict=True)
            )
        q, k = (layers.rope(torch, y, *batch.rope) for y in (q, k))
        layers.write_kv(cache, batch.slots, k, v)
        parts = [plan(part, cache) for plan, part in zip(batch.plans, q.split(batch.sizes), strict=True)]
        heads = parts[0] if len(parts) == 1 else torch.cat(parts)
        return linear(heads.flatten(1), weights.out)

    def _mlp(self, weights: LayerWeights, x: Tensor) -> Tensor:
        torch, linear = self._torch, self._torch.nn.functional.linear
        if weights.router is None:
            return linear(layers.silu_mul(torch, linear(x, weights.gate_up)), weights.down)
        assert self._shape.experts is not None
        routed = layers.route(torch, linear(x, weights.router), self._shape.experts.experts_per_token)
        pair = (weights.gate_up, weights.down)
        return layers.apply_experts(torch, x, routed, pair, grouped=self._grouped)

    def batch(self, composition: Composition) -> Batch:
        """Inputs of a step with random tokens, and the tables of its attention."""
        torch, device = self._torch, self._bench.device
        chunks = composition.chunks
        plans, sizes = self._plans(composition)
        positions = torch.cat([torch.arange(n, n + c) for c, n in chunks]).to(device)
        last = torch.tensor(_last_rows(chunks)[len(chunks) - composition.num_generating :], dtype=torch.int64)
        return Batch(
            tokens=torch.randint(self._shape.vocabulary, (len(positions),), device=device),
            rope=layers.rope_tables(torch, positions, self._shape.head_dim, self.embedding.dtype),
            plans=plans,
            sizes=sizes,
            slots=torch.cat([plan.slots for plan in plans]),
            last_rows=last.to(device),
        )

    def _plans(self, composition: Composition) -> tuple[tuple[AttentionPlan, ...], tuple[int, ...]]:
        """Attention of prefills and of decodes, in one kernel or in two."""
        plans, sizes, first_slot = [], [], 0
        parts = (composition.prefills, composition.decodes)
        for chunks in (composition.chunks,) if self._unified else parts:
            if chunks:
                plans.append(self._plan(chunks, first_slot))
                sizes.append(sum(chunk.tokens for chunk in chunks))
                first_slot += cache_slots(chunks)
        return tuple(plans), tuple(sizes)

    def _plan(self, chunks: Sequence[Chunk], first_slot: int) -> AttentionPlan:
        bench = self._bench
        return plan_attention(self._torch, self._attention, chunks, bench.device, bench.features, first_slot)

    def _layer_weights(self) -> LayerWeights:
        shape, experts = self._shape, self._shape.experts
        stack: tuple[int, ...] = (experts.num_experts,) if experts else ()
        width = experts.width if experts else shape.width
        norms = (self._ones(shape.head_dim), self._ones(shape.head_dim)) if shape.qk_norm else None
        return LayerWeights(
            input_norm=self._ones(shape.hidden),
            qkv=self._random(shape.qkv_size, shape.hidden),
            qkv_bias=self._random(shape.qkv_size) if shape.qkv_bias else None,
            head_norms=norms,
            out=self._random(shape.hidden, shape.q_size),
            post_norm=self._ones(shape.hidden),
            router=self._random(experts.num_experts, shape.hidden) if experts else None,
            gate_up=self._random(*stack, 2 * width, shape.hidden),
            down=self._random(*stack, shape.hidden, width),
        )

    def _random(self, *size: int) -> Tensor:
        return self._bench.randn(*size) * WEIGHT_SCALE

    def _ones(self, size: int) -> Tensor:
        return self._bench.randn(size).fill_(1)


def composition_slots(composition: Composition) -> int:
    """KV slots that a batch takes in whole pages."""
    return cache_slots(composition.chunks)


def _last_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Row of the last token of each chunk."""
    rows, end = [], 0
    for chunk in chunks:
        end += chunk.tokens
        rows.append(end - 1)
    return rows
