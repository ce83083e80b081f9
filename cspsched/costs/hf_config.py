"""Shapes of LLMs from the `config.json` of a model on Hugging Face, as the fields of our own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cspsched.errors import InputError
from cspsched.problem.json_io import read_json, require_int

DTYPE_BYTES = {"bfloat16": 2, "float16": 2}
Config = dict[str, Any]


def read_hf_config(path: Path) -> dict[str, Any]:
    """Fields of a model by their names in `LlmModel`, those of experts under `moe`.

    The model is named after the folder of its `config.json`, a file of another name after itself.

    Raises
    ------
    InputError
        If the file cannot be read, the architecture is not known, a field is missing or makes no sense, or
        the weights are stored in a way that is not known.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected the fields of a config.json, got {type(data).__name__}")
    # Models that also see hold the decoder's fields apart.
    config: Config = data["text_config"] if isinstance(data.get("text_config"), dict) else data
    kind = str(config.get("model_type", data.get("model_type")))
    if kind not in FAMILIES:
        raise InputError(
            f"{path}: model_type is {kind!r}; known are {', '.join(sorted(FAMILIES))}. A model with the same "
            "layers as one of them (grouped-query attention, gated MLP or experts) can be written as TOML "
            "(see models/llms)"
        )
    family = FAMILIES[kind]
    weights = _weights(config, data, str(path))
    heads = _count(config, "num_attention_heads", path)
    hidden = _count(config, "hidden_size", path)
    stem = path.resolve().parent.name if path.stem == "config" else path.stem
    more: dict[str, Any] = _sliding_window(config, path) if family.get("slides") else {}
    if "moe" in family:
        more["moe"] = family["moe"](config, path)
    if family.get("latent"):
        more["mla"] = {name: _count(config, name, path) for name in LATENT}
        more["mla"]["q_lora_rank"] = _count(config, "q_lora_rank", path, 0)
    if weights is not None and family.get("only_experts_are_quantised"):
        more["moe"]["weights"] = weights
    elif weights is not None:
        more["weights"] = weights
    return more | {
        "name": stem.lower(),
        "title": str(data.get("_name_or_path") or stem),
        "source": f"{path.name} ({kind})",
        "num_layers": _count(config, "num_hidden_layers", path),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": _count(config, "num_key_value_heads", path, heads),
        "head_dim": _head_dim(config, hidden, heads, path),
        "intermediate_size": _count(config, "intermediate_size", path),
        "vocab_size": _count(config, "vocab_size", path),
        "tied_embeddings": bool(config.get("tie_word_embeddings", family.get("tied", False))),
        "max_model_len": _count(config, "max_position_embeddings", path),
        "qkv_bias": bool(config.get("attention_bias", family.get("qkv_bias", False))),
        "qk_norm": bool(family.get("qk_norm", False)),
        "has_all_biases": bool(family.get("has_all_biases", False)),
        "dtype_bytes": _dtype_bytes(config, data, path),
    }


def _mixtral(config: Config, path: Path) -> dict[str, int]:
    return {
        "num_experts": _count(config, "num_local_experts", path),
        "experts_per_token": _count(config, "num_experts_per_tok", path),
        "expert_intermediate_size": _count(config, "intermediate_size", path),
    }


def _qwen3_moe(config: Config, path: Path) -> dict[str, int]:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise InputError(f"{path}: some layers have an MLP in place of experts, which is not priced")
    return {
        "num_experts": _count(config, "num_experts", path),
        "experts_per_token": _count(config, "num_experts_per_tok", path),
        "expert_intermediate_size": _count(config, "moe_intermediate_size", path),
    }


def _deepseek(config: Config, path: Path) -> dict[str, Any]:
    if config.get("moe_layer_freq", 1) != 1:
        raise InputError(f"{path}: moe_layer_freq is {config['moe_layer_freq']}, expected 1")
    return {
        "num_experts": _count(config, "n_routed_experts", path),
        "experts_per_token": _count(config, "num_experts_per_tok", path),
        "expert_intermediate_size": _count(config, "moe_intermediate_size", path),
        "num_shared_experts": _count(config, "n_shared_experts", path, 0),
        "num_dense_layers": _count(config, "first_k_dense_replace", path, 0),
        "has_router_bias": config.get("topk_method") == "noaux_tc",
    }


LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "phi3": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma": {"tied": True},
    "mixtral": {"moe": _mixtral},
    "qwen3_moe": {"qk_norm": True, "moe": _qwen3_moe},
    "deepseek_v2": {"latent": True, "moe": _deepseek},
    "deepseek_v3": {"latent": True, "moe": _deepseek},
    "kimi_k2": {"latent": True, "moe": _deepseek},
    "gpt_oss": {
        "qkv_bias": True,
        "has_all_biases": True,
        "slides": True,
        "moe": _mixtral,
        "only_experts_are_quantised": True,
    },
}
"""What the fields do not say of each `model_type`: biases, norms of queries and keys, the experts."""


def _weights(config: Config, data: Config, where: str) -> str | None:
    """Format of the weights of linear layers (`cspsched.costs.weights`); None: not quantised."""
    quantised = config.get("quantization_config") or data.get("quantization_config")
    if not quantised:
        return None
    fields = quantised if isinstance(quantised, dict) else {}
    method = str(fields.get("quant_method", quantised)).lower()
    bits = fields.get("bits", 4)
    if method == "fp8":
        return "fp8-block" if fields.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq") and bits == 4:
        return "int4"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("modelopt", "compressed-tensors"):
        text = str(fields).lower()
        found = [name for word, name in CHECKPOINT_WORDS.items() if word in text]
        if found:
            return found[0]
    raise InputError(
        f"{where}: the weights are quantised ({method}{f', {bits} bits' if 'bits' in fields else ''}), known "
        "are fp8, awq, gptq (4 bits), mxfp4, modelopt and compressed-tensors of FP8, NVFP4 or 4-bit "
        "integers; name a shipped model with a format as its last word (llama-3.1-8b-fp8)"
    )


CHECKPOINT_WORDS = {
    "nvfp4": "nvfp4",
    "fp8": "fp8",
    "float-quantized": "fp8",
    "pack-quantized": "int4",
}
"""Formats by the words that ModelOpt and llm-compressor write into a config.json."""


def _sliding_window(config: Config, path: Path) -> dict[str, Any]:
    """Layers with a sliding window: those that `layer_types` names."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        raise InputError(f"{path}: layer_types is missing, a {config.get('model_type')} needs it")
    number = kinds.count("sliding_attention")
    if not number:
        return {}
    return {"sliding_window": _count(config, "sliding_window", path), "num_sliding_layers": number}


def _dtype_bytes(config: Config, data: Config, path: Path) -> int:
    name = str(config.get("torch_dtype") or config.get("dtype") or data.get("torch_dtype") or "bfloat16")
    if name == "float32":
        return DTYPE_BYTES["float16"]  # engines serve such weights in 16 bits
    if name not in DTYPE_BYTES:
        raise InputError(f"{path}: torch_dtype is {name!r}, expected bfloat16, float16 or float32")
    return DTYPE_BYTES[name]


def _count(config: Config, key: str, path: Path, default: int | None = None) -> int:
    """A field, or its default where it is missing or null."""
    if config.get(key) is None and default is not None:
        return default
    if key not in config:
        raise InputError(f"{path}: {key} is missing, a {config.get('model_type')} needs it")
    return require_int(config, key, str(path))


def _head_dim(config: Config, hidden: int, heads: int, path: Path) -> int:
    """Features of a head: as stated, or an even share of the hidden ones."""
    if config.get("head_dim") is None and (heads < 1 or hidden % heads):
        raise InputError(
            f"{path}: hidden_size {hidden} is no multiple of num_attention_heads {heads}; head_dim is missing"
        )
    return _count(config, "head_dim", path, hidden // max(heads, 1))
