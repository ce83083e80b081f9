"""Fits a cost model to whole batches that were timed, such as those of an engine's own log."""

from __future__ import annotations

import numpy as np

from cspsched.costs.estimator.band import GROUPS, Band, Domain
from cspsched.costs.estimator.profile import FittedProfile
from cspsched.costs.estimator.quality import Group, band_of, error_text, largest_features
from cspsched.costs.fit import Measurements, feature_column
from cspsched.errors import InputError
from cspsched.problem.cost import CostModel

LEAST_BATCHES = 30
"""With fewer, the terms could not be told apart."""
MOST_KNOTS = {"tokens": 4, "prefill_tokens": 1, "prefill_attention": 1, "decode_context": 1}
CONSTANTS = ("step", "prefill_batch", "prefill_request", "decode_request")


def fit_steps(measured: Measurements, name: str) -> FittedProfile:
    """Fit all terms together to timed batches.

    Raises
    ------
    InputError
        If there are too few batches, or all of them hold as many tokens.
    """
    features = measured.features
    if len(measured.times_ns) < LEAST_BATCHES or len(np.unique(features.tokens)) < 2:
        raise InputError(
            f"{len(measured.times_ns)} timed batches of {len(np.unique(features.tokens))} sizes are too few "
            f"to fit to, expected at least {LEAST_BATCHES} of several sizes; record for longer"
        )
    seen = {term: most for term, most in MOST_KNOTS.items() if feature_column(term, features).any()}
    group = Group.choose("steps", measured, CONSTANTS, seen)
    terms = group.fit(measured)
    low, high = band_of(terms, measured, measured.times_ns, measured.times_ns)
    constants_and_functions: dict[str, object] = dict(terms)
    return FittedProfile(
        cost=CostModel(name=name, **constants_and_functions),  # type: ignore[arg-type]
        band=Band(dict.fromkeys(GROUPS, low), dict.fromkeys(GROUPS, high)),
        domain=Domain(largest_features([group])),
        fit_error={"steps": error_text(group, terms)},
        groups=(group,),
    )
