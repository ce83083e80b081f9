"""Slow, obviously right twins of the bounds' parts, and strategies for tiny instances with any cost model."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

from hypothesis import strategies as st

from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request

FUNCTIONS = (
    "tokens", "prefill_attention", "prefill_tokens", "prefill_context", "decode_context", "head",
)  # fmt: skip


def chunkings(tokens, budget):
    """All ways to cut a prompt into chunks of at most `budget` tokens."""
    if tokens == 0:
        yield ()
    for first in range(1, min(tokens, budget) + 1):
        for rest in chunkings(tokens - first, budget):
            yield (first, *rest)


def held_before(chunks):
    """Tokens resident before each chunk."""
    return [sum(chunks[:k]) for k in range(len(chunks))]


def lone_chunk_features(held, chunk, *, generates):
    """Features of a batch with one prefill chunk."""
    attention = sum(range(held + 1, held + chunk + 1))
    return BatchFeatures(chunk, attention, chunk, held, 0, int(generates), 1, 0)


def lone_prefill_time(chunks, price):
    """Sum of a price over the batches of a prefill that is alone on the machine."""
    last = len(chunks) - 1
    starts = held_before(chunks)
    return sum(
        price(lone_chunk_features(starts[k], chunk, generates=k == last)) for k, chunk in enumerate(chunks)
    )


def fewest_blocks(prompt, budget, block):
    """Least sum of KV blocks over the batches of a prefill."""
    return min(
        sum(-(-(held + chunk) // block) for held, chunk in zip(held_before(chunks), chunks, strict=True))
        for chunks in chunkings(prompt, budget)
    )


def lower_envelope(function, bottom, top):
    """Lower convex hull at every integer of a domain, by trying every chord."""
    values = {x: function.exact(x) for x in range(bottom, top + 1)}

    def chord(left, right, x):
        return values[left] + (values[right] - values[left]) * Fraction(x - left, right - left)

    return {
        x: min([values[x]] + [chord(a, b, x) for a in range(bottom, x) for b in range(x + 1, top + 1)])
        for x in values
    }


def best_total_completion(releases, processing):
    """Smallest sum of completions over all preemptive schedules in unit steps, idling included."""
    horizon = max(releases, default=0) + sum(processing)

    @cache
    def total_from(clock, remaining):
        if not any(remaining):
            return 0
        if clock > horizon:
            return float("inf")
        options = [total_from(clock + 1, remaining)]
        for i, rest in enumerate(remaining):
            if rest and releases[i] <= clock:
                after = (*remaining[:i], rest - 1, *remaining[i + 1 :])
                done = clock + 1 if rest == 1 else 0
                options.append(done + total_from(clock + 1, after))
        return min(options)

    return total_from(0, tuple(processing))


@st.composite
def piecewise_linear(draw, max_slope=9):
    """Any non-decreasing piecewise-linear function, convex or not."""
    knots = draw(st.lists(st.integers(1, 8), max_size=3, unique=True).map(sorted))
    slopes = draw(
        st.lists(
            st.fractions(0, max_slope, max_denominator=3), min_size=len(knots) + 1, max_size=len(knots) + 1
        )
    )
    return PiecewiseLinear((0, *knots), tuple(slopes))


@st.composite
def cost_models(draw):
    """Any cost model with small coefficients."""
    constants = {
        name: draw(st.fractions(0, 12, max_denominator=2))
        for name in ("prefill_batch", "decode_batch", "prefill_request", "decode_request")
    }
    functions = {name: draw(piecewise_linear()) for name in FUNCTIONS if draw(st.booleans())}
    return CostModel(name="drawn", step=Fraction(draw(st.integers(1, 20))), **constants, **functions)


@st.composite
def affine_costs(draw):
    """Cost models whose terms are all straight lines."""
    constants = {
        name: draw(st.fractions(0, 12, max_denominator=2))
        for name in ("prefill_batch", "decode_batch", "prefill_request", "decode_request")
    }
    lines = {name: PiecewiseLinear.linear(draw(st.fractions(0, 9, max_denominator=3))) for name in FUNCTIONS}
    return CostModel(name="affine", step=Fraction(draw(st.integers(1, 20))), **constants, **lines)


@st.composite
def tiny_instances(draw, max_requests=3, max_prompt=3, max_output=3, costs=None):
    """Instances that exhaustive search can solve: every request fits, everything else is free."""
    requests = tuple(
        Request(
            request_id=f"r{k}",
            arrival_ns=draw(st.integers(0, 40)),
            prompt_tokens=draw(st.integers(1, max_prompt)),
            output_tokens=draw(st.integers(1, max_output)),
        )
        for k in range(draw(st.integers(1, max_requests)))
    )
    block = draw(st.integers(1, 3))
    least = max(-(-request.peak_kv_tokens // block) for request in requests)
    limits = Limits(
        kv_blocks=draw(st.integers(least, least + 4)),
        block_tokens=block,
        max_batch_tokens=draw(st.integers(1, 6)),
        max_batch_requests=draw(st.integers(1, 3)),
    )
    cost = draw(cost_models() if costs is None else costs)
    return Instance(requests=requests, limits=limits, cost=cost)


@st.composite
def compositions(draw, instance):
    """Features of a random batch that the limits of an instance allow (memory, budget, slots)."""
    limits, entries, room = instance.limits, [], instance.limits.kv_tokens
    budget = limits.max_batch_tokens
    for request in instance.requests[: limits.max_batch_requests]:
        peak = min(request.peak_kv_tokens, room)
        if peak < 1 or budget < 1:
            break
        chunk = draw(st.integers(1, min(peak, budget)))
        held = draw(st.integers(0, peak - chunk))
        decodes = chunk == 1 and held > 0 and draw(st.booleans())
        entries.append((held, chunk, decodes, decodes or draw(st.booleans())))
        room -= held + chunk
        budget -= chunk
    prefills = [(held, chunk) for held, chunk, decodes, _ in entries if not decodes]
    decodes = [held for held, _, decode, _ in entries if decode]
    return BatchFeatures(
        tokens=sum(chunk for _, chunk, _, _ in entries),
        prefill_attention=sum(sum(range(held + 1, held + chunk + 1)) for held, chunk in prefills),
        prefill_tokens=sum(chunk for _, chunk in prefills),
        prefill_context=sum(held for held, _ in prefills),
        decode_context=sum(decodes),
        num_generating=sum(generates for *_, generates in entries),
        num_prefills=len(prefills),
        num_decodes=len(decodes),
    )
