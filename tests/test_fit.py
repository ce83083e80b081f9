"""Fitting of cost terms: known truths are found again, nonsense is refused, shipped fits are re-checked."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspsched.costs import aic_tables
from cspsched.costs.fit import (
    Measurements,
    batch_features,
    constant_column,
    feature_column,
    fit_piecewise_linear,
    fit_terms,
    non_negative_fit,
    price_terms,
    ramp_columns,
    relative_errors,
)
from cspsched.costs.models import load_device, load_model
from cspsched.costs.presets import load_cost
from cspsched.errors import InputError
from cspsched.problem.cost import CONSTANT_TERMS, FUNCTION_FEATURES, CostModel, PiecewiseLinear

TABLES = Path(__file__).parents[2] / "shared/data/profiles"
MODEL = load_model("llama-3.1-8b")
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="needs the public tables of ../shared/data")
x_points = np.unique(np.geomspace(1, 10_000, 60).astype(np.int64))


@given(
    st.integers(100, 10**6),
    st.lists(st.integers(0, 10_000), min_size=3, max_size=3).filter(any),
)
@settings(max_examples=30, deadline=None)  # the first fit imports scikit-learn
def test_fit_finds_a_known_function_again(floor, slopes):
    """Times made by a floor and a piecewise-linear function give exactly these back."""
    truth = PiecewiseLinear((0, 64, 1024), tuple(map(Fraction, slopes)))
    times_ns = np.array([float(floor + truth.exact(int(x))) for x in x_points])
    found_floor, found = fit_piecewise_linear(x_points, times_ns, (0, 64, 1024))
    predicted = np.array([float(found_floor + found.exact(int(x))) for x in x_points])

    assert relative_errors(predicted, times_ns).p95 < 1e-3
    assert truth.knots == found.knots


@given(st.lists(st.floats(1.0, 1e9), min_size=len(x_points), max_size=len(x_points)))
@settings(max_examples=30, deadline=None)  # the first fit imports scikit-learn
def test_fit_never_decreases(times_ns):
    """Whatever was measured, even noise, every slope is at least 0."""
    floor, found = fit_piecewise_linear(x_points, np.array(times_ns), (0, 100, 1000))

    assert floor >= 0
    assert min(found.slopes) >= 0


def test_fit_weighs_relative_errors():
    """A fit of one constant to 1 and 100 comes out near 1, as a percent counts the same everywhere."""
    (constant,) = non_negative_fit(np.ones((2, 1)), np.array([1.0, 100.0]))

    assert constant == pytest.approx((1 + 0.01) / (1 + 0.0001))


def test_terms_are_fitted_together():
    """Constants and functions that made the times are told apart."""
    size, context = (grid.ravel() for grid in np.meshgrid(np.arange(1, 20), np.arange(0, 2000, 100)))
    features = batch_features(num_decodes=size, decode_context=size * context)
    times_ns = 5000.0 + 300.0 * size + 7.5 * size * context
    terms = fit_terms(
        Measurements(features=features, times_ns=times_ns),
        constants=("decode_batch", "decode_request"),
        knots={"decode_context": (0,)},
    )

    assert terms == {
        "decode_batch": Fraction(5000),
        "decode_request": Fraction(300),
        "decode_context": PiecewiseLinear((0,), (Fraction("7.5"),)),
    }
    assert price_terms(terms, features) == pytest.approx(times_ns)


def test_fitted_terms_make_a_cost_model():
    """The names of fitted terms are those of the cost model, and both price a batch alike."""
    measured = Measurements(
        features=batch_features(tokens=x_points), times_ns=1e6 + 2000.0 * x_points.astype(np.float64)
    )
    terms = fit_terms(measured, constants=("step",), knots={"tokens": (0, 500)})
    cost = CostModel(name="fitted", **terms)

    assert cost.batch_times_ns(measured.features) == pytest.approx(measured.times_ns, abs=1.0, rel=1e-4)


def test_slope_beyond_the_data_is_refused():
    """A last knot at the largest measured count would leave the last slope without a single point."""
    with pytest.raises(InputError, match="last knot is 10000 and the largest measured value 10000"):
        fit_piecewise_linear(x_points, x_points.astype(np.float64), (0, 10_000))


@pytest.mark.parametrize("times_ns", [[], [1.0, 0.0], [-1.0]])
def test_times_that_are_none_are_refused(times_ns):
    """Relative errors need times above 0, and a fit needs at least one."""
    with pytest.raises(InputError, match="expected at least one and all above 0"):
        Measurements(features=batch_features(tokens=np.ones(len(times_ns), int)), times_ns=np.array(times_ns))


def test_ramps_sum_to_the_count():
    """The ramps of a count add up to the count, however it is cut."""
    assert ramp_columns(x_points, (0, 7, 100)).sum(axis=1).tolist() == x_points.tolist()


@pytest.mark.parametrize("name", CONSTANT_TERMS)
def test_every_constant_term_has_a_column(name):
    """An empty batch pays only the step."""
    empty = batch_features(tokens=np.zeros(3, dtype=np.int64))

    assert [float(name == "step")] * 3 == constant_column(name, empty).tolist()


def test_unknown_terms_are_refused():
    """Only terms of the cost model can be fitted."""
    features = batch_features(tokens=x_points)

    with pytest.raises(InputError, match="'steps' is no constant term; known: step"):
        constant_column("steps", features)
    with pytest.raises(InputError, match="'token' is no piecewise-linear term; known: tokens"):
        feature_column("token", features)


@pytest.mark.parametrize("name", FUNCTION_FEATURES)
def test_every_function_has_its_feature(name):
    """A function is fitted over the feature that the cost model evaluates it on."""
    features = batch_features(**{FUNCTION_FEATURES[name]: x_points})

    assert feature_column(name, features) is x_points


def gemm_table(time_ms) -> pd.DataFrame:
    """GEMM table of a given time on a small grid."""
    grid = [(m, n, k) for m in (1, 8) for n in (100, 200, 400) for k in (10, 20)]
    return pd.DataFrame([(m, n, k, time_ms(m, n, k)) for m, n, k in grid], columns=["m", "n", "k", "latency"])


@pytest.mark.parametrize(("n", "k"), [(100, 10), (150, 10), (200, 15), (300, 17), (800, 10)])
def test_gemm_shapes_are_interpolated(n, k):
    """A time linear in n and k is met between the grid points, and above the largest n."""
    times = aic_tables.gemm_times_ms(gemm_table(lambda m, n, k: m * n * k), n, k)

    assert times.to_dict() == pytest.approx({1: n * k, 8: 8 * n * k})


@pytest.mark.parametrize(("n", "k"), [(50, 10), (100, 30), (100, 5)])
def test_gemm_shapes_outside_the_table_are_refused(n, k):
    """Shapes smaller than the grid, or deeper, are not made up."""
    with pytest.raises(InputError, match="the GEMM table covers"):
        aic_tables.gemm_times_ms(gemm_table(lambda m, n, k: m * n * k), n, k)


def test_gemms_of_a_layer_hold_its_weights():
    """The four GEMM shapes hold exactly the attention and MLP weights of one layer."""
    weights = MODEL.weights_per_rank()
    shapes = aic_tables.layer_gemms(MODEL)

    assert MODEL.num_layers * sum(n * k for n, k in shapes) == weights.attention + weights.mlp


def test_attention_tables_become_features():
    """Two prompts of three tokens are six tokens and twelve units of attention; milliseconds become ns."""
    table = pd.DataFrame({"batch_size": [2], "isl": [3], "step": [5], "latency": [0.5]})
    prefill = aic_tables.context_attention(table, MODEL)
    decode = aic_tables.generation_attention(table, MODEL)

    expected = batch_features(
        tokens=np.array([6]),
        prefill_tokens=np.array([6]),
        prefill_attention=np.array([12]),
        num_prefills=np.array([2]),
    )
    assert expected == prefill.features
    assert [32 * 500_000.0] == prefill.times_ns.tolist() == decode.times_ns.tolist()
    assert decode.features.decode_context[0] == 10


def test_elementwise_time_has_a_floor_and_a_slope():
    """One token costs the launches of every layer; many cost their bytes at 80 % of the bandwidth."""
    time_ns = aic_tables.elementwise_ns(MODEL, load_device("h100"), 8000.0)
    floor, one, two = time_ns(np.array([1.0, 1e6, 2e6]))

    assert floor == 32 * 8000.0
    assert two - one == pytest.approx(one)


def test_missing_table_is_refused(tmp_path):
    """A folder without the table is answered with what was looked for."""
    with pytest.raises(InputError, match="holds 0 files prof_aic_h100"):
        aic_tables.read_gemms(tmp_path, "h100")


@needs_tables
@pytest.mark.parametrize(("table", "device"), [("h100", "h100"), ("h200", "h200"), ("a100", "a100-80")])
class TestShippedFits:
    def terms(self, device, *names):
        cost = load_cost(f"{device}-llama-3.1-8b")
        return {name: getattr(cost, name) for name in names}

    def errors(self, measured, terms):
        return relative_errors(price_terms(terms, measured.features), measured.times_ns)

    def test_tokens(self, table, device):
        """The shipped token term meets the GEMMs plus derived elementwise kernels within 3 %."""
        elementwise = aic_tables.elementwise_ns(MODEL, load_device(device), aic_tables.read_launch_ns(TABLES))
        measured = aic_tables.token_linear(aic_tables.read_gemms(TABLES, table), MODEL, elementwise)

        assert self.errors(measured, self.terms(device, "step", "tokens")).mean < 0.03

    def test_head(self, table, device):
        """The shipped head term meets the scaled GEMM within 7 %, up to 1024 requests."""
        measured = aic_tables.head_gemm(aic_tables.read_gemms(TABLES, table), MODEL)
        measured = measured.subset(measured.features.num_generating <= 1024)

        assert self.errors(measured, self.terms(device, "head")).mean < 0.07

    def test_prefill_attention(self, table, device):
        """The shipped prefill terms meet the context-attention table within 7 %."""
        rows = aic_tables.read_attention(TABLES, table, "context", MODEL)
        names = ("prefill_batch", "prefill_request", "prefill_attention", "prefill_tokens")
        errors = self.errors(aic_tables.context_attention(rows, MODEL), self.terms(device, *names))

        assert errors.mean < 0.07
        assert abs(errors.bias) < 0.02

    def test_decode_attention(self, table, device):
        """The shipped decode terms meet the table within 7.5 % on contexts of 63 tokens or more."""
        rows = aic_tables.read_attention(TABLES, table, "generation", MODEL)
        rows = rows[(rows["step"] >= 63) & (rows["batch_size"] <= 1024)]
        names = ("decode_batch", "decode_request", "decode_context")
        errors = self.errors(aic_tables.generation_attention(rows, MODEL), self.terms(device, *names))

        assert errors.mean < 0.075
        assert abs(errors.bias) < 0.02


@needs_tables
def test_heads_without_measurements_are_refused():
    """A model whose heads were never measured gets a sentence, not an empty fit."""
    with pytest.raises(InputError, match="has no rows for the heads of llama-2-13b"):
        aic_tables.read_attention(TABLES, "h100", "context", load_model("llama-2-13b"))
