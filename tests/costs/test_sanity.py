"""What every shipped cost model must not say, and that it is told where one does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction

import pytest

from cspsched.costs.devices import load_device
from cspsched.costs.models import load_model
from cspsched.costs.parallelism import ONE_GPU
from cspsched.costs.presets import cost_names, describe_cost, load_cost
from cspsched.costs.sanity import complaints
from cspsched.problem.cost import BatchFeatures
from cspsched.problem.piecewise import PiecewiseLinear
from tests.support.command_line import invoke

SLOW_LARGE_BATCHES = {
    "h100-llama-3.1-8b", "h100-mistral-7b", "h100-qwen2.5-7b",
    "h200-llama-3.1-8b", "h200-mistral-7b", "h200-qwen2.5-7b",
}  # fmt: skip
"""Pinned files in which 16,384 tokens take 3 to 6 % longer than in chunks, as their tables say; what is
fitted now does not (`without_rising_rate`)."""
REDUCE_NS = 10_000
MEASURED = [name for name in cost_names() if describe_cost(name).device is not None]


def facts(name):
    """Cost model, model, device and degree of a shipped file."""
    info = describe_cost(name)
    return load_cost(name), load_model(info.model), load_device(info.device), info.parallelism or ONE_GPU


@pytest.mark.parametrize("name", MEASURED)
def test_shipped_cost_models_stay_within_what_is_possible(name):
    """No decode beats the bandwidth, no prefill the peak rate, no chunk the whole prompt."""
    found = list(complaints(*facts(name)))

    assert all("faster in chunks" in sentence for sentence in found)
    assert bool(found) == (name in SLOW_LARGE_BATCHES)


@pytest.mark.parametrize("name", [name for name in MEASURED if facts(name)[3].tensor > 1])
def test_more_ranks_never_slow_a_decode(name):
    """By more than the all-reduce explains: two a layer, of at least 10 us where all ranks have to meet."""
    info = describe_cost(name)
    reduces_ns = 2 * load_model(info.model).num_layers * REDUCE_NS
    ranks = info.parallelism.tensor
    fewer = name.replace(f"-tp{ranks}", f"-tp{ranks // 2}").replace("-tp1", "")
    if fewer not in cost_names():
        pytest.skip(f"{fewer} does not fit and does not ship")
    for number in (1, 32, 128):
        batch = BatchFeatures(
            tokens=number, prefill_attention=0, prefill_tokens=0, prefill_context=0,
            decode_context=512 * number, num_generating=number, num_prefills=0, num_decodes=number,
        )  # fmt: skip
        slack_ns = reduces_ns if load_model(info.model).moe else 0
        assert load_cost(name).batch_time_ns(batch) <= load_cost(fewer).batch_time_ns(batch) + slack_ns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": Fraction(0), "tokens": PiecewiseLinear.linear(1)}, "reading weights and KV cache alone"),
        ({"tokens": PiecewiseLinear.linear(1)}, "alone take .* at the peak rate of h100"),
        ({"tokens": PiecewiseLinear((0, 4096), (Fraction(10**4), Fraction(10**6)))}, "faster in chunks"),
    ],
)
def test_what_cannot_be_is_told(changes, words):
    """A free step, free tokens, and tokens that get dearer."""
    cost, *others = facts("a100-80-llama-3.1-8b")
    sentences = " ".join(complaints(replace(cost, **changes), others[0], load_device("h100"), ONE_GPU))
    assert re.search(words, sentences)


def test_a_file_that_cannot_be_right_is_told_when_it_is_used(tmp_path, capsys):
    """One line on standard error; the run goes on."""
    cost = replace(load_cost("a100-80-llama-3.1-8b"), step=Fraction(0), tokens=PiecewiseLinear.linear(1))
    text = tmp_path / "cost.json"
    data = cost.to_json() | {"model": "llama-3.1-8b", "device": "a100-80", "tensor_parallel": 1}
    text.write_text(json.dumps(data))
    outcome = invoke(capsys, "simulate", "tiny-12", "--limit", "2", "--cost", text)

    assert outcome.code == 0
    assert "reading weights and KV cache alone takes" in outcome.err
