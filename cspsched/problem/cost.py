"""Batch time: the integer piecewise-linear form of the problem (one form for solver, simulator and referee).

    T = step + f_tok(N) + f_pre(A) + f_ptok(P) + f_ctx(X) + f_dec(K) + f_head(n_gen)
        + c_p n_pre + c_d n_dec + [n_pre > 0] b_p + [n_dec > 0] b_d

Every coefficient and slope is a rational >= 0 in nanoseconds; each term is evaluated exactly and rounded up
once per batch; T is their sum. Monotone in every feature by construction.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cspsched.errors import CostError
from cspsched.problem.json_io import require_keys, require_schema, require_text

IntArray = npt.NDArray[np.int64]
Count = TypeVar("Count", int, IntArray)

# Products of int64 arrays stay exact below this; larger models are evaluated with Python integers.
SANE_NUMBER = re.compile(r"[-+]?[0-9./]{1,60}(?:[eE][-+]?[0-9]{1,2})?")
"""Exact numbers are short: `1e999999999` would be a number of a billion digits."""
INT64_SAFE = 2**62


class BatchFeatures(NamedTuple, Generic[Count]):
    """What a batch is priced by: one integer each, or one int64 array of shape (num_batches,) each."""

    tokens: Count
    """N: tokens processed."""
    prefill_attention: Count
    """A: sum over prefill chunks of W(n + c) - W(n), with W(x) = x (x + 1) / 2."""
    prefill_tokens: Count
    """P: tokens of prefill and refill chunks."""
    prefill_context: Count
    """X: KV entries read again by prefill chunks (sum of n)."""
    decode_context: Count
    """K: KV entries read by decodes (sum of n)."""
    num_generating: Count
    """n_gen: requests that generate an output token."""
    num_prefills: Count
    """n_pre: requests in their prefill or refill phase."""
    num_decodes: Count
    """n_dec: requests in their decode phase."""


def triangle(tokens: Count) -> Count:
    """W(x) = x (x + 1) / 2, the attention work of a prompt of x tokens."""
    return tokens * (tokens + 1) // 2


@dataclass(frozen=True)
class PiecewiseLinear:
    """A non-decreasing piecewise-linear function with f(0) = 0, in nanoseconds.

    Attributes
    ----------
    knots
        Where the slope changes; the first is 0, strictly increasing.
    slopes
        Slope from each knot to the next (the last holds for ever), rationals >= 0.
    """

    knots: tuple[int, ...] = (0,)
    slopes: tuple[Fraction, ...] = (Fraction(0),)

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.slopes) or not self.knots or self.knots[0] != 0:
            raise CostError(
                f"piecewise-linear term: {len(self.knots)} knots starting at {self.knots[:1]} and "
                f"{len(self.slopes)} slopes, expected as many slopes as knots and 0 as the first knot"
            )
        if any(left >= right for left, right in zip(self.knots, self.knots[1:], strict=False)):
            raise CostError(f"piecewise-linear term: knots {self.knots} are not strictly increasing")
        if any(slope < 0 for slope in self.slopes):
            raise CostError(f"piecewise-linear term: slopes {self.slopes} must all be at least 0")

    @classmethod
    def linear(cls, slope: Fraction | int | str) -> PiecewiseLinear:
        """The straight line of a slope in nanoseconds per unit."""
        return cls((0,), (Fraction(slope),))

    @cached_property
    def denominator(self) -> int:
        """Common denominator of all slopes."""
        return lcm(*(slope.denominator for slope in self.slopes))

    @cached_property
    def slope_numerators(self) -> tuple[int, ...]:
        """Slopes times the common denominator."""
        return tuple(int(slope * self.denominator) for slope in self.slopes)

    @cached_property
    def knot_numerators(self) -> tuple[int, ...]:
        """Values at the knots times the common denominator."""
        values = [0]
        for k in range(1, len(self.knots)):
            values.append(values[-1] + self.slope_numerators[k - 1] * (self.knots[k] - self.knots[k - 1]))
        return tuple(values)

    @property
    def is_zero(self) -> bool:
        """Whether the term costs nothing anywhere."""
        return not any(self.slopes)

    def numerator(self, x: int) -> int:
        """Exact value at x times the common denominator."""
        k = bisect_right(self.knots, x) - 1
        return self.knot_numerators[k] + self.slope_numerators[k] * (x - self.knots[k])

    def exact(self, x: int) -> Fraction:
        """Unrounded value at x in nanoseconds."""
        return Fraction(self.numerator(x), self.denominator)

    def ceil(self, x: int) -> int:
        """Value at x in nanoseconds, rounded up."""
        return -(-self.numerator(x) // self.denominator)

    def ceil_array(self, x: IntArray) -> IntArray:
        """Values at many points in nanoseconds, rounded up; falls back to Python integers near overflow."""
        if self.is_zero or len(x) == 0:
            return np.zeros(len(x), dtype=np.int64)
        largest = int(x.max())
        # One further, so that the last slope is covered too; knots beyond may be of any size.
        if max(self.numerator(largest + 1), self.denominator) >= INT64_SAFE:
            return np.array([self.ceil(int(value)) for value in x], dtype=np.int64)
        reached = slice(bisect_right(self.knots, largest))
        knots = np.array(self.knots[reached], dtype=np.int64)
        k = np.searchsorted(knots, x, side="right") - 1
        base = np.array(self.knot_numerators[reached], dtype=np.int64)[k]
        slope = np.array(self.slope_numerators[reached], dtype=np.int64)[k]
        numerators: IntArray = base + slope * (x - knots[k])
        return -(-numerators // self.denominator)

    def to_json(self) -> dict[str, Any]:
        """Knots as integers, slopes as exact text."""
        return {"knots": list(self.knots), "slopes_ns": [str(slope) for slope in self.slopes]}

    @classmethod
    def from_json(cls, data: Any, where: str, ns_per_unit: Fraction = Fraction(1)) -> PiecewiseLinear:
        """Read what `to_json` wrote (or a cost file's table, with slopes in another unit)."""
        require_keys(data, where, required=("knots", "slopes_ns"))
        if not isinstance(data["knots"], list) or not isinstance(data["slopes_ns"], list):
            raise CostError(f"{where}: knots and slopes_ns must be lists")
        if not all(isinstance(knot, int) and not isinstance(knot, bool) for knot in data["knots"]):
            raise CostError(f"{where}: knots are {data['knots']}, expected whole numbers")
        slopes = tuple(
            ns_per_unit * read_rational(text, f"{where}.slopes_ns[{k}]")
            for k, text in enumerate(data["slopes_ns"])
        )
        return cls(tuple(data["knots"]), slopes)


def read_rational(text: Any, where: str) -> Fraction:
    """Read an exact number from text such as `97.76`, `8.6e-8` or `2444/25`."""
    try:
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise ValueError
        if not SANE_NUMBER.fullmatch(str(text).strip()):
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise CostError(
            f"{where} is {text!r}, expected an exact number as text, such as '97.76' or '2444/25'"
        ) from None


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Duration of a batch from its features; see the module for the formula. Times in nanoseconds."""

    name: str
    step: Fraction = Fraction(0)
    """Every batch."""
    prefill_batch: Fraction = Fraction(0)
    """b_p: a batch with at least one prefill or refill chunk."""
    decode_batch: Fraction = Fraction(0)
    """b_d: a batch with at least one decode."""
    prefill_request: Fraction = Fraction(0)
    """c_p: each prefilling request."""
    decode_request: Fraction = Fraction(0)
    """c_d: each decoding request."""
    swap_block: Fraction = Fraction(0)
    """Each KV block moved between device and host; no part of the batch, it delays its start."""
    tokens: PiecewiseLinear = PiecewiseLinear()
    """f_tok over N."""
    prefill_attention: PiecewiseLinear = PiecewiseLinear()
    """f_pre over A."""
    prefill_tokens: PiecewiseLinear = PiecewiseLinear()
    """f_ptok over P."""
    prefill_context: PiecewiseLinear = PiecewiseLinear()
    """f_ctx over X."""
    decode_context: PiecewiseLinear = PiecewiseLinear()
    """f_dec over K."""
    head: PiecewiseLinear = PiecewiseLinear()
    """f_head over n_gen."""

    def __post_init__(self) -> None:
        for name in CONSTANT_TERMS:
            if getattr(self, name) < 0:
                raise CostError(f"cost model {self.name!r}: {name} is {getattr(self, name)}, expected >= 0")
        if self.step + min(self.prefill_batch, self.decode_batch) + self.tokens.exact(1) <= 0:
            raise CostError(f"cost model {self.name!r}: a batch of one token takes no time; give a step time")

    @cached_property
    def _functions(self) -> tuple[tuple[int, PiecewiseLinear], ...]:
        """Non-zero piecewise-linear terms with the index of their feature."""
        position = {name: k for k, name in enumerate(BatchFeatures._fields)}
        return tuple(
            (position[feature], getattr(self, name))
            for name, feature in FUNCTION_FEATURES.items()
            if not getattr(self, name).is_zero
        )

    @cached_property
    def step_ceil(self) -> int:
        """Step term rounded up."""
        return _ceil(self.step)

    @cached_property
    def prefill_batch_ceil(self) -> int:
        """b_p rounded up."""
        return _ceil(self.prefill_batch)

    @cached_property
    def decode_batch_ceil(self) -> int:
        """b_d rounded up."""
        return _ceil(self.decode_batch)

    @cached_property
    def prefill_request_term(self) -> PiecewiseLinear:
        """c_p n_pre as a function of n_pre."""
        return PiecewiseLinear.linear(self.prefill_request)

    @cached_property
    def decode_request_term(self) -> PiecewiseLinear:
        """c_d n_dec as a function of n_dec."""
        return PiecewiseLinear.linear(self.decode_request)

    def batch_time_ns(self, batch: BatchFeatures[int]) -> int:
        """Duration of one batch in nanoseconds."""
        time_ns = self.step_ceil
        for index, function in self._functions:
            time_ns += function.ceil(batch[index])
        if batch.num_prefills:
            time_ns += self.prefill_batch_ceil + self.prefill_request_term.ceil(batch.num_prefills)
        if batch.num_decodes:
            time_ns += self.decode_batch_ceil + self.decode_request_term.ceil(batch.num_decodes)
        return time_ns

    def swap_time_ns(self, num_blocks: int) -> int:
        """Time to move KV blocks between device and host at the boundary before a batch, rounded up."""
        return _ceil(self.swap_block * num_blocks)

    def batch_times_ns(self, batches: BatchFeatures[IntArray]) -> IntArray:
        """Durations of many batches, int64 of shape (num_batches,); the same numbers as `batch_time_ns`.

        Raises
        ------
        CostError
            If a duration could reach 2^63 ns.
        """
        self._require_int64(batches)
        times = np.full(len(batches.tokens), self.step_ceil, dtype=np.int64)
        for index, function in self._functions:
            times += function.ceil_array(batches[index])
        times += self.prefill_request_term.ceil_array(batches.num_prefills)
        times += self.decode_request_term.ceil_array(batches.num_decodes)
        times += self.prefill_batch_ceil * (batches.num_prefills > 0)
        times += self.decode_batch_ceil * (batches.num_decodes > 0)
        return times

    def _require_int64(self, batches: BatchFeatures[IntArray]) -> None:
        if len(batches.tokens):
            worst = self.batch_time_ns(BatchFeatures(*(int(feature.max()) for feature in batches)))
            if worst >= 2**63:
                raise CostError(f"cost model {self.name!r}: a batch may take {worst} ns, 64 bits are too few")

    def to_json(self) -> dict[str, Any]:
        """Exact JSON: rationals as text."""
        data: dict[str, Any] = {"schema": COST_SCHEMA, "name": self.name}
        for name in CONSTANT_TERMS:
            # Instances without swap keep the fingerprint that they had before there was any.
            if name != "swap_block" or self.swap_block:
                data[f"{name}_ns"] = str(getattr(self, name))
        for name in FUNCTION_FEATURES:
            data[name] = getattr(self, name).to_json()
        return data

    @classmethod
    def from_json(cls, data: Any, where: str = "cost model") -> CostModel:
        """Read what `to_json` wrote, or a cost file; terms left out are zero.

        A file may give its numbers in another unit with `ns_per_unit` (for instance milliseconds per
        layer), which is multiplied in exactly.

        Raises
        ------
        CostError
            If a number is no exact rational >= 0, or a name is unknown.
        """
        require_schema(data, COST_SCHEMA, where)
        constants = tuple(f"{name}_ns" for name in CONSTANT_TERMS)
        require_keys(
            data, where, required=("name",), optional=(*constants, *FUNCTION_FEATURES, *DESCRIPTION_KEYS)
        )
        unit = read_rational(data.get("ns_per_unit", 1), f"{where}: ns_per_unit")
        terms: dict[str, Any] = {
            name: unit * read_rational(data[f"{name}_ns"], f"{where}: {name}_ns")
            for name in CONSTANT_TERMS
            if f"{name}_ns" in data
        }
        terms |= {
            name: PiecewiseLinear.from_json(data[name], f"{where}: {name}", unit)
            for name in FUNCTION_FEATURES
            if name in data
        }
        return cls(name=require_text(data, "name", where), **terms)


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


COST_SCHEMA = "cspsched/cost/1"
FUNCTION_FEATURES = {
    "tokens": "tokens",
    "prefill_attention": "prefill_attention",
    "prefill_tokens": "prefill_tokens",
    "prefill_context": "prefill_context",
    "decode_context": "decode_context",
    "head": "num_generating",
}
"""Piecewise-linear terms of a cost model and the batch feature that each prices."""
CONSTANT_TERMS = tuple(
    field.name for field in fields(CostModel) if field.name not in ("name", *FUNCTION_FEATURES)
)
DESCRIPTION_KEYS = (
    "ns_per_unit", "title", "model", "device", "tensor_parallel", "source", "fit_error", "leaves_out", "band",
    "domain",
)  # fmt: skip
"""What a cost file says about itself beside the numbers."""
