"""What reports say of a policy is true: at least and at most are not swapped, no list of policies matters."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from math import ceil, floor

import pytest

from cspsched.costs.presets import load_cost
from cspsched.improve import Bracket, ImproveLimits, improve
from cspsched.improve.curve import curve_of
from cspsched.improve.rivals import run_reference
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.excess import Excess
from cspsched.problem.objectives import Objective
from cspsched.report import bracket as bracket_report
from cspsched.report import table
from cspsched.report import windows as windows_report
from cspsched.report.files import write_comparison
from cspsched.studies.compare import compare_policies
from cspsched.studies.reference import ReferenceLimits, find_reference
from cspsched.studies.windows import WindowSample, WindowShape, study_windows
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.strategies import EXAMPLES, make_instance

SEEDS = range(0, max(300, EXAMPLES), 25)
LISTS = range(0, max(50, EXAMPLES // 3), 25)
"""Each compares three times."""
POLICIES = ("vllm", "vllm:max_num_seqs=1", "mc-sf", "sarathi:chunk=2,watermark=0", "sglang", "srpt")
BY_STEPS = ImproveLimits(time_limit_s=None, max_steps=5)
NO_SEARCH = ReferenceLimits(work_s=0, steps=0)
NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?) %"
CLAIM = re.compile(rf"(at least |at most |to |by |)\s*{NUMBER}")


def tiny(rng: random.Random):
    """Two or three requests in little memory, so that policies differ; some arrive later."""
    count = rng.choice((2, 2, 2, 3))
    shapes = [(rng.randint(1, 2), rng.randint(1, 3 if count == 2 else 2)) for _ in range(count)]
    peak = max(prompt + output - 1 for prompt, output in shapes)
    cost = CostModel(
        name="tiny",
        step=Fraction(rng.choice((3, 10, 40))),
        tokens=PiecewiseLinear.linear(rng.choice((1, 5))),
        decode_context=PiecewiseLinear.linear(rng.choice((0, 1))),
    )
    return make_instance(
        *shapes,
        arrivals_ns=[rng.choice((0, 0, rng.randint(0, 80))) for _ in shapes],
        cost=cost,
        kv_blocks=rng.randint(peak, 2 * peak),
        max_batch_tokens=rng.randint(2, 6),
    )


def crowd(rng: random.Random):
    """Eight to fourteen requests under pressure, of which a search mostly beats every policy."""
    shapes = [(rng.randint(1, 40), rng.randint(1, 24)) for _ in range(rng.randint(8, 14))]
    return make_instance(
        *shapes,
        arrivals_ns=[rng.choice((0, 0, rng.randint(0, 10**8))) for _ in shapes],
        cost=load_cost("infermax-7b"),
        kv_blocks=rng.randint(64, 90),
        max_batch_tokens=64,
        max_batch_requests=16,
    )


def some_policies(rng: random.Random, most: int = 3) -> list[str]:
    """A few policies at random."""
    return rng.sample(POLICIES, rng.randint(1, most))


def holds(sentence: str, true: Fraction) -> None:
    """Every percentage in a sentence about a policy is a true statement on its excess."""
    claims = CLAIM.findall(sentence)
    assert claims, sentence
    for k, (words, number) in enumerate(claims):
        value, opens_interval = Fraction(number) / 100, k + 1 < len(claims) and claims[k + 1][0] == "to "
        if words == "at least " or (words == "" and opens_interval):
            assert value <= true, sentence
        elif words in ("at most ", "to "):
            assert value >= true, sentence
        else:
            half = Fraction(1, 20_000) if value == 0 or value >= Fraction(1, 1000) else value / 10
            assert abs(value - true) <= half, sentence


def arrived(instance, count: int):
    """The requests that have arrived first, alone."""
    first = sorted(instance.requests, key=lambda request: request.arrival_ns)[:count]
    return replace(instance, requests=tuple(one for one in instance.requests if one in first))


@pytest.mark.parametrize("first", SEEDS)
def test_every_sentence_about_a_policy_is_true(first):
    """Tables, and sentences on the moments of a curve, against the optimum of all and of who has arrived."""
    for seed in range(first, first + 25):
        rng = random.Random(seed)
        instance, objective = tiny(rng), rng.choice((Objective.LATENCY, Objective.MAKESPAN))
        policies, optima = some_policies(rng), {}

        def true_excess(value_ns, count, *, instance=instance, objective=objective, optima=optima):
            if count not in optima:
                optima[count] = exhaustive_optimum(arrived(instance, count), objective)
            return Fraction(value_ns - optima[count], optima[count])

        comparison = compare_policies(instance, policies, objective, limits=NO_SEARCH)
        for row, cells in zip(comparison.rows, table.rows(comparison), strict=True):
            holds(cells[-1], true_excess(row.value_ns, len(instance.requests)))
        found = improve(instance, objective, heuristics=policies, limits=BY_STEPS)
        bracket = Bracket(improvement=found, curve=curve_of(found, 3))
        for rival, row in zip(found.rivals, bracket_report.rows(bracket), strict=True):
            holds(row[-1], true_excess(rival.value_ns, len(instance.requests)))
        for policy, values in bracket.curve.policies_ns.items():
            sentence = bracket_report.lateness(bracket.curve, policy)
            whole, later, part = sentence.partition("; most is proven about the ")
            holds(whole, true_excess(values[-1], len(instance.requests)))
            if not later:
                continue
            count = int(part.split()[0])
            value_ns = values[bracket.curve.num_requests.index(count)]
            holds(part.partition(" s: ")[2], true_excess(value_ns, count))


@pytest.mark.parametrize(
    ("ends", "shown", "words"),
    [
        (Excess(0.0, 0.12796), "0.00 % to 12.80 %", "by at least 0.00 % and at most 12.80 %"),
        (Excess(0.04816, 0.15031), "4.81 % to 15.04 %", "by at least 4.81 % and at most 15.04 %"),
        (Excess(0.02, 0.02), "2.00 %", "by 2.00 %"),
        (Excess(0.000123, 0.000456), "0.012 % to 0.046 %", "by at least 0.012 % and at most 0.046 %"),
        (Excess(0.5, None), "at least 50.00 %", "by at least 50.00 %"),
        (Excess(None, None), "no share of 0", "by no share of 0"),
    ],
)
def test_an_excess_is_rounded_towards_what_is_proven(ends, shown, words):
    """The lower end down, the upper end up; in sentences each end has its direction."""
    assert (table.excess(ends), table.between(ends)) == (shown, words)


@pytest.mark.parametrize("first", LISTS)
def test_a_listed_policy_changes_another_row_only_by_a_better_schedule(first, monkeypatch):
    """Of two lists, one within the other: same bound, same upper ends; lower ends may only grow.

    What is known without any list, of the fixed set and of the search, is known with every one.
    """
    monkeypatch.setattr("cspsched.studies.reference.SMALL_CELLS", 30)
    limits = ReferenceLimits(work_s=0.05, steps=12)
    for seed in range(first, first + 25):
        rng = random.Random(seed)
        instance = (tiny if seed % 5 == 0 else crowd)(rng)
        # The bounds of latency are the dear ones.
        objective = rng.choice((*Objective, Objective.MAKESPAN, Objective.TTFT))
        more = some_policies(rng, most=4)
        fewer = rng.sample(more, rng.randint(1, len(more)))
        large = compare_policies(instance, more, objective, limits=limits)
        small = compare_policies(instance, fewer, objective, limits=limits)
        rows = {row.policy: row for row in large.rows}
        fixed = run_reference(instance, objective, (), lambda _: None)
        known = find_reference(instance, objective, (), limits=limits)
        assert known.best_known_ns <= min(one.value_ns for one in fixed)
        for one in (small, large):
            listed = min(row.value_ns for row in one.rows)
            assert one.reference.best_known_ns == min(known.best_known_ns, listed)
            assert one.reference.bound_ns == known.bound_ns
        for row in small.rows:
            assert row.value_ns == rows[row.policy].value_ns
            assert row.excess.at_most == rows[row.policy].excess.at_most
            assert row.excess.at_least <= rows[row.policy].excess.at_least


def test_a_policy_alone_does_not_look_optimal():
    """One request at a time is far from what is known, also if no other policy is listed."""
    instance = make_instance(*[(9, 9)] * 12, cost=load_cost("infermax-7b"), kv_blocks=120)
    (row,) = compare_policies(instance, ["vllm:max_num_seqs=1"], limits=NO_SEARCH).rows
    window = study_windows(
        instance,
        "vllm:max_num_seqs=1",
        Objective.LATENCY,
        WindowSample(shape=WindowShape(size=3), num=4),
        window_limit_s=0.5,
    )
    found = improve(instance, heuristics=["vllm:max_num_seqs=1"], limits=replace(BY_STEPS, max_steps=0))

    assert row.excess.at_least > 1.0
    assert found.value_ns < found.rivals[0].value_ns
    assert "mean local excess" in windows_report.text(window)


class _Text(HTMLParser):
    """The text of a page, without its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        """Keep a piece of text."""
        self.parts.append(data)


@pytest.mark.parametrize("first", SEEDS)
def test_every_output_of_a_comparison_has_the_same_figures(first, tmp_path):
    """Table, Markdown, page and JSON; both ends of the error band have a reference of their own."""
    for seed in range(first, first + 25):
        rng = random.Random(seed)
        instance = tiny(rng)
        band = (replace(instance.cost, step=Fraction(2)), replace(instance.cost, step=Fraction(50)))
        comparison = compare_policies(
            instance, some_policies(rng), rng.choice(tuple(Objective)), limits=NO_SEARCH, band=band
        )
        data, text = comparison.to_json(), table.markdown(comparison)
        figures = [(comparison, data), *((one, data["uncertainty"][e]) for e, one in comparison.ends.items())]
        assert len(figures) == 3
        notes = "\n".join(table.footnotes(comparison))
        page = ""
        if seed == first:
            write_comparison(comparison, tmp_path)
            reader = _Text()
            reader.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
            page = "".join(reader.parts)
            assert notes.splitlines()[0] in page
        for one, stated in figures:
            reference = stated["reference"]
            assert reference["best_known_ns"] == one.reference.best_known_ns
            for row, shown in zip(one.rows, stated["policies"], strict=True):
                assert Excess(shown["excess_at_least"], shown["excess_at_most"]) == row.excess
                assert row.excess == Excess.of(
                    row.value_ns, best_ns=reference["best_known_ns"], bound_ns=reference["bound_ns"]
                )
                assert table.excess(row.excess) in text
                assert not page or table.excess(row.excess) in page
            assert table.reference_sentence(one) in notes


def test_ends_of_the_band_have_the_reference_of_the_centre():
    """The same procedure for all three: an end is what a comparison with its batch times alone gives."""
    instance = crowd(random.Random(3))
    slow = replace(instance.cost, step=instance.cost.step * 2)
    limits = ReferenceLimits(work_s=0, steps=30)
    comparison = compare_policies(instance, ["vllm"], limits=limits, band=(instance.cost, slow))
    alone = compare_policies(replace(instance, cost=slow), ["vllm"], limits=limits)

    assert comparison.ends["fast"].reference == comparison.reference
    assert comparison.ends["slow"].reference == alone.reference != comparison.reference
    assert comparison.ends["slow"].to_json()["policies"] == alone.to_json()["policies"]


@pytest.mark.parametrize("objective", list(Objective))
def test_a_bound_is_shown_rounded_down_and_a_value_up(objective):
    """The nanosecond that is read is proven, too: a mean over three requests is no whole number of them."""
    assert objective.show(10**9, 3, floor) <= objective.show(10**9, 3) <= objective.show(10**9, 3, ceil)
    if objective is not Objective.MAKESPAN:
        assert (objective.show(2, 3, floor), objective.show(2, 3)) == ("0.000000000 s", "0.000000001 s")
        assert objective.show(1, 3, ceil) == "0.000000001 s"
