"""Distributions of lengths fitted to a trace, and how far from its lengths they are."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from cspsched.problem.cost import IntArray
from cspsched.trace.generators.lengths import LengthMixture, Lengths, QuantileTable, nodes
from cspsched.trace.generators.record import FitError

NUM_QUANTILES = 256
_LEAST_SIGMA = 0.02


def fit_lengths(prompts: IntArray, outputs: IntArray, *, num_components: int | None = None) -> Lengths:
    """Prompt and output tokens, and their rank correlation.

    Parameters
    ----------
    prompts, outputs
        Tokens of each request, shape (num_requests,).
    num_components
        Components of a mixture of lognormals instead of a table of 256 quantiles.
    """
    prompt, output = (_distribution(lengths, num_components) for lengths in (prompts, outputs))
    constant = prompts.min() == prompts.max() or outputs.min() == outputs.max()
    return Lengths(
        prompt=prompt,
        output=output,
        rank_correlation=0.0 if constant else round(float(spearmanr(prompts, outputs).statistic), 4),
        prompt_error=length_error(prompt, prompts),
        output_error=length_error(output, outputs),
    )


def length_error(distribution: QuantileTable | LengthMixture, lengths: IntArray) -> FitError:
    """Exact distances of a distribution from lengths, on whole tokens; no sample is drawn."""
    tokens = np.arange(0, max(int(lengths.max()), _longest(distribution)) + 1)
    share = np.searchsorted(np.sort(lengths), tokens, side="right") / len(lengths)
    distance = np.abs(share - distribution.cdf(tokens))
    return FitError(
        ks=round(float(distance.max()), 6), w1_over_mean=round(float(distance.sum() / lengths.mean()), 6)
    )


def _longest(distribution: QuantileTable | LengthMixture) -> int:
    return distribution.tokens[-1] if isinstance(distribution, QuantileTable) else distribution.clip[1]


def _distribution(lengths: IntArray, num_components: int | None) -> QuantileTable | LengthMixture:
    if num_components is None:
        quantiles = np.quantile(lengths, nodes(NUM_QUANTILES), method="inverted_cdf")
        return QuantileTable(tokens=tuple(quantiles.astype(int).tolist()))
    return _mixture(lengths, num_components)


def _mixture(lengths: IntArray, num_components: int) -> LengthMixture:
    """Maximum likelihood on the logarithms, by expectation maximisation from one seeded start."""
    from sklearn.mixture import GaussianMixture

    num_components = min(num_components, len(np.unique(lengths)))
    model = GaussianMixture(num_components, random_state=0, reg_covar=_LEAST_SIGMA**2, max_iter=500)
    model.fit(np.log(lengths).reshape(-1, 1))
    weights = np.round(model.weights_, 6)
    weights[weights.argmax()] += 1 - weights.sum()
    return LengthMixture(
        weights=tuple(weights.tolist()),
        mu=tuple(np.round(model.means_.ravel(), 4).tolist()),
        sigma=tuple(np.round(np.sqrt(model.covariances_.ravel()), 4).tolist()),
        clip=(int(lengths.min()), int(lengths.max())),
    )
