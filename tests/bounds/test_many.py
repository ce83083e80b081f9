"""No certificate is above any policy, on random instances of every size and cost form.

A few in every run. The long run, in pieces, with what was checked how often at its end:
`CSPSCHED_BOUND_CHECKS=4000 CSPSCHED_BOUND_CROWDS=1000 pytest -s tests/bounds/test_many.py`; with
CSPSCHED_BOUND_FIRST a piece begins elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from cspsched.bounds import certificates
from cspsched.bounds.time_price import search
from cspsched.costs.presets import load_cost
from cspsched.errors import CspschedError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.simulate.kernel import simulate_fast

CHECKS = int(os.environ.get("CSPSCHED_BOUND_CHECKS", "40"))
CROWDS = int(os.environ.get("CSPSCHED_BOUND_CROWDS", "5"))
FIRST = int(os.environ.get("CSPSCHED_BOUND_FIRST", "0"))
POLICIES = ("vllm", "sarathi", "smallest-volume", "mc-sf", "orca:reservation=oracle")
PRESETS = ("infermax-70b", "infermax-7b", "h100-llama-3.1-8b", "a100-80-llama-3.1-8b")
TERMS = (
    "tokens", "prefill_attention", "prefill_tokens", "prefill_context", "decode_context", "head",
    "mixed_context",
)  # fmt: skip
CONSTANTS = ("prefill_batch", "decode_batch", "prefill_request", "decode_request", "mixed_request")


@dataclass(frozen=True)
class Dice:
    """Random instances; everything follows from the generator."""

    rng: np.random.Generator
    crowded: bool = False
    """Enough requests for every certificate, and shorter ones, so that a thousand such cases can be run."""

    def count(self) -> int:
        """Mostly few requests, in one of 50 cases hundreds, in one of 500 up to 10,000; a crowd: hundreds."""
        if self.crowded:
            return int(32 * (400 / 32) ** (self.rng.random() ** 2))
        kind = self.rng.random()
        if kind < 0.98:
            return int(self.rng.integers(1, 32))
        most = 400 if kind < 0.998 else 10_000
        return int(np.exp(self.rng.uniform(np.log(32), np.log(most))))

    def function(self) -> PiecewiseLinear:
        """A straight line, or up to four pieces of any slopes."""
        pieces = int(self.rng.choice([1, 1, 2, 3, 4]))
        knots = (0, *np.cumsum(self.rng.integers(1, 600, pieces - 1)).tolist())
        slopes = [Fraction(int(10 ** self.rng.uniform(0, 4)), 10) for _ in knots]
        return PiecewiseLinear(tuple(knots), tuple(slopes))

    def cost(self) -> CostModel:
        """A preset, or any terms."""
        if self.rng.random() < 0.2:
            return load_cost(str(self.rng.choice(PRESETS)))
        chosen = [term for term in TERMS if self.rng.random() < 0.4]
        paid = [name for name in CONSTANTS if self.rng.random() < 0.3]
        constants = {name: Fraction(int(10 ** self.rng.uniform(1, 6)), 3) for name in paid}
        functions = {term: self.function() for term in chosen}
        nothing = "tokens" in functions and self.rng.random() < 0.2
        step = Fraction(0 if nothing else int(10 ** self.rng.uniform(0, 7)))
        return CostModel(name="dice", step=step, **constants, **functions)

    def instance(self) -> Instance:
        """Any requests under any limits; those that cannot be served are left out."""
        count, cost = self.count(), self.cost()
        scale = 10 ** self.rng.uniform(0.3, 1.5 if self.crowded else 2.3)
        prompts = np.maximum(1, self.rng.lognormal(np.log(scale), 1, count)).astype(int).tolist()
        outputs = np.maximum(1, self.rng.lognormal(np.log(scale) / 1.5, 0.8, count)).astype(int).tolist()
        scattered = 4 if self.rng.random() < 0.2 else 0
        gap_ns = (float(cost.step) or 1e4) * 10 ** (self.rng.uniform(-1, 2) + scattered)
        gap_ns *= self.rng.random() < 0.8
        arrivals = np.cumsum(self.rng.exponential(1, count) * gap_ns).astype(int).tolist()
        requests = tuple(
            Request(request_id=f"r{k}", arrival_ns=arrival, prompt_tokens=prompt, output_tokens=output)
            for k, (arrival, prompt, output) in enumerate(zip(arrivals, prompts, outputs, strict=True))
        )
        block = int(self.rng.choice([1, 4, 16]))
        largest = max(request.peak_kv_tokens for request in requests)
        tokens = int(largest * 10 ** self.rng.uniform(0, 2)) + block
        limits = Limits(
            kv_blocks=tokens // block,
            block_tokens=block,
            max_batch_tokens=int(self.rng.choice([16, 64, 512, 4096])),
            max_batch_requests=int(self.rng.choice([4, 64, 256])),
        )
        return Instance(requests=requests, limits=limits, cost=cost).split_rejected()[0]


def least_values(instance):
    """Best value of any policy that can serve the instance, for every objective."""
    least = {}
    for name in POLICIES:
        try:
            run = simulate_fast(instance, make_policy(name))
        except CspschedError:
            continue
        arrivals = sum(request.arrival_ns for request in instance.requests)
        values = {
            Objective.MAKESPAN: int(run.batch_ns[-1, 1]),
            Objective.LATENCY: sum(run.finish_ns.tolist()) - arrivals,
            Objective.TTFT: sum(run.first_token_ns.tolist()) - arrivals,
        }
        least = {key: min(value, least.get(key, value)) for key, value in values.items()}
    return least


@pytest.fixture(scope="module")
def subjects():
    """How often each certificate was the subject of a check; printed at the end (`pytest -s`)."""
    counts = Counter()
    yield counts
    sys.stdout.write("\n" + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "\n")


def check_all(instance, objective):
    """Names of the certificates of an objective, none above a policy; none where no policy can serve it."""
    least = least_values(instance)
    if not instance.requests or objective not in least:
        return []
    found = certificates(instance, objective)
    assert [one for one in found if one.value_ns > least[objective]] == []
    return [one.name for one in found]


@pytest.mark.parametrize("first", range(FIRST, FIRST + CHECKS, 20))
def test_no_certificate_exceeds_a_policy(first, subjects):
    """Twenty random instances, one objective each in turn, all certificates and five policies."""
    checked = 0
    for seed in range(first, first + 20):
        objective = tuple(Objective)[seed % len(Objective)]
        names = check_all(Dice(np.random.default_rng(seed)).instance(), objective)
        subjects.update([*names, objective] if names else [])
        checked += bool(names)
    assert checked >= 10


@pytest.mark.parametrize("first", range(FIRST, FIRST + CROWDS, 5))
def test_no_certificate_exceeds_a_policy_where_a_crowd_is_served(first, subjects, monkeypatch):
    """Five random crowds: `window-price`, which needs 32 requests, is among the certificates of most."""
    monkeypatch.setattr(search, "hardly_waits", lambda *_: False)
    checked = Counter()
    for seed in range(first, first + 5):
        rng = np.random.default_rng([seed, 1])
        names = check_all(Dice(rng, crowded=True).instance(), Objective.LATENCY)
        checked.update([*names, Objective.LATENCY] if names else [])
    subjects.update(checked)
    assert checked["window-price"] >= 3


def test_the_dice_show_all_sizes_and_forms():
    """Among 3,000 draws there are single requests, thousands of them, presets and pieces."""
    dice = [Dice(np.random.default_rng(seed)) for seed in range(3000)]
    counts = [die.count() for die in dice]
    assert min(counts) == 1
    assert max(counts) > 400
    costs = [die.cost() for die in dice[:200]]
    assert any(cost.name != "dice" for cost in costs)
    assert any(len(cost.tokens.knots) > 2 for cost in costs)
    assert any(replace(cost, mixed_request=Fraction(0)) != cost for cost in costs)
