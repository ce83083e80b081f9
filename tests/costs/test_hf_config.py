"""Shapes from `config.json` files, against the shipped models and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cspsched.costs.models import LlmModel, load_model
from cspsched.errors import InputError
from tests.support.command_line import invoke

KINDS = {
    "llama-2-7b": "llama",
    "llama-2-70b": "llama",
    "llama-3.1-8b": "llama",
    "mistral-7b": "mistral",
    "qwen2.5-7b": "qwen2",
    "mixtral-8x7b": "mixtral",
    "qwen3-30b-a3b": "qwen3_moe",
}


def config_of(model: LlmModel, kind: str) -> dict[str, Any]:
    """Fields of a model as its authors name them."""
    config: dict[str, Any] = {
        "model_type": kind,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "max_position_embeddings": model.max_model_len,
        "torch_dtype": "bfloat16",
    }
    if model.moe is None:
        return config
    config["num_experts_per_tok"] = model.moe.experts_per_token
    names = {"mixtral": ("num_local_experts", "intermediate_size")}
    experts, width = names.get(kind, ("num_experts", "moe_intermediate_size"))
    return config | {experts: model.moe.num_experts, width: model.moe.expert_intermediate_size}


def write(folder: Path, config: dict[str, Any]) -> str:
    """A config.json in a folder of its own name."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


@pytest.mark.parametrize("name", KINDS)
def test_a_config_is_the_model_that_ships(name, tmp_path):
    """Biases, norms and experts follow from the model type; the name is the folder's."""
    shipped = load_model(name)
    found = load_model(write(tmp_path / "My-Model", config_of(shipped, KINDS[name])))

    assert found.name == "my-model"
    assert replace(found, name=name, title=shipped.title, source=shipped.source) == shipped


def test_fields_that_may_be_missing_have_the_defaults_of_their_authors(tmp_path):
    """As many KV heads as heads, an even share of the hidden features, 16 bits."""
    config = config_of(load_model("llama-2-7b"), "llama")
    for key in ("num_key_value_heads", "head_dim", "torch_dtype", "tie_word_embeddings"):
        del config[key]

    found = load_model(write(tmp_path / "model", config))
    assert found.num_parameters == load_model("llama-2-7b").num_parameters


def test_the_decoder_of_a_model_that_sees_is_taken(tmp_path):
    """Its fields stand below `text_config`."""
    config = config_of(load_model("llama-3.1-8b"), "llama")
    found = load_model(write(tmp_path / "model", {"model_type": "mllama", "text_config": config}))

    assert found.num_parameters == load_model("llama-3.1-8b").num_parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mamba2"},
            "model_type is 'mamba2'; known are deepseek_v2, deepseek_v3, gemma, gpt_oss",
        ),
        ({"hidden_size": None}, "hidden_size must be an integer|hidden_size is None"),
        ({"hidden_size": 4095, "head_dim": None}, "4095 is no multiple of num_attention_heads 32"),
        ({"num_hidden_layers": 0}, "num_layers is 0, expected more than 0"),
        ({"quantization_config": {"quant_method": "hqq"}}, r"quantised \(hqq\), known are fp8, awq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, r"quantised \(gptq, 3 bits\)"),
        ({"torch_dtype": "float8"}, "torch_dtype is 'float8', expected bfloat16"),
    ],
)
def test_what_cannot_be_priced_is_refused(changes, message, tmp_path):
    """One line says what, where and what to do."""
    config = config_of(load_model("llama-3.1-8b"), "llama") | changes
    with pytest.raises(InputError, match=message):
        load_model(write(tmp_path / "model", config))


@pytest.mark.parametrize(
    ("quantisation", "weights"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "int4"),
    ],
)
def test_quantised_weights_are_known_by_their_config(quantisation, weights, tmp_path):
    """What the checkpoint says of itself; the shape is that of the model that was quantised."""
    config = config_of(load_model("llama-3.1-8b"), "llama") | {"quantization_config": quantisation}
    found = load_model(write(tmp_path / "model", config))

    assert found.weights == weights
    assert found.num_parameters == load_model("llama-3.1-8b").num_parameters


def test_windows_and_experts_of_their_own_format(tmp_path):
    """GPT-OSS: every other layer looks back at 128 tokens, only the experts have 4 bits."""
    shipped = load_model("gpt-oss-20b")
    config = config_of(shipped, "gpt_oss") | {
        "num_local_experts": 32, "intermediate_size": 2880, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    found = load_model(write(tmp_path / "model", config))
    assert replace(found, name=shipped.name, title=shipped.title, source=shipped.source) == shipped

    del config["layer_types"]
    with pytest.raises(InputError, match="layer_types is missing, a gpt_oss needs it"):
        load_model(write(tmp_path / "other", config))


V2_LITE = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 10944, "vocab_size": 102400,
    "tie_word_embeddings": False, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
    "n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "greedy", "q_lora_rank": None,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
"""config.json of deepseek-ai/DeepSeek-V2-Lite, as far as it is read."""


def test_latent_attention_and_shared_experts(tmp_path):
    """Published total of parameters; the KV cache is one compressed vector a layer, on every rank."""
    model = load_model(write(tmp_path / "deepseek-v2-lite", V2_LITE))

    assert model.num_parameters == 15_706_484_224
    assert model.kv_bytes_per_token() == model.kv_bytes_per_token(4) == 27 * 576 * 2
    with pytest.raises(InputError, match=r"kv_lora_rank is missing, a deepseek_v2 needs it"):
        load_model(write(tmp_path / "x", {k: v for k, v in V2_LITE.items() if k != "kv_lora_rank"}))
    with pytest.raises(InputError, match="moe_layer_freq is 2, expected 1"):
        load_model(write(tmp_path / "y", V2_LITE | {"moe_layer_freq": 2}))


def test_a_config_of_deepseek_is_the_model_that_ships(tmp_path):
    """FP8 in blocks, a bias of the router, dense layers first."""
    shipped = load_model("deepseek-v3")
    assert shipped.moe is not None
    assert shipped.mla is not None
    config = config_of(shipped, "deepseek_v3") | {
        "n_routed_experts": 256, "n_shared_experts": 1, "first_k_dense_replace": 3, "topk_method": "noaux_tc",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        **asdict(shipped.mla),
    }  # fmt: skip
    model = load_model(write(tmp_path / "deepseek-v3", config))

    assert replace(model, title=shipped.title, source=shipped.source) == shipped


def test_a_missing_field_is_named(tmp_path, capsys):
    """The command line tells it in one line and exits with 1."""
    config = config_of(load_model("llama-3.1-8b"), "llama")
    del config["vocab_size"]
    outcome = invoke(capsys, "capacity", "--model", write(tmp_path / "model", config))

    assert outcome.code == 1
    assert "vocab_size is missing, a llama needs it" in outcome.err


def test_capacity_of_a_config_is_that_of_the_model(tmp_path, capsys):
    """The memory plan needs the shape only."""
    path = write(tmp_path / "model", config_of(load_model("llama-3.1-8b"), "llama"))
    by_config = invoke(capsys, "capacity", "--model", path, "--json")
    by_name = invoke(capsys, "capacity", "--model", "llama-3.1-8b", "--json")

    assert by_config.out == by_name.out
