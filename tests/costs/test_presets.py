"""Shipped cost models: the published numbers, the identity behind them, and how they are found."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.costs.compose import default_cost
from cspsched.costs.devices import load_device
from cspsched.costs.models import load_model
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.presets import (
    DEFAULT_DEVICE,
    DEFAULT_MODEL,
    cost_names,
    cost_path,
    describe_cost,
    load_cost,
)
from cspsched.errors import CostError, InputError, UsageError
from cspsched.problem.cost import BatchFeatures, triangle

FITTED = [name for name in cost_names() if describe_cost(name).device is not None]
FASTER = ["a100-80-llama-3.1-8b", "h100-llama-3.1-8b", "h200-llama-3.1-8b"]
PUBLISHED = {
    "infermax-70b": (80, "0.2112", "0.081", "1.222e-6", "0.159", "0.002", "9.03e-4", "3.92e-4", "3.805e-7",
                     "4.309e-8"),
    "infermax-7b": (32, "0.0926", "0.01921", "8.513e-6", "0.06486", "0.00191", "0.001534", "7.4e-4",
                    "9.224e-6", "1.6773e-7"),
}  # fmt: skip
"""Layers, b_p, b_d, f_dec, step, f_tok, c_p, c_d, f_ctx, prefill attention: milliseconds per layer."""


def batch(chunks: list[tuple[int, int]], contexts: list[int]) -> BatchFeatures[int]:
    """Features of prefill chunks (n, c) and of decodes with n carried tokens."""
    return BatchFeatures(
        tokens=sum(c for _, c in chunks) + len(contexts),
        prefill_attention=sum(triangle(n + c) - triangle(n) for n, c in chunks),
        prefill_tokens=sum(c for _, c in chunks),
        prefill_context=sum(n for n, _ in chunks),
        decode_context=sum(contexts),
        num_generating=len(contexts),
        num_prefills=len(chunks),
        num_decodes=len(contexts),
    )


def published_time_ns(name: str, chunks: list[tuple[int, int]], contexts: list[int]) -> Fraction:
    """InferMax's formula as printed, with its own c^2 + 2 c n."""
    layers, *texts = PUBLISHED[name]
    b_p, b_d, f_dec, step, f_tok, c_p, c_d, f_ctx, a = map(Fraction, texts)
    per_layer = step + f_tok * (sum(c for _, c in chunks) + len(contexts))
    per_layer += c_p * len(chunks) + c_d * len(contexts) + f_dec * sum(contexts)
    per_layer += f_ctx * sum(n for n, _ in chunks) + a * sum(c * c + 2 * c * n for n, c in chunks)
    per_layer += (b_p if chunks else 0) + (b_d if contexts else 0)
    return per_layer * layers * 1_000_000


chunk_lists = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 8192)), max_size=5)
context_lists = st.lists(st.integers(1, 50_000), max_size=8)


@pytest.mark.parametrize("name", PUBLISHED)
@given(chunks=chunk_lists, contexts=context_lists)
def test_infermax_is_the_published_formula(name, chunks, contexts):
    """The form with coefficients >= 0 is the published c^2 + 2 c n, up to one nanosecond a term."""
    if not chunks and not contexts:
        return
    time_ns = load_cost(name).batch_time_ns(batch(chunks, contexts))

    assert 0 <= time_ns - published_time_ns(name, chunks, contexts) < 11


def test_infermax_coefficients_are_exact():
    """Milliseconds per layer times 80 layers, without a rounded digit."""
    cost = load_cost("infermax-70b")

    assert cost.step == 12_720_000
    assert cost.prefill_batch == 16_896_000
    assert cost.decode_batch == 6_480_000
    assert Fraction("97.76") == cost.decode_context.slopes[0]
    assert 2 * 80_000_000 * Fraction("4.309e-8") == cost.prefill_attention.slopes[0]
    assert 80_000_000 * Fraction("0.002") == cost.tokens.slopes[0] + cost.prefill_attention.slopes[0] / 2


def test_linear_infermax_lacks_only_the_attention():
    """`infermax-70b-linear` has no term over A or P and keeps the context term."""
    cost = load_cost("infermax-70b-linear")

    assert cost.prefill_attention.is_zero
    assert cost.prefill_tokens.is_zero
    assert cost.tokens.slopes[0] == 160_000
    assert cost.decode_request == 31_360
    assert Fraction("30.44") == cost.prefill_context.slopes[0]


def test_linear_infermax_prices_the_first_known_optimum():
    """The optimal schedule of problem E2 (three requests (2, 4), nine KV tokens) takes 0.140135 s.

    Two requests are evicted and refilled in one batch without decodes, so that it pays no decode step.
    """
    batches = [
        batch([(0, 2), (0, 2), (0, 2)], []),
        batch([], [2, 2, 2]),
        batch([], [3, 3]),
        batch([], [4]),
        batch([(0, 5), (0, 4)], []),
        batch([], [4]),
    ]
    total_ns = sum(load_cost("infermax-70b-linear").batch_time_ns(one) for one in batches)

    assert total_ns == pytest.approx(140_135_000, abs=2_000)


@given(chunks=chunk_lists, contexts=context_lists)
def test_unit_batches_take_one_tick(chunks, contexts):
    """Under `unit` every batch takes one nanosecond, whatever it holds."""
    assert load_cost("unit").batch_time_ns(batch(chunks, contexts)) == 1


@pytest.mark.parametrize("name", cost_names())
def test_every_cost_model_describes_itself(name):
    """A shipped cost model is called like its file and says where it is from and what it leaves out."""
    info = describe_cost(name)

    assert name == info.name == load_cost(name).name
    assert "not named" not in (info.source, info.leaves_out)
    assert info.title != name


@pytest.mark.parametrize("name", FITTED)
def test_fitted_cost_models_are_of_known_models_and_devices(name):
    """Model and device of a fit are shipped facts, and every operator has a measured error."""
    info = describe_cost(name)

    usual = f"{load_device(info.device).name}-{load_model(info.model).name}"
    assert name == f"{usual}{info.parallelism.suffix}"
    assert "decode_attention" in info.fit_error
    assert name == default_cost(load_model(info.model), info.device, info.parallelism)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_cost_models_stay_in_int64(name):
    """Denominators are small enough that the largest sensible batch is priced in 64 bits."""
    cost = load_cost(name)
    functions = (cost.tokens, cost.prefill_tokens, cost.decode_context, cost.head)

    assert all(function.denominator <= 10**6 for function in (*functions, cost.prefill_attention))
    assert all(function.numerator(10**8) < 2**62 for function in functions)
    assert cost.prefill_attention.numerator(10**12) < 2**62


@pytest.mark.parametrize("name", cost_names())
@settings(max_examples=25)
@given(
    small=st.lists(st.integers(0, 10_000), min_size=8, max_size=8),
    more=st.lists(st.integers(0, 10_000), min_size=8, max_size=8),
)
def test_more_of_anything_never_takes_less_time(name, small, more):
    """Batch time is non-decreasing in every feature, and scalar and array evaluation agree."""
    cost = load_cost(name)
    low = BatchFeatures(*small)
    high = BatchFeatures(*(a + b for a, b in zip(small, more, strict=True)))
    arrays = BatchFeatures(*(np.array(pair) for pair in zip(low, high, strict=True)))

    assert cost.batch_time_ns(low) <= cost.batch_time_ns(high)
    assert [cost.batch_time_ns(low), cost.batch_time_ns(high)] == cost.batch_times_ns(arrays).tolist()


def test_a_faster_device_is_faster():
    """One decode of a long context takes longest on the A100 and shortest on the H200."""
    decode = batch([], [8000])
    a100, h100, h200 = (load_cost(name).batch_time_ns(decode) for name in FASTER)

    assert a100 > h100 > h200


def test_decode_reads_all_weights_at_least_once():
    """A batch of one decode takes at least the time to read the weights at the peak bandwidth."""
    model, device = load_model(DEFAULT_MODEL), load_device(DEFAULT_DEVICE)
    read = model.num_parameters - model.weights_per_rank().embedding
    floor_ns = 1e9 * read * model.dtype_bytes / device.memory_bandwidth_bytes_per_s
    cost = load_cost(default_cost(model, DEFAULT_DEVICE))

    assert floor_ns < cost.batch_time_ns(batch([], [1])) < 2 * floor_ns


def test_head_is_paid_only_by_batches_that_generate():
    """A batch of unfinished chunks alone does not run the language-model head."""
    cost = load_cost("h100-llama-3.1-8b")
    silent = batch([(0, 512)], [])

    assert cost.batch_time_ns(silent._replace(num_generating=1)) - cost.batch_time_ns(silent) > 300_000


def test_unmeasured_pair_names_those_that_there_are():
    """Asking for a device without measurements lists the pairs that have some."""
    with pytest.raises(UsageError, match=r"llama-3\.1-8b on h100 with TP 1"):
        default_cost(load_model("llama-3.1-70b"), "l4", Parallelism(tensor=4))


@pytest.mark.parametrize("name", FITTED)
def test_cost_files_are_small(name):
    """A fitted cost model is a few kilobytes of text, as every command reads one."""
    assert cost_path(name).stat().st_size < 10_000


@pytest.mark.parametrize("device", ["a100-80", "h100", "h200"])
def test_more_ranks_are_faster_and_never_by_more_than_their_number(device):
    """A large prefill takes less time on more GPUs, and at least its share of the time on one."""
    prefill = batch([(0, 8192)], [])
    model = load_model("llama-3.1-8b")
    one, *others = (
        load_cost(default_cost(model, device, Parallelism(tensor=ranks))).batch_time_ns(prefill)
        for ranks in (1, 2, 4, 8)
    )

    assert [one, *others] == sorted([one, *others], reverse=True)
    assert all(one <= 1.1 * ranks * time for ranks, time in zip((2, 4, 8), others, strict=True))


def test_unknown_cost_model_names_the_nearest():
    """A typo is answered with what was probably meant."""
    with pytest.raises(UsageError, match=r"unknown cost model 'infermax-70'\. Did you mean 'infermax-70b'\?"):
        load_cost("infermax-70")


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_cost_file_of_ones_own_is_read(tmp_path, suffix):
    """A path that ends in .json or .toml is read in place of a shipped name, as text or as a path."""
    path = tmp_path / f"mine{suffix}"
    data = {"schema": "cspsched/cost/1", "name": "mine", "step_ns": "3/2"}
    toml = "\n".join(f'{key} = "{value}"' for key, value in data.items())
    path.write_text(json.dumps(data) if suffix == ".json" else toml)

    assert Fraction(3, 2) == load_cost(path).step == load_cost(str(path)).step
    assert describe_cost(path).source == "not named"


def test_missing_cost_file_is_refused(tmp_path):
    """A path to nothing is an input error that names the path."""
    with pytest.raises(InputError, match=r"mine\.toml does not exist"):
        load_cost(tmp_path / "mine.toml")


def test_negative_coefficient_is_refused(tmp_path):
    """A cost file that prices something negatively is refused."""
    path = tmp_path / "mine.toml"
    path.write_text('schema = "cspsched/cost/1"\nname = "mine"\nstep_ns = "1"\ndecode_request_ns = "-1"\n')

    with pytest.raises(CostError, match="decode_request is -1"):
        load_cost(path)


def test_json_round_trip_of_every_preset():
    """Every shipped cost model survives JSON exactly."""
    for name in cost_names():
        cost = load_cost(name)
        assert cost == type(cost).from_json(json.loads(json.dumps(cost.to_json())))
