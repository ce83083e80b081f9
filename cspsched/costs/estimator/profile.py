"""Fits a cost model to the rows of an operator profile: monotone, additive, piecewise linear.

    T = step + f_tok(N) + f_head(n_gen) + [prefill attention] + [decode attention] + [mixed attention]

Token operators are added up as tables and then covered by at most 12 slopes; head and attention get at most
4 a term. Where one kernel serves prefills and decodes, what decodes cost on top beside a prefill is fitted to
mixed batches, beside the other two. Every slope is at least 0, so the batch time is monotone; the last slope
of a term rests on at least a quarter of its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cspsched.costs.estimator.band import Band, Domain, Estimator
from cspsched.costs.estimator.features import (
    NS_PER_US,
    Backends,
    attention_work,
    head_work,
    message_times,
    of_operator,
    one_backend,
    served,
    token_work,
)
from cspsched.costs.estimator.quality import Group, band_of, error_text, largest_features
from cspsched.costs.fit import FloatArray, Measurements, feature_column, price_terms
from cspsched.costs.models import LlmModel
from cspsched.costs.rows import check_rows, make_rows
from cspsched.errors import InputError
from cspsched.problem.cost import CostModel
from cspsched.units import ceil_div

if TYPE_CHECKING:
    import pandas as pd

Engine = Literal["split", "unified"]
MOST_TOKEN_KNOTS = 12
MOST_KNOTS = 4
ONE_SLOPE = ("prefill_attention", "prefill_context")
"""Terms that stay straight lines: the work of a prompt is then the same however it is chunked, which the
solver's proofs build on. More slopes would lower the error of prefill attention by 0.5 to 3 points."""
PREFILL_TERMS = ("prefill_attention", "prefill_tokens", "prefill_context")
MOST_MIXED = 4000
"""Of more mixed batches every n-th is fitted to: two slopes and a constant need no more."""


@dataclass(frozen=True)
class FittedProfile:
    """A cost model and how good it is.

    Attributes
    ----------
    fit_error
        By kind of work: errors in sample, held out and extrapolated, as text.
    groups
        What was fitted to what.
    """

    cost: CostModel
    band: Band
    domain: Domain
    fit_error: Mapping[str, str]
    groups: tuple[Group, ...]

    @property
    def estimator(self) -> Estimator:
        """The cost model with its band and domain, ready to be asked."""
        return Estimator.of(self.cost, self.band, self.domain)


def fit_profile(
    rows: pd.DataFrame,
    model: LlmModel,
    tensor_parallel: int = 1,
    *,
    name: str | None = None,
    engine: Engine = "split",
    pipeline_stages: int = 1,
    backends: Backends | None = None,
) -> FittedProfile:
    """Fit a cost model to rows of a profile.

    Parameters
    ----------
    rows
        As `cspsched.costs.rows` describes; those of other degrees of tensor parallelism are left out.
    engine
        `split`: prefills and decodes run in kernels of their own and add up. `unified`: one kernel serves
        both, so that decodes cost more beside a prefill; that is fitted to mixed batches.
    pipeline_stages
        The time is that of one stage, which holds its share of the layers, rounded up, and the head.
    backends
        Implementations of operators, best first; where none is given see `one_backend`.

    Raises
    ------
    InputError
        If rows make no sense, or are missing for something that the model needs.
    """
    check_rows(rows, "profile")
    rows = rows[rows["tp"] == tensor_parallel]
    if rows.empty:
        raise InputError(f"the profile has no rows of tensor_parallel {tensor_parallel}")
    rows = one_backend(make_rows(dict(rows)), backends)
    num_layers = ceil_div(model.num_layers, pipeline_stages)
    tokens = token_work(rows, model, num_layers, tensor_parallel)
    if pipeline_stages > 1:
        tokens = _with_sending(tokens, rows, model)
    groups = [Group.choose("tokens", tokens, ("step",), {"tokens": MOST_TOKEN_KNOTS})]
    head = head_work(rows, model, tensor_parallel)
    if head is not None:
        groups.append(Group.choose("head", head, (), {"head": MOST_KNOTS}))
    groups += _attention_groups(rows, num_layers, engine)
    return _fitted(name or f"{model.name}-profile", groups, rows, num_layers)


def _fitted(name: str, groups: list[Group], rows: pd.DataFrame, num_layers: int) -> FittedProfile:
    terms: dict[str, Any] = {}
    low, high, fit_error = {}, {}, {}
    for group in groups:
        fitted = group.fit(group.measured)
        terms |= fitted
        fit_error[group.name] = error_text(group, fitted)
        low[group.name], high[group.name] = band_of(fitted, group.measured, *_spread(group, rows, num_layers))
    return FittedProfile(
        cost=CostModel(name=name, **terms),
        band=Band(low, high),
        domain=Domain(largest_features(groups)),
        fit_error=fit_error,
        groups=tuple(groups),
    )


def _spread(group: Group, rows: pd.DataFrame, num_layers: int) -> tuple[FloatArray, FloatArray]:
    """Times of a group's batches at the 10th and 90th percentile of their repetitions, where measured."""
    operator = {"prefill_attention": "attn_prefill", "decode_attention": "attn_decode"}.get(group.name)
    measured = of_operator(rows, operator) if operator else rows.iloc[:0]
    if measured["t_p10_us"].notna().any():
        early, late = (served(attention_work(measured, num_layers, f"t_{p}_us")) for p in ("p10", "p90"))
        return early.times_ns, late.times_ns
    return group.measured.times_ns, group.measured.times_ns


def _with_sending(measured: Measurements, rows: pd.DataFrame, model: LlmModel) -> Measurements:
    sending_us = message_times(rows, "send_recv", measured.features.tokens, model, 2)
    return replace(measured, times_ns=measured.times_ns + NS_PER_US * sending_us)


def _attention_groups(rows: pd.DataFrame, num_layers: int, engine: Engine) -> list[Group]:
    found = {name: of_operator(rows, name) for name in ("attn_prefill", "attn_decode", "attn_mixed")}
    for name in ("attn_prefill", "attn_decode"):
        if found[name].empty:
            raise InputError(f"the profile has no rows of {name}; no batch can be priced without them")
    work = {name: served(attention_work(part, num_layers)) for name, part in found.items() if len(part)}
    prefill, decode = work["attn_prefill"], work["attn_decode"]
    measured = [term for term in PREFILL_TERMS if feature_column(term, prefill.features).any()]
    terms = {term: 1 if term in ONE_SLOPE else MOST_KNOTS for term in measured}
    groups = [
        Group.choose("prefill_attention", prefill, ("prefill_batch", "prefill_request"), terms),
        Group.choose(
            "decode_attention", decode, ("decode_batch", "decode_request"), {"decode_context": MOST_KNOTS}
        ),
    ]
    if engine == "unified" and "attn_mixed" in work:
        mixed = _beside(groups, work["attn_mixed"])
        terms = {"mixed_context": MOST_KNOTS}
        groups.append(Group.choose("mixed_attention", mixed, ("mixed_request",), terms))
    return groups


def _beside(groups: Sequence[Group], mixed: Measurements) -> Measurements:
    """Mixed batches, with what other groups say of them beside."""
    some = mixed.subset(np.arange(len(mixed.times_ns)) % ceil_div(len(mixed.times_ns), MOST_MIXED) == 0)
    priced = (price_terms(group.fit(group.measured), some.features) for group in groups)
    return replace(some, beside_ns=np.sum(list(priced), axis=0))
