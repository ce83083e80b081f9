"""What a policy takes for the output of a request before it is generated: its limit, or a prediction.

Only policies look at these. The optimum, the bounds and the referee go by the true output.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cspsched.errors import UsageError
from cspsched.policies.settings import require_at_least
from cspsched.problem.columns import NONE, RequestColumns
from cspsched.problem.cost import IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.request import MAX_TOKENS

TRUE_LENGTHS = "true output lengths"
MOST_SIGMA = 10
"""One factor in three is then beyond e^10 or below e^-10."""


class Prediction(StrEnum):
    """Where the output lengths that a policy ranks by come from."""

    EXACT = "exact"
    """The true ones: the policy is clairvoyant."""
    COLUMN = "column"
    """`predicted_tokens` of the trace."""
    NOISY = "noisy"
    """The true ones times a lognormal factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSettings:
    """How a policy knows output lengths."""

    prediction: Prediction = Prediction.EXACT
    """Where output lengths are known from: exact (clairvoyant), column (predicted_tokens of the trace) or
    noisy (the true one times a lognormal factor of median 1)."""
    prediction_sigma: float = 0.5
    """Of noisy: standard deviation of the natural logarithm of the factor."""
    prediction_seed: int = 0
    """Of noisy: seed of the factors, which are drawn in the order of the requests."""

    def require_prediction(self, policy: str) -> None:
        """Refuse values that make no sense.

        Raises
        ------
        UsageError
            If the seed is negative, or sigma out of range.
        """
        require_at_least(self, 0, "prediction_seed", policy=policy)
        if not 0 <= self.prediction_sigma <= MOST_SIGMA:
            raise UsageError(
                f"policy {policy!r}: prediction_sigma is {self.prediction_sigma}, expected 0 to {MOST_SIGMA}"
            )

    @property
    def stated(self) -> str:
        """What the policy takes for outputs, in words."""
        if self.prediction is Prediction.EXACT:
            return TRUE_LENGTHS
        if self.prediction is Prediction.COLUMN:
            return "predicted_tokens of the trace"
        return (
            f"{TRUE_LENGTHS} times a lognormal factor (sigma {self.prediction_sigma}, "
            f"seed {self.prediction_seed})"
        )


def predicted_tokens(instance: Instance, settings: PredictionSettings, policy: str) -> IntArray:
    """Return what is predicted of the outputs, shape (num_requests,).

    What is not the true output is at least a token, and at most what the device and max_model_len leave to a
    request that runs alone: each fits, or it was rejected.

    Raises
    ------
    UsageError
        If the column is asked for and a request has no prediction.
    """
    columns, limits = instance.columns, instance.limits
    if settings.prediction is Prediction.EXACT:
        return columns.output_tokens
    if settings.prediction is Prediction.NOISY:
        rng = np.random.default_rng(settings.prediction_seed)
        factor = np.exp(settings.prediction_sigma * rng.standard_normal(len(columns)))
        predicted = np.rint(np.minimum(columns.output_tokens * factor, MAX_TOKENS)).astype(np.int64)
    else:
        predicted = _column(columns, policy)
    longest = min(limits.kv_tokens, limits.max_model_len or limits.kv_tokens)
    return np.maximum(np.minimum(predicted, longest + 1 - columns.prompt_tokens), 1)


def _column(columns: RequestColumns, policy: str) -> IntArray:
    """The predictions of the trace."""
    given = columns.predicted_tokens
    missing = [0] if given is None else np.flatnonzero(given == NONE).tolist()
    if given is None or missing:
        raise UsageError(
            f"policy {policy!r}: prediction=column, and request {columns.request_id[missing[0]]!r} has no "
            "predicted_tokens; add the column to the trace, or choose prediction=exact or prediction=noisy"
        )
    return given


def declared_tokens(instance: Instance) -> IntArray:
    """Return the limits that requests declare, shape (num_requests,).

    Where one declares none it is the true output. A limit beyond max_model_len is cut to what an engine of
    that length generates at most.
    """
    columns, longest = instance.columns, instance.limits.max_model_len
    if columns.max_tokens is None:
        return columns.output_tokens
    declared = np.where(columns.max_tokens == NONE, columns.output_tokens, columns.max_tokens)
    if longest is not None:
        declared = np.minimum(declared, longest + 1 - columns.prompt_tokens)
    return np.maximum(declared, columns.output_tokens)
