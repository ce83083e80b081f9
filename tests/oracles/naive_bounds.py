"""Slow, obviously right twins of the bounds' parts, and strategies for tiny instances with any cost model."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

from hypothesis import strategies as st

from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.piecewise import NOTHING
from cspsched.problem.request import Request
from cspsched.referee.history import follow

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
    """Any cost model with small coefficients; batches may cost nothing but their tokens."""
    constants = {
        name: draw(st.fractions(0, 12, max_denominator=2))
        for name in ("prefill_batch", "decode_batch", "prefill_request", "decode_request", "mixed_request")
    }
    names = (*FUNCTIONS, "mixed_context")
    functions = {name: draw(piecewise_linear()) for name in names if draw(st.booleans())}
    fewest = 0 if functions.get("tokens", NOTHING).exact(1) else 1
    step = draw(st.sampled_from([fewest, 1]) | st.integers(1, 20))
    return CostModel(name="drawn", step=Fraction(step), **constants, **functions)


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


class TimeAccounts:
    """What each request really pays in a schedule when time has a price; affine costs with b_d = 0.

    A batch is its decodes' part and then its prefills' part, which is frozen time.
    """

    def __init__(self, instance, schedule, chosen):
        self.instance, self.schedule, self.chosen = instance, schedule, chosen
        self.price, self.stretch, self.pace = chosen.price / 1024, chosen.stretch / 16, chosen.pace / 16
        self.history = follow(instance, schedule)
        self.frozen = [self._work(j, decodes=False) for j in range(schedule.num_batches)]

    def _slice(self, batch):
        bounds = self.schedule.first_entry
        end = bounds[batch + 1] if batch + 1 < len(bounds) else len(self.schedule.request)
        return range(bounds[batch], end)

    def _entry_work(self, entry):
        held, tokens = int(self.history.kv_before[entry]), int(self.schedule.tokens[entry])
        slope = self.instance.cost.tokens.slopes[0]
        if self.history.decodes[entry]:
            return slope + self.instance.cost.decode_context.slopes[0] * held
        attention = sum(range(held + 1, held + tokens + 1)) * self.instance.cost.prefill_attention.slopes[0]
        share = Fraction(tokens, self.instance.limits.max_batch_tokens)
        return slope * tokens + attention + share * self.instance.cost.prefill_batch

    def _work(self, batch, *, decodes):
        return sum(self._entry_work(e) for e in self._slice(batch) if self.history.decodes[e] == decodes)

    def _reach(self, i):
        """L and where mu ends, after the arrival."""
        request, limits = self.instance.requests[i], self.instance.limits
        batches = -(-request.prompt_tokens // limits.max_batch_tokens) + request.output_tokens - 1
        length = float(self.instance.cost.step) * batches * self.pace
        ends = request.arrival_ns + self.stretch * length <= self.chosen.horizon_ns
        return length, self.stretch * length if ends else 0.0

    def integral(self, i, start, end):
        """Integral of mu_i."""
        arrival, (length, reach) = self.instance.requests[i].arrival_ns, self._reach(i)
        left, right = (min(max(t - arrival, 0), reach) for t in (float(start), float(end)))
        return (right - left) * (self.stretch - (left + right) / (2 * length))

    def net(self, i):
        """Completion, latency less what comes back, and what is paid."""
        paid = back = completion = 0.0
        for batch in range(self.schedule.num_batches):
            start, end = int(self.schedule.start_ns[batch]), int(self.schedule.end_ns[batch])
            opened = end - self.frozen[batch]
            back += self.integral(i, opened, end)
            for entry in self._slice(batch):
                if self.schedule.request[entry] == i:
                    completion = end
                    paid += self._paid(entry, batch, start, opened, end)
        return completion, completion - self.instance.requests[i].arrival_ns - back, paid

    def _paid(self, entry, batch, start, opened, end):
        work = float(self._entry_work(entry))
        if self.history.decodes[entry]:
            length = float(opened - start)
            return self.price * length * work / (length - float(self.instance.cost.step))
        waiting = sum(self.integral(k, opened, end) for k in range(len(self.instance.requests)))
        return work * (self.price + waiting / float(self.frozen[batch]))
