"""Batch time: the integer piecewise-linear form of the problem (one form for solver, simulator and referee).

    T = step + f_tok(N) + f_pre(A) + f_ptok(P) + f_ctx(X) + f_dec(K) + f_head(n_gen)
        + c_p n_pre + c_d n_dec + [n_pre > 0] (b_p + f_mix(K) + c_mix n_dec) + [n_dec > 0] b_d

f_mix and c_mix are for engines where one attention kernel serves prefills and decodes: a decode costs more
beside a prefill. They are 0 where each has a kernel of its own.

Every coefficient and slope is a rational >= 0 in nanoseconds; each term is evaluated exactly and rounded up
once per batch; T is their sum. Monotone in every feature by construction.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from cspsched.errors import CostError
from cspsched.problem.json_io import require_keys, require_schema, require_text
from cspsched.problem.piecewise import INT64_SAFE, NOTHING, IntArray, PiecewiseLinear, read_rational

__all__ = [
    "CONSTANT_TERMS",
    "COST_SCHEMA",
    "FUNCTION_FEATURES",
    "FUNCTION_TERMS",
    "INT64_SAFE",
    "MIXED_FEATURES",
    "BatchFeatures",
    "CostModel",
    "Count",
    "IntArray",
    "PiecewiseLinear",
    "read_rational",
    "triangle",
]
Count = TypeVar("Count", int, IntArray)


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
    mixed_request: Fraction = Fraction(0)
    """c_mix: each decoding request beside a prefill, on top of c_d."""
    swap_block: Fraction = Fraction(0)
    """Each KV block moved between device and host; no part of the batch, it delays its start."""
    tokens: PiecewiseLinear = NOTHING
    """f_tok over N."""
    prefill_attention: PiecewiseLinear = NOTHING
    """f_pre over A."""
    prefill_tokens: PiecewiseLinear = NOTHING
    """f_ptok over P."""
    prefill_context: PiecewiseLinear = NOTHING
    """f_ctx over X."""
    decode_context: PiecewiseLinear = NOTHING
    """f_dec over K."""
    mixed_context: PiecewiseLinear = NOTHING
    """f_mix over K in batches with a prefill, on top of f_dec."""
    head: PiecewiseLinear = NOTHING
    """f_head over n_gen."""

    def __post_init__(self) -> None:
        for name in CONSTANT_TERMS:
            if getattr(self, name) < 0:
                raise CostError(f"cost model {self.name!r}: {name} is {getattr(self, name)}, expected >= 0")
        if self.step + min(self.prefill_batch, self.decode_batch) + self.tokens.exact(1) <= 0:
            raise CostError(f"cost model {self.name!r}: a batch of one token takes no time; give a step time")

    def functions(self, *, mixed: bool) -> list[tuple[int, PiecewiseLinear]]:
        """Non-zero terms with the position of their feature in `BatchFeatures`.

        Parameters
        ----------
        mixed
            Whether those that are paid beside a prefill only, or those of every batch.
        """
        position = {name: k for k, name in enumerate(BatchFeatures._fields)}
        if mixed:
            named = [(feature, getattr(self, name)) for name, feature in MIXED_FEATURES.items()]
            named.append(("num_decodes", self.mixed_request_term))
        else:
            named = [(feature, getattr(self, name)) for name, feature in FUNCTION_FEATURES.items()]
            named.append(("num_prefills", self.prefill_request_term))
            named.append(("num_decodes", self.decode_request_term))
        return [(position[feature], function) for feature, function in named if not function.is_zero]

    @cached_property
    def _kinds(self) -> tuple[tuple[_Flat, _Flat], tuple[_Flat, _Flat]]:
        """What batches pay: without and with prefill, of each without and with decode."""
        alone, step = self.functions(mixed=False), self.step_ceil
        beside, with_prefill = alone + self.functions(mixed=True), step + self.prefill_batch_ceil
        return (
            (_Flat.of(step, alone), _Flat.of(step + self.decode_batch_ceil, alone)),
            (_Flat.of(with_prefill, beside), _Flat.of(with_prefill + self.decode_batch_ceil, beside)),
        )

    @cached_property
    def num_rounded_terms(self) -> int:
        """Terms that are no whole nanoseconds; each adds less than one to the time of a batch."""
        constants = (self.step, self.prefill_batch, self.decode_batch)
        functions = self.functions(mixed=False) + self.functions(mixed=True)
        rounded = [constant.denominator > 1 for constant in constants]
        return sum(rounded) + sum(function.denominator > 1 for _, function in functions)

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

    @cached_property
    def mixed_request_term(self) -> PiecewiseLinear:
        """c_mix n_dec as a function of n_dec, in batches with a prefill."""
        return PiecewiseLinear.linear(self.mixed_request)

    def batch_time_ns(self, batch: BatchFeatures[int]) -> int:
        """Duration of one batch in nanoseconds."""
        time_ns, lines, curves = self._kinds[batch.num_prefills > 0][batch.num_decodes > 0]
        for feature, slope, denominator in lines:
            x = batch[feature]
            if x:
                time_ns -= -slope * x // denominator
        for feature, knots, values, slopes, denominator in curves:
            x = batch[feature]
            if x:
                k = bisect_right(knots, x) - 1
                time_ns -= -(values[k] + slopes[k] * (x - knots[k])) // denominator
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
        for feature, function in self.functions(mixed=False):
            times += function.ceil_array(batches[feature])
        beside_prefill = batches.num_prefills > 0
        for feature, function in self.functions(mixed=True):
            times += function.ceil_array(batches[feature] * beside_prefill)
        times += self.prefill_batch_ceil * beside_prefill
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
            if name not in LATER_TERMS or getattr(self, name):
                data[f"{name}_ns"] = str(getattr(self, name))
        for name in FUNCTION_TERMS:
            if name not in LATER_TERMS or not getattr(self, name).is_zero:
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
            data, where, required=("name",), optional=(*constants, *FUNCTION_TERMS, *DESCRIPTION_KEYS)
        )
        unit = read_rational(data.get("ns_per_unit", 1), f"{where}: ns_per_unit")
        terms: dict[str, Any] = {
            name: unit * read_rational(data[f"{name}_ns"], f"{where}: {name}_ns")
            for name in CONSTANT_TERMS
            if f"{name}_ns" in data
        }
        terms |= {
            name: PiecewiseLinear.from_json(data[name], f"{where}: {name}", unit)
            for name in FUNCTION_TERMS
            if name in data
        }
        return cls(name=require_text(data, "name", where), **terms)


class _Flat(NamedTuple):
    """What a batch pays as plain integers, so that one is priced in a microsecond."""

    constant: int
    lines: tuple[tuple[int, int, int], ...]
    """Feature, slope times the denominator, denominator."""
    curves: tuple[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int], ...]
    """Feature, knots, values there and slopes from there times the denominator, denominator."""

    @classmethod
    def of(cls, constant: int, functions: list[tuple[int, PiecewiseLinear]]) -> _Flat:
        """Lines apart from what has several slopes."""
        lines, curves = [], []
        for feature, f in functions:
            if len(f.knots) == 1:
                lines.append((feature, f.slope_numerators[0], f.denominator))
            else:
                curves.append((feature, f.knots, f.knot_numerators, f.slope_numerators, f.denominator))
        return cls(constant, tuple(lines), tuple(curves))


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
"""Piecewise-linear terms of every batch and the feature that each prices."""
MIXED_FEATURES = {"mixed_context": "decode_context"}
"""Piecewise-linear terms of batches with a prefill only, and the feature that each prices."""
FUNCTION_TERMS = (*FUNCTION_FEATURES, *MIXED_FEATURES)
"""Piecewise-linear terms of a cost model."""
CONSTANT_TERMS = tuple(
    field.name for field in fields(CostModel) if field.name not in ("name", *FUNCTION_TERMS)
)
LATER_TERMS = ("swap_block", "mixed_request", "mixed_context")
"""Instances without these keep the fingerprint that they had before there were any."""
DESCRIPTION_KEYS = (
    "ns_per_unit", "title", "model", "device", "tensor_parallel", "data_parallel", "expert_parallel",
    "pipeline_parallel", "source", "fit_error", "leaves_out", "band", "domain", "frontend",
)  # fmt: skip
"""What a cost file says about itself beside the numbers."""
