"""Facts about models and devices: exact counts, helpful refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.devices import Device, device_names, engine_defaults, load_device, read_device
from cspsched.costs.models import LlmModel, load_model, model_name, model_names, read_model
from cspsched.costs.parallelism import Parallelism
from cspsched.errors import InputError, UsageError

PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-30b-a3b": 30_532_122_624,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "codellama-34b": 33_743_970_304,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v3": 671_026_419_200,
}
KV_BYTES_PER_TOKEN = {
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "qwen2.5-7b": 57_344,
    "qwen2.5-72b": 327_680,
    "mistral-7b": 131_072,
    "mixtral-8x7b": 131_072,
    "qwen3-30b-a3b": 98_304,
    "deepseek-v3": 61 * (512 + 64) * 2,
}
VALID_DEVICE = """
title = "GPU"
source = "made up"
architecture = "none"
memory_bytes = 1000
memory_bandwidth_bytes_per_s = 1e9
peak_flops_fp16 = 1e12
"""


def test_every_shipped_model_has_a_published_total():
    """Every shipped model has a checked parameter count, but for the one that is made up."""
    assert sorted([*PUBLISHED_PARAMETERS, "tiny-llama"]) == model_names()


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_num_parameters_is_the_published_total(name):
    """Shape alone gives the published parameter count, to the last weight."""
    assert PUBLISHED_PARAMETERS[name] == load_model(name).num_parameters


@pytest.mark.parametrize("name", KV_BYTES_PER_TOKEN)
def test_kv_bytes_per_token(name):
    """2 x layers x KV heads x head_dim x 2 bytes; of latent attention one compressed vector a layer."""
    assert KV_BYTES_PER_TOKEN[name] == load_model(name).kv_bytes_per_token()


@pytest.mark.parametrize(("tensor_parallel", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_kv_heads_are_replicated_once_ranks_outnumber_them(tensor_parallel, heads):
    """Eight KV heads are shared out over up to eight ranks, and no rank ever has none."""
    assert heads == load_model("llama-3.1-70b").kv_heads_per_rank(tensor_parallel)


def test_model_without_its_own_head_has_fewer_weights():
    """Tied embeddings save exactly one vocabulary x hidden matrix."""
    model = load_model("llama-3.1-8b")
    tied = replace(model, tied_embeddings=True)

    assert model.vocab_size * model.hidden_size == model.num_parameters - tied.num_parameters
    assert tied.weights_per_rank().head == 0


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_ranks_together_hold_at_least_the_whole_model(name, tensor_parallel):
    """Sharding loses no weight: what ranks hold twice (norms, router) only adds."""
    model = load_model(name)
    if model.num_heads % tensor_parallel:
        pytest.skip(f"{model.num_heads} heads cannot be shared by {tensor_parallel}")
    together = tensor_parallel * sum(model.weights_per_rank(Parallelism(tensor=tensor_parallel)))

    assert model.num_parameters <= together <= 1.02 * model.num_parameters


@given(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.sampled_from(["llama-3.1-70b", "qwen2.5-72b"]))
def test_more_ranks_never_hold_more_each(tensor_parallel, name):
    """Doubling the ranks lowers, or leaves, the weights and the KV bytes of one rank."""
    model = load_model(name)
    fewer = max(1, tensor_parallel // 2)

    of_more, of_fewer = (model.weights_per_rank(Parallelism(tensor=n)) for n in (tensor_parallel, fewer))

    assert sum(of_more) <= sum(of_fewer)
    assert model.kv_bytes_per_token(tensor_parallel) <= model.kv_bytes_per_token(fewer)


def test_what_ranks_cannot_share_is_refused():
    """32 heads over 3 ranks, 128 experts over 3, and experts of a model that has none."""
    with pytest.raises(InputError, match="expected a divisor of the 32"):
        load_model("llama-3.1-8b").weights_per_rank(Parallelism(tensor=3))
    with pytest.raises(InputError, match=r"128 experts of qwen3-30b-a3b .* with DP 3, EP 3"):
        load_model("qwen3-30b-a3b").weights_per_rank(Parallelism(data=3, has_expert_parallel=True))
    with pytest.raises(InputError, match=r"llama-3\.1-8b has no experts; leave expert_parallel away"):
        load_model("llama-3.1-8b").weights_per_rank(Parallelism(tensor=2, has_expert_parallel=True))


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_whole_experts_weigh_what_slices_of_all_do(tensor, data):
    """Where an expert's width divides evenly; all ranks of all groups share them."""
    model = load_model("qwen3-30b-a3b")
    sliced = model.weights_per_rank(Parallelism(tensor=tensor, data=data))
    whole = model.weights_per_rank(Parallelism(tensor=tensor, data=data, has_expert_parallel=True))
    router = model.num_layers * model.router_weights

    assert whole == sliced
    assert (whole.mlp - router) * tensor * data == model.weights_per_rank().mlp - router


def test_unknown_model_names_the_nearest_and_all():
    """A typo is answered with what was probably meant and with everything there is."""
    with pytest.raises(UsageError, match=r"Did you mean 'llama-3.1-8b'\?.*mixtral-8x7b"):
        load_model("Llama-3.1-8")


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b-fp8", "fp8"),
        ("Qwen/Qwen3-32B-FP8", "qwen3-32b-fp8-block", "fp8-block"),
        ("qwen3-32b-fp8", "qwen3-32b-fp8", "fp8"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b-int4", "int4"),
        ("mixtral-8x7b-gptq", "mixtral-8x7b-int4", "int4"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b", "bf16"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", "bf16"),
    ],
)
def test_the_format_of_the_weights_is_the_last_word_of_a_name(text, name, weights):
    """The shape is the shipped model's; whose checkpoint it is decides which FP8."""
    model = load_model(text)

    assert (model_name(text), model.name, model.weights) == (name, name, weights)


def test_a_format_of_an_unknown_model_is_refused():
    """The shape decides."""
    with pytest.raises(UsageError, match="unknown model 'nothing'"):
        load_model("nothing-fp8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int3"}, "weights is 'int3', expected one of bf16, fp8"),
        ({"kv_cache": "int8"}, "kv_cache is 'int8', expected one of bf16, fp8"),
        ({"sliding_window": 128}, "give sliding_window and num_sliding_layers, or neither"),
        ({"sliding_window": 128, "num_sliding_layers": 99}, "expected at most the 32 layers"),
    ],
)
def test_formats_and_windows_that_make_no_sense_are_refused(changes, message):
    """What is known is named."""
    with pytest.raises(InputError, match=message):
        replace(load_model("llama-3.1-8b"), **changes)


def test_layers_with_a_window_keep_no_more_than_it():
    """One more token takes KV cache in the other layers only; FP8 halves it."""
    model = load_model("gpt-oss-20b")

    assert model.kv_bytes_per_token() == 2 * 12 * 8 * 64 * 2
    assert replace(model, kv_cache="fp8").kv_bytes_per_token() == 12 * 8 * 64 * 2


def test_unknown_device_names_all():
    """A name near nothing is answered with everything there is."""
    with pytest.raises(UsageError, match=r"unknown device 'zzz'\. Known: a10, a100-40"):
        load_device("zzz")


@pytest.mark.parametrize("name", device_names())
def test_every_shipped_device_is_plausible(name):
    """A device reports between 8 and 288 GiB, and less than a gigabyte a nanosecond."""
    device = load_device(name)

    assert 8 * 2**30 < device.memory_bytes < 288 * 2**30
    assert 1e11 < device.memory_bandwidth_bytes_per_s < 1e13
    assert name == device.name


@pytest.mark.parametrize("name", ["t4", "v100"])
def test_devices_without_bfloat16_say_so(name):
    """What a device cannot do is None, not 0."""
    assert load_device(name).peak_flops_bf16 is None


@pytest.mark.parametrize(
    ("device", "expected"),
    [("b200", (16384, 1024)), ("h100", (8192, 1024)), ("h200", (8192, 1024)), ("a100-80", (2048, 256)),
     ("rtx-4090", (2048, 256))],
)  # fmt: skip
def test_engine_defaults_follow_the_memory(device, expected):
    """Large devices get large batches; an A100 counts as small whatever its memory."""
    assert expected == engine_defaults(load_device(device))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (VALID_DEVICE.replace("1000", '"1 GB"'), "memory_bytes is '1 GB', expected a whole number"),
        (VALID_DEVICE.replace("1000", "0"), "memory_bytes is 0, expected more than 0"),
        (VALID_DEVICE.replace("1e12", "true"), "peak_flops_fp16 is True, expected a number"),
        (VALID_DEVICE.replace('"GPU"', "7"), "title is 7, expected text"),
        (VALID_DEVICE.replace("title", "titel"), "title missing"),
        (VALID_DEVICE + "colour = 1", "unknown key 'colour'"),
        ("title =", "no valid TOML"),
    ],
)
def test_malformed_device_file_is_refused(tmp_path, text, complaint):
    """A wrong file is answered with what is wrong, where, and what was expected."""
    path = tmp_path / "gpu.toml"
    path.write_text(text)

    with pytest.raises(InputError, match=complaint):
        read_device(path)


def test_device_file_of_ones_own_is_read(tmp_path):
    """A file in the format of the shipped ones gives a device named after the file."""
    path = tmp_path / "gpu.toml"
    path.write_text(VALID_DEVICE)

    assert read_device(path) == Device(
        name="gpu", title="GPU", source="made up", architecture="none", memory_bytes=1000,
        memory_bandwidth_bytes_per_s=1e9, peak_flops_fp16=1e12,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "complaint"),
    [("[moe]\nnum_experts = 8", "moe: experts_per_token"), ("moe = 1", "moe: expected a table")],
)
def test_malformed_experts_are_refused(tmp_path, table, complaint):
    """A mixture of experts needs all of its fields."""
    path = tmp_path / "model.toml"
    path.write_text(f'title = "x"\n{table}\n')

    with pytest.raises(InputError, match=complaint):
        read_model(path)


def test_flag_that_is_no_flag_is_refused(tmp_path, shipped_model_text):
    """`qkv_bias = 1` is not read as true."""
    path = tmp_path / "model.toml"
    path.write_text(shipped_model_text.replace("qkv_bias = false", "qkv_bias = 1"))

    with pytest.raises(InputError, match="qkv_bias is 1, expected true or false"):
        read_model(path)


@pytest.fixture
def shipped_model_text() -> str:
    from cspsched.resources import data_root

    return (data_root() / "models/llms/llama-2-7b.toml").read_text()


def test_moe_uses_only_the_experts_of_a_token():
    """A token of Mixtral uses two experts of 14336 features each."""
    model: LlmModel = load_model("mixtral-8x7b")

    assert model.mlp_width == 2 * 14336
