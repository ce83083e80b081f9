"""The KV capacity planner: where every byte goes, and the one real engine it is checked against."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.devices import device_names, load_device
from cspsched.costs.kv_capacity import (
    ENGINE_BYTES,
    SAMPLER_BYTES_PER_LOGIT,
    KvPlan,
    activation_bytes,
    plan_kv_capacity,
    weight_bytes,
)
from cspsched.costs.models import load_model, model_names
from cspsched.costs.parallelism import Parallelism
from cspsched.errors import InputError
from tests.support.places import DATA

REAL_RUN = DATA / "real_runs/rtx4090_llama-3.1-8b_vllm-0.19/meta.json"


def plan(model: str = "llama-3.1-8b", device: str = "h100", **options) -> KvPlan:
    options = {"max_batch_tokens": 8192, "max_batch_requests": 256} | options
    return plan_kv_capacity(load_model(model), load_device(device), **options)


@pytest.mark.skipif(not REAL_RUN.is_file(), reason="needs the measured vLLM run of ../shared/data")
def test_plan_meets_the_real_engine():
    """The measured vLLM 0.19 run on an RTX 4090 had within 3 % of the planned blocks."""
    run = json.loads(REAL_RUN.read_text())
    engine = run["engine_kwargs"]
    planned = plan(
        device="rtx-4090",
        block_tokens=run["kv_cache"]["block_size"],
        gpu_memory_utilization=run["kv_cache"]["gpu_memory_utilization"],
        max_batch_tokens=engine["max_num_batched_tokens"],
        max_batch_requests=engine["max_num_seqs"],
    )

    assert run["hardware"]["device_total_memory_bytes"] == planned.device_bytes
    assert run["kv_cache"]["num_gpu_blocks"] == pytest.approx(planned.num_blocks, rel=0.03)


@pytest.mark.skipif(not REAL_RUN.is_file(), reason="needs the measured vLLM run of ../shared/data")
def test_real_engine_leaves_what_the_margin_says():
    """Weights and KV cache of the real run leave activations and engine of about the planned size."""
    run = json.loads(REAL_RUN.read_text())
    model = load_model("llama-3.1-8b")
    usable = run["kv_cache"]["gpu_memory_utilization"] * run["hardware"]["device_total_memory_bytes"]
    kv_bytes = run["kv_cache"]["num_kv_tokens"] * model.kv_bytes_per_token()
    left = usable - sum(weight_bytes(model)) - kv_bytes

    assert activation_bytes(model, 1, 2048, 256) + ENGINE_BYTES == pytest.approx(left, rel=0.05)


@given(
    st.sampled_from(model_names()),
    st.sampled_from(device_names()),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.5, 0.9, 0.92, 1.0]),
)
def test_rows_account_for_every_byte(model, device, tensor_parallel, utilization):
    """Whatever is planned, the printed shares sum exactly to the device's memory and none is negative."""
    try:
        planned = plan(
            model, device, parallelism=Parallelism(tensor=tensor_parallel), gpu_memory_utilization=utilization
        )
    except InputError:
        return
    sizes = [size for _, size in planned.rows()]

    assert load_device(device).memory_bytes == sum(sizes)
    assert min(sizes) >= 0
    assert planned.available_bytes - planned.num_blocks * planned.block_bytes < planned.block_bytes


def test_one_block_is_the_null_block():
    """Requests can use all blocks but one."""
    planned = plan()

    assert planned.num_blocks - 1 == planned.kv_blocks
    assert 16 * planned.kv_blocks == planned.kv_tokens
    assert dict(planned.rows())["null block"] == planned.block_bytes


@given(st.integers(1, 16384), st.integers(1, 16384), st.integers(1, 1024), st.integers(1, 1024))
def test_larger_batches_never_leave_more_blocks(tokens, more_tokens, requests, more_requests):
    """Raising a batch limit costs memory or nothing."""
    small = plan(max_batch_tokens=tokens, max_batch_requests=requests)
    large = plan(max_batch_tokens=tokens + more_tokens, max_batch_requests=requests + more_requests)

    assert large.num_blocks <= small.num_blocks


@given(st.floats(0.4, 1.0), st.floats(0.4, 1.0))
def test_more_of_the_device_never_means_fewer_blocks(one, other):
    """Blocks are monotone in `gpu_memory_utilization`."""
    low, high = sorted([one, other])

    assert plan(gpu_memory_utilization=low).num_blocks <= plan(gpu_memory_utilization=high).num_blocks


@pytest.mark.parametrize("model", ["llama-3.1-70b", "mixtral-8x7b"])
def test_more_ranks_hold_more_tokens(model):
    """Sharing weights and KV heads over more ranks leaves room for more tokens."""
    assert (
        plan(model, "h200", parallelism=Parallelism(tensor=2)).kv_tokens
        < plan(model, "h200", parallelism=Parallelism(tensor=4)).kv_tokens
    )


def test_sampler_sets_the_peak_for_many_requests():
    """With 1024 requests the logits of a large vocabulary outgrow the activations of a layer."""
    model = load_model("llama-3.1-8b")
    stream = 2 * 8192 * model.hidden_size
    sampler = SAMPLER_BYTES_PER_LOGIT * 1024 * model.vocab_size

    assert stream + sampler == activation_bytes(model, 1, 8192, 1024)


def test_layer_sets_the_peak_for_few_requests():
    """With one request the MLP of a layer is the peak: residual twice and three times the width."""
    model = load_model("llama-3.1-8b")

    expected = 2 * 8192 * (2 * model.hidden_size + 3 * model.intermediate_size)
    assert expected == activation_bytes(model, 1, 8192, 1)


def test_weights_are_padded_to_whole_vocabulary_shards():
    """No shipped vocabulary needs padding at one rank, so weight bytes are those of the parameters."""
    for name in model_names():
        model = load_model(name)
        if model.weights == "bf16" and (model.moe is None or model.moe.weights is None):
            assert model.dtype_bytes * model.num_parameters == sum(weight_bytes(model))


@pytest.mark.parametrize(
    ("name", "published_gib"),
    [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8), ("llama-3.1-8b-awq", 5.73e9 / 2**30)],
)
def test_checkpoints_are_as_large_as_published(name, published_gib):
    """Scales and what stays in 16 bits included: OpenAI's model card, files of the AWQ checkpoint."""
    assert sum(weight_bytes(load_model(name))) / 2**30 == pytest.approx(published_gib, rel=0.005)


def test_weights_that_do_not_fit_are_refused_with_the_numbers():
    """A 70B model on one 24 GB card is refused with its bytes and with what to do."""
    with pytest.raises(InputError, match=r"141107412992 bytes .*22725564825 bytes.*more tensor parallelism"):
        plan("llama-3.1-70b", "rtx-4090", gpu_memory_utilization=0.9)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization is 0.0"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization is 1.1"),
        ({"block_tokens": 0}, "at least 1"),
        ({"max_batch_tokens": 0}, "at least 1"),
        ({"parallelism": Parallelism(tensor=5)}, "expected a divisor"),
    ],
)
def test_nonsense_is_refused(options, complaint):
    """Every argument is checked before anything is planned."""
    with pytest.raises(InputError, match=complaint):
        plan(**options)
