"""What policies take for outputs that have not been generated: declared limits and predictions."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cspsched.errors import CspschedError, UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.expected import (
    Prediction,
    PredictionSettings,
    declared_tokens,
    predicted_tokens,
)
from cspsched.problem.instance import Instance, Switches
from cspsched.problem.request import MAX_TOKENS
from cspsched.serving import Serving, make_instance
from cspsched.simulate import Policy, Simulation, simulate
from cspsched.trace import read_trace
from tests.support.kernel_cases import TOLD, draw_instance, draw_policy
from tests.support.places import DATA
from tests.support.policy_runs import batches, instance_of, run
from tests.support.strategies import EXAMPLES

DECLARED = DATA / "tried" / "13_max_tokens_declared.csv"
RESERVING = ["tensorrt-llm", "tgi", "lightllm", "sglang", "vtc", "orca:reservation=declared"]
MOST_OUTPUT = 60
"""With prompts of up to 24 tokens a request of so many fits the smallest device below."""
RANKING = ["sjf", "srpt", "trail", "mc-sf", "smallest-volume", "sorted-f"]


def told(instance: Instance, **columns: list[int | None]) -> Instance:
    """The instance with more fields of its requests."""
    changes = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    pairs = zip(instance.requests, changes, strict=True)
    return replace(instance, requests=tuple(replace(request, **change) for request, change in pairs))


# Which tokens


def test_a_request_that_declares_nothing_counts_with_its_output() -> None:
    """Of two one declares; without a column both count so."""
    instance = instance_of((2, 3), (2, 4))

    assert declared_tokens(instance).tolist() == [3, 4]
    assert declared_tokens(told(instance, max_tokens=[9, None])).tolist() == [9, 4]


def test_a_declared_limit_is_cut_to_the_longest_length() -> None:
    """An engine of 10 tokens generates at most 9 after a prompt of 2, the last of which is never stored."""
    instance = told(instance_of((2, 3), (9, 2)), max_tokens=[100, 100])
    limits = replace(instance.limits, max_model_len=10)

    assert declared_tokens(replace(instance, limits=limits)).tolist() == [9, 2]


def test_predictions_are_exact_from_a_column_or_noisy() -> None:
    """Exact needs no column; the column is taken as it is, below the output or above."""
    instance = told(instance_of((2, 3), (2, 4)), predicted_tokens=[1, 90])

    assert predicted_tokens(instance, PredictionSettings(), "sjf").tolist() == [3, 4]
    column = PredictionSettings(prediction=Prediction.COLUMN)
    assert predicted_tokens(instance, column, "sjf").tolist() == [1, 90]


def test_noise_is_lognormal_and_repeats() -> None:
    """The logarithms of 20,000 factors have mean 0 and deviation sigma; another seed gives others."""
    instance = instance_of(*[(1, 1_000_000)] * 20_000, kv_blocks=10**7)
    settings = PredictionSettings(prediction=Prediction.NOISY, prediction_sigma=0.4, prediction_seed=3)
    predicted = predicted_tokens(instance, settings, "sjf")
    logs = np.log(predicted / 1_000_000)

    assert logs.mean() == pytest.approx(0, abs=0.01)
    assert logs.std() == pytest.approx(0.4, abs=0.01)
    assert (predicted_tokens(instance, settings, "sjf") == predicted).all()
    assert (predicted_tokens(instance, replace(settings, prediction_seed=4), "sjf") != predicted).any()
    exact = predicted_tokens(instance, replace(settings, prediction_sigma=0.0), "sjf")
    assert set(exact.tolist()) == {1_000_000}


def test_noise_stays_among_the_numbers_of_tokens() -> None:
    """At least one token, at most what a request may have, whatever sigma is."""
    instance = instance_of(*[(1, 500)] * 2000, kv_blocks=10**10)
    settings = PredictionSettings(prediction=Prediction.NOISY, prediction_sigma=10.0)
    predicted = predicted_tokens(instance, settings, "sjf")

    assert (predicted.min(), predicted.max()) == (1, MAX_TOKENS)


def test_a_prediction_is_at_most_what_fits() -> None:
    """On 30 tokens a prompt of 4 leaves 27, the last of which is never stored; a length of 10 leaves 7."""
    instance = told(instance_of((4, 3), kv_blocks=30), predicted_tokens=[90])
    column = PredictionSettings(prediction=Prediction.COLUMN)
    limits = replace(instance.limits, max_model_len=10)

    assert predicted_tokens(instance, column, "sjf").tolist() == [27]
    assert predicted_tokens(replace(instance, limits=limits), column, "sjf").tolist() == [7]


@pytest.mark.parametrize("text", RANKING)
@pytest.mark.parametrize(("predicted", "name"), [([None, None], "r0"), ([7, None], "r1")])
def test_a_missing_prediction_is_refused(text: str, predicted: list[int | None], name: str) -> None:
    """The sentence names the request and what else can be chosen."""
    policy = text.partition(":")[0]
    message = f"policy '{policy}': prediction=column, and request '{name}' has no predicted_tokens; add"

    with pytest.raises(UsageError, match=message):
        run(f"{text}:prediction=column", told(instance_of((2, 3), (2, 4)), predicted_tokens=predicted))


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prediction_sigma=-1", "prediction_sigma is -1.0, expected 0 to 10"),
        ("prediction_sigma=nan", "prediction_sigma is nan, expected 0 to 10"),
        ("prediction_seed=-1", "prediction_seed is -1, expected at least 0"),
        ("prediction=oracle", "prediction is 'oracle', expected one of exact, column, noisy"),
    ],
)
def test_wrong_predictions_are_refused(name: str, setting: str, message: str) -> None:
    """By every policy that ranks by output length."""
    with pytest.raises(UsageError, match=f"policy '{name}': {message}"):
        make_policy(f"{name}:{setting}")


# What policies do with them


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("tensorrt-llm", 19),
        ("tensorrt-llm:capacity_scheduler_policy=static_batch", 19),
        ("tensorrt-llm:context_chunking_policy=equal_progress", 19),
        ("tgi", 21),
        ("orca:reservation=declared", 21),
        ("infermax:reservation=true", 21),
        ("lightllm", 25),
        ("vtc", 25),
        ("sglang", 17),
    ],
)
def test_a_declared_limit_makes_others_wait(text: str, most: int) -> None:
    """Of two requests of 4 + 3 tokens on 30 the second runs at once; a token more declared, and it waits.

    TensorRT-LLM takes 4 + 19 and 4 + 3 tokens. The next three leave out the last token, 3 + 21 and 3 + 3.
    LightLLM wants a peak below 30, which is that of the first alone, 4 + 1 + 24. SGLang sets 17 aside
    besides 4 prompt tokens, and 4 + 3 and one to spare are fewer than the 9 that are left.
    """
    instance = instance_of((4, 3), (4, 3), kv_blocks=30)
    first = [
        batches(run(text, told(instance, max_tokens=[declared, None])))[0] for declared in (most, most + 1)
    ]

    assert first == [[(0, 4), (1, 4)], [(0, 4)]]


@pytest.mark.parametrize("text", RESERVING)
def test_a_limit_beyond_the_device_takes_the_whole_device(text: str) -> None:
    """Such a request runs alone; it is not refused, since its output fits."""
    instance = told(instance_of((4, 3), (4, 3), kv_blocks=30), max_tokens=[10**9, 10**9])
    simulation = run(text, instance)

    assert all(len(batch) == 1 for batch in batches(simulation))


@pytest.mark.parametrize("text", ["vllm", "vllm-v0", "sarathi", "orca", "niyama", "fastserve"])
def test_others_do_not_look_at_declared_limits(text: str) -> None:
    """Their schedules are the same with limits and predictions."""
    instance = instance_of((4, 3), (4, 9), (9, 2), kv_blocks=30)
    others = told(instance, max_tokens=[90, 9, 80], predicted_tokens=[1, 2, 3])

    assert batches(run(text, instance)) == batches(run(text, others))


@pytest.mark.skipif(not DECLARED.is_file(), reason=f"the inputs that were tried are not at {DECLARED}")
@pytest.mark.parametrize(("text", "together"), [("tensorrt-llm", False), ("tgi", False), ("vllm", True)])
def test_a_declared_limit_of_11000_tokens(text: str, together: bool) -> None:  # noqa: FBT001
    """719 and 50 blocks of 16 where 768 exist: TensorRT-LLM lets `s1` wait for `big`, vLLM does not."""
    instance = make_instance(read_trace(DECLARED), Serving(kv_tokens=12288))
    schedule = run(text, instance).schedule
    first_of_s1 = int(schedule.batch_of_entry[np.flatnonzero(schedule.request == 1)[0]])
    last_of_big = int(schedule.batch_of_entry[np.flatnonzero(schedule.request == 0)[-1]])

    assert (first_of_s1 < last_of_big) == together


@pytest.mark.parametrize("text", [*RANKING, "sorted-f:exact_requests=0"])
def test_the_order_is_that_of_the_predictions(text: str) -> None:
    """One at a time: by true output r1 goes first, by the column r0 does."""
    instance = told(instance_of((4, 9), (4, 3), max_batch_requests=1), predicted_tokens=[2, 5])
    joined = "," if ":" in text else ":"

    assert batches(run(text, instance))[0] == [(1, 4)]
    assert batches(run(f"{text}{joined}prediction=column", instance))[0] == [(0, 4)]


def test_a_request_that_outlives_its_prediction_stays_first() -> None:
    """SRPT: r0 was predicted 2 tokens and has 5; r1, predicted 4, waits until r0 is done."""
    instance = told(instance_of((4, 5), (4, 4, 3), max_batch_requests=1), predicted_tokens=[2, 4])
    entries = batches(run("srpt:prediction=column", instance))

    assert [batch[0][0] for batch in entries] == [0] * 5 + [1] * 4


def first_end(simulation: Simulation) -> int:
    """Batch in which the first request finishes."""
    schedule = simulation.schedule
    last = {i: batch for batch, entries in enumerate(batches(simulation)) for i, _ in entries}
    assert len(last) == len(set(schedule.request.tolist()))
    return min(last.values())


def draw_told(rng: random.Random, name: str) -> tuple[Instance, Policy]:
    """Requests with limits and predictions that each fit alone, and a policy that goes by one of them."""
    instance = draw_instance(rng)
    limits = replace(instance.limits, kv_blocks=rng.choice([42, 60]), block_tokens=2, max_model_len=None)
    limits = replace(limits, max_batch_tokens=rng.randint(30, 99))
    instance = replace(instance, limits=limits, switches=Switches())
    columns = {
        "max_tokens": [one.output_tokens + rng.randint(0, 20) for one in instance.requests],
        "predicted_tokens": [rng.randint(1, 40) for _ in instance.requests],
    }
    return told(instance, **columns), draw_policy(rng, name)


@pytest.mark.parametrize("name", TOLD)
def test_until_the_first_end_what_is_expected_is_as_good_as_true(name: str) -> None:
    """Every policy does what it would do if the outputs were what it takes them for."""
    num_compared = 0
    for seed in range(EXAMPLES):
        instance, policy = draw_told(random.Random(f"as good as true {name} {seed}"), name)
        settings, exact = policy.settings, policy
        if isinstance(settings, PredictionSettings):
            expected = predicted_tokens(instance, settings, policy.name)
            exact = type(policy)(replace(settings, prediction=Prediction.EXACT))
        else:
            expected = declared_tokens(instance)
        if expected.max() > MOST_OUTPUT:
            continue
        pairs = zip(instance.requests, expected.tolist(), strict=True)
        as_true = tuple(replace(one, output_tokens=tokens, max_tokens=None) for one, tokens in pairs)
        try:
            ours, theirs = simulate(instance, policy), simulate(replace(instance, requests=as_true), exact)
        except CspschedError:
            continue
        end = min(first_end(ours), first_end(theirs)) + 1
        num_compared += 1

        assert batches(ours)[:end] == batches(theirs)[:end], seed
    assert num_compared > EXAMPLES // 3
