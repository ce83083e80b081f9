"""From a trace to an instance: defaults of the engine on the device, capacities, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from cspsched.costs.presets import load_cost
from cspsched.errors import InputError, UsageError
from cspsched.problem.instance import Preemption, Switches
from cspsched.problem.request import Request
from cspsched.serving import Serving, make_instance, plan_memory
from cspsched.trace import Trace

TRACE = Trace(
    name="two",
    format="native",
    requests=(
        Request(request_id="a", arrival_ns=0, prompt_tokens=5, output_tokens=2),
        Request(request_id="b", arrival_ns=9, prompt_tokens=7, output_tokens=1),
    ),
)


@pytest.mark.parametrize(
    ("device", "batch_tokens", "batch_requests"),
    [
        ("h100", 8192, 1024),
        ("h200", 8192, 1024),
        ("b200", 16384, 1024),
        ("a100-80", 2048, 256),
        ("a100-40", 2048, 256),
        ("l4", 2048, 256),
        ("t4", 2048, 256),
    ],
)
def test_default_limits_are_those_of_vllm_on_the_device(device, batch_tokens, batch_requests):
    """C and R are what vLLM V1's server chooses by the memory of the device, an A100 being an exception."""
    limits = make_instance(TRACE, Serving(device=device, cost="unit", kv_blocks=10)).limits

    assert (limits.max_batch_tokens, limits.max_batch_requests) == (batch_tokens, batch_requests)


def test_default_is_llama_8b_on_an_h100():
    """Without a set-up the cost model is the measured one, and the capacity is the planner's."""
    instance = make_instance(TRACE)

    assert instance.cost.name == "h100-llama-3.1-8b"
    assert instance.limits.kv_blocks == plan_memory(Serving()).kv_blocks == 27_806
    assert instance.limits.block_tokens == 16
    assert instance.limits.max_model_len == 131_072
    assert instance.requests == TRACE.requests


def test_given_limits_replace_the_defaults():
    """Every limit can be set; the switches are passed on."""
    switches = Switches(preemption=Preemption.NONE)
    serving = Serving(
        max_batch_tokens=64,
        max_batch_requests=3,
        max_model_len=99,
        block_tokens=4,
        kv_blocks=12,
        switches=switches,
    )

    instance = make_instance(TRACE, serving)

    assert (instance.limits.max_batch_tokens, instance.limits.max_batch_requests) == (64, 3)
    assert (instance.limits.max_model_len, instance.limits.kv_tokens) == (99, 48)
    assert instance.switches is switches


@pytest.mark.parametrize(("kv_tokens", "kv_blocks"), [(16, 1), (31, 1), (32, 2), (1000, 62)])
def test_kv_tokens_are_rounded_down_to_whole_blocks(kv_tokens, kv_blocks):
    """A part of a block holds nothing."""
    assert make_instance(TRACE, Serving(kv_tokens=kv_tokens)).limits.kv_blocks == kv_blocks


def test_capacity_below_one_block_is_refused():
    """15 tokens are no block of 16; with blocks of 15 they are one."""
    with pytest.raises(InputError, match=r"kv_tokens is 15, less than one KV block of 16 tokens; give more"):
        make_instance(TRACE, Serving(kv_tokens=15))

    assert make_instance(TRACE, Serving(kv_tokens=15, block_tokens=15)).limits.kv_blocks == 1


def test_two_capacities_are_refused():
    """kv_tokens and kv_blocks say the same thing."""
    with pytest.raises(UsageError, match="both kv_tokens and kv_blocks are given; give one of them"):
        make_instance(TRACE, Serving(kv_tokens=64, kv_blocks=4))


@pytest.mark.parametrize(
    ("cost", "model", "device"),
    [("a100-80-llama-3.1-8b", "llama-3.1-8b", "a100-80"), ("h200-llama-3.1-8b", "llama-3.1-8b", "h200")],
)
def test_cost_model_brings_the_hardware_that_it_was_measured_on(cost, model, device):
    """Naming only the cost model gives the same instance as naming model and device."""
    assert make_instance(TRACE, Serving(cost=cost)) == make_instance(
        TRACE, Serving(model=model, device=device)
    )


def test_named_device_wins_over_that_of_the_cost_model():
    """Limits follow the device that the user names."""
    serving = Serving(cost="a100-80-llama-3.1-8b", device="h100")

    assert make_instance(TRACE, serving).limits.max_batch_tokens == 8192


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (Serving(model="llama-3.1-8"), r"unknown model 'llama-3.1-8'\. Did you mean 'llama-3.1-8b'\?"),
        (Serving(device="h10"), r"unknown device 'h10'\. Did you mean 'h100'\?"),
        (Serving(cost="infermax"), r"unknown cost model 'infermax'\. Did you mean 'infermax-7b'\?"),
        (Serving(device="l4"), r"no cost model was measured for llama-3.1-8b on l4 .* there are: "),
        (
            Serving(model="qwen2.5-72b"),
            r"qwen2.5-72b does not fit on one h100: give --tensor-parallel 2, 4 or 8",
        ),
        (Serving(tensor_parallel=16), r"with TP 16; there are: "),
    ],
)
def test_name_without_facts_is_refused(serving, message):
    """A misspelt name suggests the nearest; a pair without measurements lists those that have some."""
    with pytest.raises(UsageError, match=message):
        make_instance(TRACE, serving)


def test_model_that_does_not_fit_says_what_to_do():
    """70B parameters need more than one H100; four hold them."""
    with pytest.raises(InputError, match=r"does not fit on h100 .* use more tensor parallelism"):
        plan_memory(Serving(model="llama-3.1-70b", tensor_parallel=1))
    with pytest.raises(
        UsageError, match=r"on one h100: give --tensor-parallel 2, 4 or 8 \(with a cost model\)"
    ):
        plan_memory(Serving(model="llama-3.1-70b"))

    assert plan_memory(Serving(model="llama-3.1-70b", tensor_parallel=4)).kv_blocks > 0


def test_swap_has_the_engine_s_host_memory_and_a_stated_rate_by_default():
    """4 GiB hold 2048 blocks of 16 tokens of 131072 bytes each; one moves at 25 GB/s in 2 MiB / 25 ns."""
    instance = make_instance(TRACE, Serving(switches=Switches(preemption=Preemption.EITHER)))

    assert instance.limits.host_kv_blocks == 4 * 2**30 // (16 * 131_072) == 2048
    assert instance.cost.swap_block == Fraction(2**21, 25)
    assert make_instance(TRACE).limits.host_kv_blocks == make_instance(TRACE).cost.swap_block == 0


def test_swap_counts_the_share_of_each_gpu():
    """With two GPUs a block takes half of the bytes on each, which have memory and a bus of their own."""
    serving = Serving(
        cost="unit",
        kv_blocks=10,
        tensor_parallel=2,
        host_memory_bytes=2**21 + 1,
        swap_bytes_per_s=10**9,
        switches=Switches(preemption=Preemption.SWAP),
    )
    instance = make_instance(TRACE, serving)

    assert instance.limits.host_kv_blocks == 2
    assert instance.cost.swap_block == 2**20


def test_a_cost_model_with_a_rate_of_its_own_keeps_it(tmp_path):
    """A file that says what a block takes is not overruled by a default, but by what is given."""
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(replace(load_cost("unit"), swap_block=Fraction(7, 3)).to_json()))
    serving = Serving(cost=path, kv_blocks=10, switches=Switches(preemption=Preemption.SWAP))

    assert make_instance(TRACE, serving).cost.swap_block == Fraction(7, 3)
    given = replace(serving, swap_bytes_per_s=2**21)
    assert make_instance(TRACE, given).cost.swap_block == 10**9


@pytest.mark.parametrize("given", [{"host_memory_bytes": 1}, {"swap_bytes_per_s": 1}])
def test_host_memory_without_swap_is_refused(given):
    """What would change nothing is told."""
    with pytest.raises(UsageError, match=r"preemption recompute moves nothing there; allow swap"):
        make_instance(TRACE, Serving(**given))


def test_a_rate_of_nothing_is_refused():
    """Nothing ever arrives at 0 bytes a second."""
    serving = Serving(swap_bytes_per_s=0, switches=Switches(preemption=Preemption.SWAP))
    with pytest.raises(UsageError, match="swap_bytes_per_s is 0, expected at least 1"):
        make_instance(TRACE, serving)
