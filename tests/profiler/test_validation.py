"""Held-out batches, the replayed schedule and the calibration: without torch."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.models import load_model
from cspsched.costs.presets import load_cost
from cspsched.errors import InputError
from cspsched.policies.sarathi import Sarathi, SarathiSettings
from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.profiler.calibration import calibrate
from cspsched.profiler.compositions import (
    BatchLimits,
    Composition,
    Regime,
    draw_compositions,
    stack_features,
)
from cspsched.profiler.decoder import Decoder
from cspsched.profiler.points import Chunk
from cspsched.profiler.replay import compositions_of, pick_spread, replay_batches
from cspsched.profiler.timing import summarise
from cspsched.profiler.validation import Measured, Validation, ValidationSettings, validate
from cspsched.simulate import simulate

LIMITS = BatchLimits(max_tokens=512, max_requests=32, max_kv_tokens=16384, max_context=1500)
TERMS = {
    "step": Fraction(1_000_000),
    "tokens": PiecewiseLinear((0, 64), (Fraction(5000), Fraction(9000))),
    "prefill_attention": PiecewiseLinear.linear(40),
    "prefill_context": PiecewiseLinear.linear(7),
    "prefill_request": Fraction(900),
    "decode_context": PiecewiseLinear.linear(60),
    "decode_request": Fraction(2000),
    "head": PiecewiseLinear.linear(800),
}


def requests(count=40, seed=0):
    """Requests all at once, of lengths that fill a small cache."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 60, size=(count, 2))
    return tuple(
        Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=int(p), output_tokens=int(o))
        for k, (p, o) in enumerate(sizes)
    )


# Drawn batches


@given(
    st.integers(0, 50),
    st.integers(2, 600),
    st.integers(2, 64),
    st.integers(2, 3000),
)
def test_drawn_batches_keep_to_the_limits(seed, max_tokens, max_requests, max_context):
    """Tokens, requests and contexts of every drawn batch are within the limits, and none is empty."""
    limits = BatchLimits(
        max_tokens=max_tokens, max_requests=max_requests, max_kv_tokens=10_000, max_context=max_context
    )
    for batch in draw_compositions(3, limits, np.random.default_rng(seed)):
        assert 1 <= batch.features().tokens <= max(max_tokens, max_requests)
        assert all(chunk.tokens >= 1 and 0 <= chunk.context <= max_context for chunk in batch.chunks)
        assert len(batch.decodes) <= max_requests
        assert len(batch.decodes) <= batch.num_generating <= len(batch.chunks)


def test_regimes_are_what_they_are_called():
    """Decodes only, prefills only, both; as many of each."""
    batches = draw_compositions(10, LIMITS, np.random.default_rng(0))
    kinds = {
        (batch.regime, bool(batch.prefills), bool(batch.decodes)): sum(
            b.regime is batch.regime for b in batches
        )
        for batch in batches
    }

    assert kinds == {
        (Regime.DECODE, False, True): 10,
        (Regime.PREFILL, True, False): 10,
        (Regime.MIXED, True, True): 10,
    }


def test_features_are_those_of_the_problem():
    """One prefill of 3 tokens after 2 and two decodes, worked out by hand."""
    batch = Composition(Regime.MIXED, (Chunk(3, 2),), (Chunk(1, 10), Chunk(1, 20)), 3)

    # W(5) - W(2) = 15 - 3.
    assert batch.features() == BatchFeatures(5, 12, 3, 2, 30, 3, 1, 2)


def test_limits_without_room_are_refused():
    """A batch of one request leaves nothing to draw."""
    with pytest.raises(InputError, match="leaves no room for batches of several requests"):
        BatchLimits(max_tokens=1, max_requests=8, max_kv_tokens=100, max_context=10)


# The replayed schedule


@pytest.mark.parametrize("kv_blocks", [12, 40, 400])
def test_replayed_batches_are_priced_as_the_simulator_priced_them(kv_blocks):
    """Phases, contexts and generated tokens are told right, under preemption too: durations agree."""
    instance = Instance(
        requests=requests(),
        limits=Limits(kv_blocks=kv_blocks, block_tokens=16, max_batch_tokens=64, max_batch_requests=16),
        cost=load_cost("infermax-70b"),
    )
    schedule = simulate(instance, Sarathi(SarathiSettings(chunk=64, watermark=0.0))).schedule
    batches = compositions_of(schedule, instance)

    assert kv_blocks > 12 or len(schedule.evicted_batch)
    assert [instance.cost.batch_time_ns(batch.features()) for batch in batches] == (
        schedule.end_ns - schedule.start_ns
    ).tolist()
    assert sum(batch.num_generating for batch in batches) == sum(r.output_tokens for r in instance.requests)


def test_requests_that_do_not_fit_are_left_out_of_the_replay():
    """Only what the decoder has room for is replayed; a trace of nothing else is refused."""
    limits = BatchLimits(max_tokens=64, max_requests=16, max_kv_tokens=640, max_context=50)
    fitting = [r for r in requests() if r.prompt_tokens + r.output_tokens <= 50]
    batches = replay_batches(requests(), load_cost("unit"), limits)

    assert sum(batch.num_generating for batch in batches) == sum(r.output_tokens for r in fitting)
    with pytest.raises(InputError, match="no request of the trace has at most 5 tokens"):
        replay_batches(
            requests(),
            load_cost("unit"),
            BatchLimits(max_tokens=64, max_requests=16, max_kv_tokens=640, max_context=5),
        )


def test_batches_are_picked_over_the_whole_schedule_without_repeats():
    """Different batches in the order of the schedule."""
    batches = replay_batches(requests(), load_cost("unit"), LIMITS)
    picked = pick_spread(batches, 12, np.random.default_rng(0))
    places = [batches.index(batch) for batch in picked]

    assert len(set(picked)) == 12
    assert places == sorted(places)


# Calibration


def measured_with(cost, factors, step_ns, seed=0, count=40):
    """Features of drawn batches, and times under a model that differs from `cost` by known factors."""
    batches = draw_compositions(count, LIMITS, np.random.default_rng(seed))
    truth = CostModel(
        name="truth",
        **{
            name: Fraction(step_ns) if name == "step" else scaled(term, factors[group_of(name)])
            for name, term in TERMS.items()
        },
    )
    features = stack_features(batches)
    return features, truth.batch_times_ns(features).astype(np.float64)


def group_of(name):
    """Group that a term is calibrated with."""
    return name.partition("_")[0] if name.startswith(("prefill", "decode")) else "tokens"


def scaled(term, factor):
    """A term times a factor."""
    if isinstance(term, PiecewiseLinear):
        return PiecewiseLinear(term.knots, tuple(slope * Fraction(factor) for slope in term.slopes))
    return term * Fraction(factor)


@pytest.mark.parametrize(
    ("factors", "step_ns"),
    [
        ({"prefill": "1", "decode": "1", "tokens": "1"}, 1_000_000),
        ({"prefill": "1.5", "decode": "0.75", "tokens": "1.25"}, 3_000_000),
        ({"prefill": "2", "decode": "3", "tokens": "0.5"}, 0),
    ],
)
def test_calibration_finds_the_factors_that_were_planted(factors, step_ns):
    """Times under known factors and a known step: both are found again, and the model prices as the truth."""
    cost = CostModel(name="raw", **TERMS)
    features, times_ns = measured_with(cost, factors, step_ns)
    found = calibrate(cost, features, times_ns)

    assert found.factors == pytest.approx({name: float(Fraction(f)) for name, f in factors.items()}, abs=2e-3)
    assert found.step_ns == pytest.approx(step_ns, abs=5_000)
    assert found.cost.batch_times_ns(features) == pytest.approx(times_ns, rel=2e-3)


def test_calibration_is_a_cost_model_that_can_be_written_and_read():
    """The calibrated model goes through JSON unchanged."""
    cost = CostModel(name="raw", **TERMS)
    found = calibrate(cost, *measured_with(cost, {"prefill": "1.1", "decode": "1.2", "tokens": "0.9"}, 5))

    assert CostModel.from_json(found.cost.to_json()) == found.cost


def test_a_group_that_no_batch_shows_stays_as_it_is():
    """Decode terms are not set to nothing by batches without decodes."""
    cost = CostModel(name="raw", **TERMS)
    batches = [
        b for b in draw_compositions(20, LIMITS, np.random.default_rng(0)) if b.regime is Regime.PREFILL
    ]
    features = stack_features(batches)
    found = calibrate(cost, features, cost.batch_times_ns(features).astype(np.float64))

    assert found.factors["decode"] == 1
    assert found.cost.decode_context == cost.decode_context


def test_too_few_batches_calibrate_nothing():
    """Four numbers need more than eleven batches."""
    cost = CostModel(name="raw", **TERMS)
    features, times_ns = measured_with(cost, {"prefill": "1", "decode": "1", "tokens": "1"}, 1, count=3)

    with pytest.raises(InputError, match="9 measured batches, calibration needs at least 12"):
        calibrate(cost, features, times_ns)


# The report


def test_errors_are_of_the_judging_batches_by_regime():
    """Batches that calibrated are in no figure; regimes without a judge have no row."""
    cost = CostModel(name="raw", **TERMS)
    batches = draw_compositions(10, LIMITS, np.random.default_rng(0))
    features = stack_features(batches)
    times_ns = cost.batch_times_ns(features).astype(np.float64)
    judges = np.array([k % 2 == 1 for k in range(30)])
    judges &= np.array([batch.regime is not Regime.MIXED for batch in batches])
    found = Validation(
        measured=tuple(
            Measured(batch, summarise(np.array([t / 1e3])))
            for batch, t in zip(batches, times_ns, strict=True)
        ),
        judges=judges,
        measured_ns=times_ns,
        raw_ns=times_ns * np.where(judges, 1.1, 9.0),
        calibrated_ns=times_ns * np.where(judges, 0.98, 9.0),
        calibration=calibrate(cost, features, times_ns),
    )
    table = {row["regime"]: row for row in found.table()}

    assert set(table) == {"decode", "prefill", "all"}
    assert table["all"]["batches"] == judges.sum() == 10
    assert (table["all"]["raw MAPE"], table["all"]["raw bias"]) == (10, 10)
    assert (table["decode"]["calibrated MAPE"], table["decode"]["calibrated bias"]) == (2, -2)
    assert [entry["judges"] for entry in found.to_json()["batches"]] == judges.tolist()


def test_a_batch_that_cannot_be_run_costs_no_other(monkeypatch):
    """The decoder has no memory for prefills: the rest calibrates and judges, and the reason is told once."""
    pytest.importorskip("torch", reason="torch is an extra: pip install 'cspsched[gpu]'")
    step = Decoder.step

    def failing(decoder, composition):
        if composition.regime is Regime.PREFILL:
            raise RuntimeError("no memory left\nsecond line")
        return step(decoder, composition)

    monkeypatch.setattr(Decoder, "step", failing)
    cost = CostModel(name="raw", **TERMS)
    tiny = ValidationSettings(
        model=load_model("tiny-llama"), device="cpu", limits=replace(LIMITS, max_tokens=64, max_context=100),
        requests=tuple(Request(request_id=str(k), arrival_ns=0, prompt_tokens=20, output_tokens=9)
                       for k in range(12)),
        seed=1, batches=40, repeats=5,
    )  # fmt: skip
    found = validate(cost, tiny, lambda *_: None)

    assert found.failed == ("prefill: no memory left",)
    assert {batch.composition.regime for batch in found.measured} == {*Regime} - {Regime.PREFILL}
    assert found.judges.sum() == 15
