"""Sets up a point: weights, activations and KV cache on the device, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cspsched.costs.models import LlmModel
from cspsched.errors import LimitError
from cspsched.profiler import layers
from cspsched.profiler.attention import PAGE_TOKENS, Cache, cache_slots, plan_attention
from cspsched.profiler.backends import DRAWN, GROUPED, Features, find_features, require_torch
from cspsched.profiler.layers import Tensor
from cspsched.profiler.operators import gemm_sizes
from cspsched.profiler.points import Point
from cspsched.profiler.probe import working_attention
from cspsched.profiler.shapes import RankShape, rank_shape
from cspsched.profiler.timing import Call
from cspsched.units import ceil_div

COLD_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}
"""Memory that is gone through before the same weights come again: more than the last cache holds."""
MOST_COPIES = 8
FEW_TOKENS = 512
"""Up to here weights may dominate, so that copies of them are used in turn."""
WEIGHT_SCALE = 0.02


class Workbench:
    """Tensors of one model on one device. Data is random: zeros run faster on real hardware.

    On a CPU torch is set to one thread, for this process.

    Raises
    ------
    UsageError
        If torch, or the device, is not there.
    """

    def __init__(self, model: LlmModel, device: str, *, seed: int) -> None:
        self.torch = require_torch(device)
        self.device = device
        self.model = model
        self.features: Features = working_attention(self.torch, find_features(self.torch, device))
        if device == "cpu":
            self.torch.set_num_threads(1)
        self.torch.manual_seed(seed)
        self._weights: dict[tuple[Any, ...], list[Tensor]] = {}
        self._caches: dict[tuple[int, ...], Cache] = {}
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def shape(self, tensor_parallel: int) -> RankShape:
        """Shapes of a rank."""
        return rank_shape(self.model, tensor_parallel)

    def calls(self, point: Point) -> list[Call]:
        """Calls that do a point's work; several where it is small, on other weights each."""
        shape = self.shape(point.tensor_parallel)
        if gemm_sizes(point.operator, shape) is not None:
            return self._gemm_calls(point, shape)
        if point.operator.startswith("attn_"):
            return self._attention_calls(point, shape)
        if point.operator == "embed":
            return self._embed_calls(point, shape)
        if point.operator == "experts":
            return self._expert_calls(point, shape)
        call = self._small_call(point, shape)
        return [call] * (MOST_COPIES if point.num_tokens <= FEW_TOKENS else 1)

    def kernel_impl(self, point: Point) -> str:
        """Function of torch behind a point."""
        return KERNEL_IMPL.get(point.backend) or KERNEL_IMPL.get(point.operator, "torch elementwise")

    def randn(self, *size: int) -> Tensor:
        """Random activations of the model's type."""
        return self.torch.randn(size, device=self.device, dtype=getattr(self.torch, self.shape(1).dtype))

    def require_device(self) -> None:
        """Refuse to go on where nothing works any more, as after a kernel that wrote where it must not.

        Raises
        ------
        LimitError
            If the device does not do the simplest thing.
        """
        try:
            self.randn(1)
            if self.device == "cuda":
                self.torch.cuda.synchronize()
                self.torch.cuda.empty_cache()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise LimitError(
                f"the device no longer answers ({reason}); run the command again; "
                "with --resume a profile keeps its rows, and leaves out the point that broke the device"
            ) from None

    def cache(self, shape: RankShape, slots: int) -> Cache:
        """KV cache of one layer with at least so many slots, filled at random."""
        key = (shape.num_kv_heads, shape.head_dim)
        have = self._caches.get(key)
        if have is None or len(have[0]) < slots:
            size = ceil_div(slots, PAGE_TOKENS) * PAGE_TOKENS
            # The smaller one is given back before the larger one is asked for.
            self._caches.pop(key, None)
            self._caches[key] = (self.randn(size, *key), self.randn(size, *key))
        return self._caches[key]

    def _gemm_calls(self, point: Point, shape: RankShape) -> list[Call]:
        n, k = gemm_sizes(point.operator, shape) or (0, 0)
        torch, x = self.torch, self.randn(point.num_tokens, k)
        weights = self._copies(point, (n, k))
        linear = torch.nn.functional.linear
        if point.operator == "router" and shape.experts is not None:
            per_token = shape.experts.experts_per_token
            return [partial(_routed, torch, x, weight, per_token) for weight in weights]
        bias = self.randn(n) if point.operator == "qkv_proj" and shape.qkv_bias else None
        return [partial(linear, x, weight, bias) for weight in weights]

    def _attention_calls(self, point: Point, shape: RankShape) -> list[Call]:
        slots = cache_slots(point.chunks)
        copies = max(1, min(MOST_COPIES, self._cold_bytes() // (slots * shape.kv_bytes_per_token)))
        cache = self.cache(shape, slots * copies)
        q = self.randn(point.num_tokens, shape.num_heads, shape.head_dim)
        plans = [
            plan_attention(self.torch, point.backend, point.chunks, self.device, self.features, slots * copy)
            for copy in range(copies)
        ]
        return [partial(plan, q, cache) for plan in plans]

    def _embed_calls(self, point: Point, shape: RankShape) -> list[Call]:
        table = self._copies(point, (shape.vocabulary, shape.hidden))[0]
        embed = self.torch.nn.functional.embedding
        size = (MOST_COPIES, point.num_tokens)
        ids = self.torch.randint(shape.vocabulary, size, device=self.device)
        return [partial(embed, row, table) for row in ids]

    def _expert_calls(self, point: Point, shape: RankShape) -> list[Call]:
        assert shape.experts is not None
        experts, torch = shape.experts, self.torch
        x = self.randn(point.num_tokens, shape.hidden)
        # A token's experts are neighbours in a circle of the active ones, so that all of those are met.
        first = torch.arange(point.num_tokens, device=self.device)[:, None] * experts.experts_per_token
        circle = torch.randperm(experts.num_experts, device=self.device)[: point.active_experts]
        chosen = circle[(first + torch.arange(experts.experts_per_token, device=self.device)) % len(circle)]
        share = torch.full_like(chosen, 1, dtype=x.dtype) / experts.experts_per_token
        ups = self._copies(point, (experts.num_experts, 2 * experts.width, shape.hidden))
        downs = self._copies(point, (experts.num_experts, shape.hidden, experts.width))
        grouped = point.backend == GROUPED
        pairs = zip(ups, downs, strict=False)
        return [
            partial(layers.apply_experts, torch, x, (share, chosen), pair, grouped=grouped) for pair in pairs
        ]

    def _small_call(self, point: Point, shape: RankShape) -> Call:
        """Operators without weights worth copying."""
        torch, tokens, head_dim = self.torch, point.num_tokens, shape.head_dim
        match point.operator:
            case "rmsnorm":
                x, weight = self.randn(tokens, shape.hidden), self.randn(shape.hidden)
                return partial(self._function(layers.rms_norm, point), torch, x, weight)
            case "residual":
                x = self.randn(tokens, shape.hidden)
                return partial(self._function(_add, point), x, self.randn(tokens, shape.hidden))
            case "silu_mul":
                return partial(
                    self._function(layers.silu_mul, point), torch, self.randn(tokens, 2 * shape.width)
                )
            case "sampler":
                sample = _draw if point.backend == DRAWN else layers.greedy
                return partial(sample, torch, self.randn(tokens, shape.vocabulary))
            case "kv_cache_write":
                slots = torch.randperm(2 * tokens, device=self.device)[:tokens]
                k, v = (self.randn(tokens, shape.num_kv_heads, head_dim) for _ in range(2))
                return partial(layers.write_kv, self.cache(shape, 2 * tokens), slots, k, v)
            case "qk_norm":
                q, k = self._heads(tokens, shape)
                return partial(_norm_heads, torch, q, k, self.randn(head_dim))
            case _:
                assert point.operator == "rope", point.operator
                positions = torch.randint(self.model.max_model_len, (tokens,), device=self.device)
                tables = layers.rope_tables(torch, positions, head_dim, self.randn(1).dtype)
                q, k = self._heads(tokens, shape)
                return partial(self._function(_rotate_heads, point), torch, q, k, *tables)

    def _heads(self, tokens: int, shape: RankShape) -> tuple[Tensor, Tensor]:
        """Queries and keys as they come out of the projection."""
        qkv = self.randn(tokens, shape.qkv_size)
        return layers.split_qkv(qkv, shape.q_size, shape.kv_size, shape.head_dim)[:2]

    def _function(self, function: Callable[..., Any], point: Point) -> Callable[..., Any]:
        """The function itself, or as torch.compile fuses it (once for all sizes)."""
        if point.backend != "compiled":
            return function
        if function not in self._compiled:
            self._compiled[function] = self.torch.compile(function, dynamic=True)
        return self._compiled[function]

    def _copies(self, point: Point, size: tuple[int, ...]) -> list[Tensor]:
        """Weights of one size; as many copies as keep them as cold as in a forward pass."""
        key = (point.operator, *size)
        if key not in self._weights:
            first = self.randn(*size) * WEIGHT_SCALE
            most = min(MOST_COPIES, self._cold_bytes() // (first.numel() * first.element_size()) + 1)
            self._weights[key] = [first, *(self.randn(*size) * WEIGHT_SCALE for _ in range(most - 1))]
        weights = self._weights[key]
        return weights if point.num_tokens <= FEW_TOKENS else weights[:1]

    def _cold_bytes(self) -> int:
        model_bytes = self.model.num_parameters * self.model.dtype_bytes
        return min(COLD_BYTES[self.device], model_bytes)


KERNEL_IMPL = {
    "varlen_paged": "torch.nn.attention.varlen.varlen_attn(block_table)",
    "flash_in_place": "torch.ops.aten._flash_attention_forward(seqused_k)",
    "varlen": "torch.nn.attention.varlen.varlen_attn after a gather",
    "sdpa_loop": "scaled_dot_product_attention, one call a sequence",
    "sdpa_flash": "scaled_dot_product_attention(FLASH_ATTENTION)",
    "sdpa_cudnn": "scaled_dot_product_attention(CUDNN_ATTENTION)",
    "compiled": "torch.compile",
    "grouped_mm": "torch._grouped_mm",
    "expert_loop": "torch.nn.functional.linear, one call an expert",
    "exponential_race": "torch.softmax, Tensor.exponential_ and torch.argmax",
    "qkv_proj": "torch.nn.functional.linear",
    "o_proj": "torch.nn.functional.linear",
    "gate_up": "torch.nn.functional.linear",
    "down": "torch.nn.functional.linear",
    "lm_head": "torch.nn.functional.linear",
    "router": "torch.nn.functional.linear, softmax and topk",
    "rmsnorm": "torch.nn.functional.rms_norm",
    "embed": "torch.nn.functional.embedding",
    "kv_cache_write": "torch.Tensor.index_copy_",
    "sampler": "torch.argmax",
}


def _routed(torch: Any, x: Tensor, weight: Tensor, experts_per_token: int) -> Tensor:
    return layers.route(torch, torch.nn.functional.linear(x, weight), experts_per_token)


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _draw(torch: Any, logits: Tensor) -> Tensor:
    """Draw from the softmax: the largest of p / e with e exponential. `multinomial` waits for the device."""
    shares = torch.softmax(logits, dim=-1, dtype=torch.float32)
    return torch.argmax(shares / torch.empty_like(shares).exponential_(), dim=-1)


def _norm_heads(torch: Any, q: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return layers.rms_norm(torch, q, weight), layers.rms_norm(torch, k, weight)


def _rotate_heads(torch: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return layers.rope(torch, q, cos, sin), layers.rope(torch, k, cos, sin)
