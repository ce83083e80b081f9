"""Batch time in the model: the same integers as the cost model, term by term.

Time is minimised, so each term is bounded from below only; the bound is the exact rounded-up term.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from ortools.sat.python import cp_model

from cspsched.bounds.parts.minorant import lower_hull
from cspsched.problem.cost import FUNCTION_FEATURES, BatchFeatures, CostModel, PiecewiseLinear


@dataclass(frozen=True)
class Amount:
    """A batch feature as a linear expression, and the most that it can be."""

    expression: cp_model.LinearExprT
    most: int


@dataclass(frozen=True)
class BatchExpressions:
    """What prices batch j: its features, and literals for used, has a prefill, has a decode."""

    features: dict[str, Amount]
    used: cp_model.IntVar
    has_prefill: cp_model.IntVar
    has_decode: cp_model.IntVar


def feature_maxima(batch: BatchExpressions) -> BatchFeatures[int]:
    """Largest value of every feature."""
    return BatchFeatures(**{name: amount.most for name, amount in batch.features.items()})


def add_duration(model: cp_model.CpModel, cost: CostModel, batch: BatchExpressions) -> Amount:
    r"""T_j: constants times their literals, plus every $\lceil f(x) \rceil$."""
    terms: list[cp_model.LinearExprT] = [
        cost.step_ceil * batch.used,
        cost.prefill_batch_ceil * batch.has_prefill,
        cost.decode_batch_ceil * batch.has_decode,
    ]
    for name, feature in FUNCTION_FEATURES.items():
        terms.append(add_term(model, getattr(cost, name), batch.features[feature]))
    terms.append(add_term(model, cost.prefill_request_term, batch.features["num_prefills"]))
    terms.append(add_term(model, cost.decode_request_term, batch.features["num_decodes"]))
    for position, function in cost.functions(mixed=True):
        feature = BatchFeatures._fields[position]
        terms.append(add_term(model, function, _beside_prefill(model, batch, feature)))
    most = cost.batch_time_ns(feature_maxima(batch))
    return Amount(cp_model.LinearExpr.sum(terms), most)


def _beside_prefill(model: cp_model.CpModel, batch: BatchExpressions, feature: str) -> Amount:
    """A feature in a batch with a prefill, 0 in others; bounded from below only, for it is minimised."""
    amount = batch.features[feature]
    beside = model.new_int_var(0, amount.most, "")
    model.add(beside >= amount.expression).only_enforce_if(batch.has_prefill)
    return Amount(beside, amount.most)


def add_term(model: cp_model.CpModel, function: PiecewiseLinear, amount: Amount) -> cp_model.LinearExprT:
    r"""Expression for $\lceil f(x) \rceil$, exact where it is minimised."""
    if function.is_zero or amount.most == 0:
        return 0
    pieces = [k for k, knot in enumerate(function.knots) if knot < amount.most]
    if len(pieces) == 1 and function.denominator == 1:
        return function.slope_numerators[0] * amount.expression
    term = model.new_int_var(0, function.ceil(amount.most), "")
    slopes = [function.slopes[k] for k in pieces]
    if slopes == sorted(slopes):
        for k in pieces:
            model.add(function.denominator * term >= _piece(function, k, amount))
    else:
        _add_pieces(model, function, amount, term, pieces)
    return term


def _piece(function: PiecewiseLinear, k: int, amount: Amount) -> cp_model.LinearExprT:
    """Numerator of the k-th line."""
    slope, knot = function.slope_numerators[k], function.knots[k]
    return slope * amount.expression + (function.knot_numerators[k] - slope * knot)


def _add_pieces(
    model: cp_model.CpModel,
    function: PiecewiseLinear,
    amount: Amount,
    term: cp_model.IntVar,
    pieces: list[int],
) -> None:
    """Choose the piece that x lies on; the lower hull keeps the linear relaxation tight."""
    chosen = [model.new_bool_var("") for _ in pieces]
    model.add_exactly_one(chosen)
    for k, here in zip(pieces, chosen, strict=True):
        upper = function.knots[k + 1] if k + 1 < len(function.knots) else amount.most
        model.add_linear_constraint(
            amount.expression, function.knots[k], min(upper, amount.most)
        ).only_enforce_if(here)
        line = _piece(function, k, amount)
        model.add(function.denominator * term >= line).only_enforce_if(here)
    for slope, intercept in lower_hull(function, 0, amount.most):
        scale = lcm(slope.denominator, intercept.denominator)
        line = int(slope * scale) * amount.expression + int(intercept * scale)
        model.add(scale * term >= line)
