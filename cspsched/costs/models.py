"""Architectures of LLMs and devices they run on, with the counts that follow from their shape."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cspsched.costs.facts import checked_fields, fact_names, fact_path, read_toml, require_positive
from cspsched.costs.hf_config import read_hf_config
from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.costs.weights import KV_CACHE_BYTES, PLAIN, format_of_name, require_format
from cspsched.errors import InputError
from cspsched.units import ceil_div

MODEL_FOLDER = "models/llms"
MODEL_SUFFIXES = (".toml", ".json")
VARIANT = re.compile(r"instruct|chat|hf|base|it|v0\.\d|\d{4}")
"""Words in the name of a model that has the shape and the weights' type of the one without them."""


class WeightCounts(NamedTuple):
    """Parameters of a model by what they are for (dimensionless counts)."""

    embedding: int
    attention: int
    mlp: int
    """Gated MLP of all layers; for a mixture of experts all experts and the router."""
    norms: int
    head: int
    """Language-model head; 0 where it shares the embedding's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Mixture of experts that replaces the MLP, of every layer or of all but the first.

    Attributes
    ----------
    weights
        Format of the experts' weights (`cspsched.costs.weights`); None: that of the model.
    num_shared_experts
        Experts of the same width that every token uses beside those that it chooses.
    num_dense_layers
        First layers that have an MLP.
    has_router_bias
        Whether the router has a bias.
    """

    num_experts: int
    experts_per_token: int
    expert_intermediate_size: int
    weights: str | None = None
    num_shared_experts: int = 0
    num_dense_layers: int = 0
    has_router_bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "moe", at_least_0=("num_shared_experts", "num_dense_layers"))
        if self.weights is not None:
            require_format(self.weights, "moe: weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: keys and values of all heads in one compressed vector a token.

    DeepSeek-V2 (arXiv 2405.04434, section 2.1), whose names these are.

    Attributes
    ----------
    q_lora_rank
        Features of a compressed query; 0 if queries are not compressed.
    kv_lora_rank, qk_rope_head_dim
        Features of the compressed keys and values, and of the key with the position, which are cached.
    """

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        require_positive(self, "mla", at_least_0=("q_lora_rank",))

    @property
    def cached_features(self) -> int:
        """Elements of KV cache of a token in a layer, on every rank."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def num_weights(self, hidden_size: int, num_heads: int) -> int:
        """Weights of a layer on a rank with so many heads, the two norms of compressed vectors included."""
        head = self.qk_nope_head_dim + self.qk_rope_head_dim
        queries = (self.q_lora_rank or hidden_size) * num_heads * head
        if self.q_lora_rank:
            queries += (hidden_size + 1) * self.q_lora_rank
        compressed = hidden_size * self.cached_features + self.kv_lora_rank
        expanded = self.kv_lora_rank * num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return queries + compressed + expanded + num_heads * self.v_head_dim * hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmModel:
    """Shape of a decoder-only LLM with grouped-query or latent attention, and a gated MLP or experts.

    Attributes
    ----------
    name
        Name of its file.
    title, source
        For people: what it is called, and where every number comes from.
    max_model_len
        Longest sequence in tokens.
    qkv_bias, qk_norm
        Whether the query, key and value projections have a bias; whether queries and keys are normalised.
    dtype_bytes
        Bytes of an activation, and of a weight that is not in a linear layer.
    weights
        Format of the weights of linear layers (`cspsched.costs.weights`).
    kv_cache
        Type of KV elements: `bf16` for that of activations, or `fp8`.
    sliding_window, num_sliding_layers
        Tokens that some of the layers look back at, and how many layers these are.
    has_all_biases
        Whether also the output projection, the router and the experts have biases, and each head a sink.
    mla
        Latent attention in place of grouped queries, which leaves `num_kv_heads` and `head_dim` without use.
    """

    name: str
    title: str
    source: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    max_model_len: int
    qkv_bias: bool
    qk_norm: bool
    dtype_bytes: int
    weights: str = PLAIN
    kv_cache: str = "bf16"
    sliding_window: int | None = None
    num_sliding_layers: int = 0
    has_all_biases: bool = False
    moe: Moe | None = None
    mla: Mla | None = None

    def __post_init__(self) -> None:
        where = f"model {self.name!r}"
        require_positive(self, where, at_least_0=("num_sliding_layers",))
        require_format(self.weights, f"{where}: weights")
        if self.kv_cache not in KV_CACHE_BYTES:
            known = ", ".join(KV_CACHE_BYTES)
            raise InputError(f"{where}: kv_cache is {self.kv_cache!r}, expected one of {known}")
        if (self.sliding_window is None) != (self.num_sliding_layers == 0):
            raise InputError(f"{where}: give sliding_window and num_sliding_layers, or neither")
        if self.num_sliding_layers > self.num_layers:
            raise InputError(
                f"{where}: num_sliding_layers is {self.num_sliding_layers}, expected at most the "
                f"{self.num_layers} layers"
            )

    @property
    def num_parameters(self) -> int:
        """Exact number of weights, as the model's authors count them."""
        return sum(self.weights_per_rank())

    @property
    def mlp_width(self) -> int:
        """Intermediate features that one token uses in a layer, of experts where there are some."""
        if self.moe is None:
            return self.intermediate_size
        used = self.moe.experts_per_token + self.moe.num_shared_experts
        return used * self.moe.expert_intermediate_size

    @property
    def num_expert_layers(self) -> int:
        """Layers whose MLP is replaced by experts."""
        return 0 if self.moe is None else self.num_layers - self.moe.num_dense_layers

    @property
    def router_weights(self) -> int:
        """Weights of the router of a layer, which every rank holds; 0 without experts."""
        if self.moe is None:
            return 0
        has_bias = self.has_all_biases or self.moe.has_router_bias
        return self.moe.num_experts * (self.hidden_size + (1 if has_bias else 0))

    def kv_heads_per_rank(self, tensor_parallel: int = 1) -> int:
        """KV heads that one tensor-parallel rank stores; heads are replicated once ranks outnumber them."""
        return ceil_div(self.num_kv_heads, tensor_parallel)

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> int:
        """Bytes of KV cache that one more token takes on one tensor-parallel rank, all layers together.

        Layers with a sliding window keep no more than that, and are left out.
        """
        features = 2 * self.kv_heads_per_rank(tensor_parallel) * self.head_dim
        if self.mla is not None:
            features = self.mla.cached_features
        element = self.dtype_bytes if self.kv_cache == PLAIN else KV_CACHE_BYTES[self.kv_cache]
        return max(self.num_layers - self.num_sliding_layers, 1) * features * element

    def weights_per_rank(self, parallelism: Parallelism = ONE_GPU) -> WeightCounts:
        """Weights that one rank holds (Megatron sharding; norms and router replicated).

        Raises
        ------
        InputError
            If the attention heads or whole experts cannot be shared out evenly.
        """
        tensor_parallel = parallelism.tensor
        if self.num_heads % tensor_parallel:
            raise InputError(
                f"tensor_parallel is {tensor_parallel}, expected a divisor of the {self.num_heads} "
                f"attention heads of {self.name}"
            )
        if self.moe is None and parallelism.has_expert_parallel:
            raise InputError(f"{self.name} has no experts; leave expert_parallel away")
        if self.moe is not None and self.moe.num_experts % parallelism.expert_groups:
            raise InputError(
                f"the {self.moe.num_experts} experts of {self.name} cannot be shared out evenly with "
                f"{parallelism.title}; give another tensor_parallel or data_parallel"
            )
        vocabulary = ceil_div(self.vocab_size, tensor_parallel) * self.hidden_size
        return WeightCounts(
            embedding=vocabulary,
            attention=self.num_layers * self._layer_attention(tensor_parallel),
            mlp=(self.num_layers - self.num_expert_layers) * self._layer_mlp(tensor_parallel)
            + self.num_expert_layers * self._layer_experts(parallelism),
            norms=(2 * self.num_layers + 1) * self.hidden_size,
            head=0 if self.tied_embeddings else vocabulary,
        )

    def _layer_attention(self, tensor_parallel: int) -> int:
        if self.mla is not None:
            return self.mla.num_weights(self.hidden_size, self.num_heads // tensor_parallel)
        q_size = self.num_heads // tensor_parallel * self.head_dim
        qkv_size = q_size + 2 * self.kv_heads_per_rank(tensor_parallel) * self.head_dim
        bias = qkv_size if self.qkv_bias else 0
        if self.has_all_biases:
            bias += self.hidden_size + self.num_heads // tensor_parallel
        head_norms = 2 * self.head_dim if self.qk_norm else 0
        return self.hidden_size * (qkv_size + q_size) + bias + head_norms

    def _layer_mlp(self, tensor_parallel: int) -> int:
        return 3 * self.hidden_size * ceil_div(self.intermediate_size, tensor_parallel)

    def _layer_experts(self, parallelism: Parallelism) -> int:
        if self.moe is None:
            return 0
        width = ceil_div(self.moe.expert_intermediate_size, parallelism.expert_slices)
        biases = 2 * width + self.hidden_size if self.has_all_biases else 0
        experts = self.moe.num_experts // parallelism.expert_groups
        shared = self.moe.num_shared_experts * self.moe.expert_intermediate_size
        always = 3 * self.hidden_size * ceil_div(shared, parallelism.tensor)
        return experts * (3 * self.hidden_size * width + biases) + always + self.router_weights


def model_names() -> list[str]:
    """Names of the models that ship with cspsched."""
    return fact_names(MODEL_FOLDER)


def load_model(name: str) -> LlmModel:
    """Read a model: a shipped one by a name that `model_name` knows, or a file.

    A file is a `config.json` of Hugging Face (any name that ends in `.json`) or our TOML.

    Raises
    ------
    UsageError
        If there is none of that name.
    InputError
        If a file cannot be read, or is no model that can be priced.
    """
    if name.endswith(MODEL_SUFFIXES):
        return read_model(Path(name))
    shape, weights = _split_name(name)
    model = read_model(fact_path("model", MODEL_FOLDER, shape if weights else model_name(name)))
    if weights is None:
        return model
    moe = model.moe and replace(model.moe, weights=None)
    return replace(model, name=f"{model.name}-{weights}", weights=weights, moe=moe)


def model_name(text: str) -> str:
    """Name of the shipped model that a text means, such as `meta-llama/Llama-3.1-8B-Instruct`.

    Variants of the same shape (instruct, chat) are the model; the format of the weights stays as the last
    word (`nvidia/Llama-3.1-8B-Instruct-FP8` is `llama-3.1-8b-fp8`). A text that means none is returned as it
    is.
    """
    name, weights = _split_name(text)
    if name not in fact_names(MODEL_FOLDER):
        return text
    return name if weights is None else f"{name}-{weights}"


def _split_name(text: str) -> tuple[str, str | None]:
    """What the shape is called that a text may mean, and the format of the weights that it names."""
    owner, _, last = text.rpartition("/")
    words = last.lower().removeprefix("meta-").split("-")
    words, weights = format_of_name(words, owner)
    return "-".join(word for word in words if not VARIANT.fullmatch(word)), weights


def usual_name(model: str, device: str, parallelism: Parallelism = ONE_GPU) -> str:
    """What the cost model of a model on so many devices is called."""
    return f"{device}-{model}{parallelism.suffix}"


def read_model(path: Path) -> LlmModel:
    """Read the TOML file of a model, whose name is the file's, or a `config.json` of Hugging Face.

    Raises
    ------
    InputError
        If a field is missing, unknown, or not what it has to be; if an architecture is not known.
    """
    data = read_hf_config(path) if path.suffix == ".json" else {"name": path.stem, **read_toml(path)}
    if "moe" in data:
        data["moe"] = Moe(**checked_fields(data["moe"], Moe, f"{path}: moe"))
    if "mla" in data:
        data["mla"] = Mla(**checked_fields(data["mla"], Mla, f"{path}: mla"))
    return LlmModel(**checked_fields(data, LlmModel, str(path)))
