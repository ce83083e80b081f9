"""Lengths of prompts and outputs: quantile tables or mixtures of lognormals, joined by a Gaussian copula."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import ndtr

from cspsched.problem.request import MAX_TOKENS
from cspsched.trace.generators.arrays import Floats, Tokens
from cspsched.trace.generators.record import FitError, Number, Positive, Record

Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
_SUM_TOLERANCE = 1e-6


def nodes(count: int) -> Floats:
    """Probabilities at which a table of so many quantiles is taken, shape (count,), from 0 to 1.

    Cosine nodes, (1 - cos(pi k / (count - 1))) / 2: dense at both ends, where a length is far from the next.
    """
    return np.asarray((1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2)


class QuantileTable(Record):
    """Lengths by their quantiles, linear between them and rounded to whole tokens."""

    kind: Literal["quantiles"] = "quantiles"
    tokens: tuple[Count, ...] = Field(min_length=2, max_length=4096)
    """Quantiles at `nodes`, from the shortest to the longest."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if any(after < before for before, after in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("tokens falls, expected quantiles from the shortest to the longest")
        return self

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        """Independent lengths, shape (size,), in tokens."""
        quantiles = np.interp(rng.random(size), nodes(len(self.tokens)), self.tokens)
        return np.rint(quantiles).astype(np.int64)

    def cdf(self, tokens: Tokens) -> Floats:
        """Probability of at most so many tokens, shape of `tokens`."""
        # A half is no quantile, so a table that stands still jumps where it should.
        return np.asarray(np.interp(tokens + 0.5, self.tokens, nodes(len(self.tokens)), left=0.0, right=1.0))

    def scaled(self, factor: float) -> QuantileTable:
        """The same shape, all lengths times a factor."""
        return QuantileTable(tokens=tuple(_scaled(length, factor) for length in self.tokens))


class LengthMixture(Record):
    """Lengths by a mixture of lognormals, rounded to whole tokens and clipped."""

    kind: Literal["lognormal"] = "lognormal"
    weights: tuple[Positive, ...] = Field(min_length=1)
    """Sum 1."""
    mu: tuple[Number, ...]
    """Mean of the logarithm (natural, of tokens) of each component."""
    sigma: tuple[Positive, ...]
    """Standard deviation of the logarithm of each component."""
    clip: tuple[Count, Count]
    """Fewest and most tokens, inclusive."""

    @model_validator(mode="after")
    def _is_mixture(self) -> Self:
        if not len(self.weights) == len(self.mu) == len(self.sigma):
            raise ValueError(
                f"{len(self.weights)} weights, {len(self.mu)} mu and {len(self.sigma)} sigma, "
                "expected as many of each"
            )
        if abs(math.fsum(self.weights) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"weights sum to {math.fsum(self.weights)}, expected 1")
        if self.clip[0] > self.clip[1]:
            raise ValueError(f"clip is {list(self.clip)}, expected the fewest tokens first")
        return self

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        """Independent lengths, shape (size,), in tokens."""
        component = rng.choice(len(self.weights), size=size, p=self.weights)
        logarithm = rng.normal(np.array(self.mu)[component], np.array(self.sigma)[component])
        return np.clip(np.rint(np.exp(logarithm)), *self.clip).astype(np.int64)

    def cdf(self, tokens: Tokens) -> Floats:
        """Probability of at most so many tokens, shape of `tokens`."""
        logarithm = np.log(tokens + 0.5)
        parts = zip(self.weights, self.mu, self.sigma, strict=True)
        inside = sum(weight * ndtr((logarithm - mu) / sigma) for weight, mu, sigma in parts)
        low, high = self.clip
        return np.asarray(np.where(tokens >= high, 1.0, np.where(tokens < low, 0.0, inside)))

    def scaled(self, factor: float) -> LengthMixture:
        """The same shape, all lengths times a factor."""
        shift = math.log(factor)
        low, high = (_scaled(length, factor) for length in self.clip)
        return self.model_copy(update={"mu": tuple(mu + shift for mu in self.mu), "clip": (low, high)})


def _scaled(length: int, factor: float) -> int:
    return min(max(round(length * factor), 1), MAX_TOKENS)


LengthDistribution = Annotated[QuantileTable | LengthMixture, Field(discriminator="kind")]


class Lengths(Record):
    """Prompt and output tokens of a request."""

    prompt: LengthDistribution
    output: LengthDistribution
    rank_correlation: Annotated[Number, Field(ge=-1, le=1)] = 0.0
    """Spearman's, of prompt and output; the dependence is a Gaussian copula."""
    prompt_error: FitError | None = None
    output_error: FitError | None = None

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tokens, Tokens]:
        """Prompt and output tokens of independent requests, shape (size,) each."""
        prompts, outputs = self.prompt.draw(rng, size), self.output.draw(rng, size)
        if self.rank_correlation:
            outputs = _reordered(rng, prompts, outputs, self.rank_correlation)
        return prompts, outputs

    def scaled(self, factor: float) -> Lengths:
        """The same shapes, all lengths times a factor; fitted to nothing any more."""
        return Lengths(
            prompt=self.prompt.scaled(factor),
            output=self.output.scaled(factor),
            rank_correlation=self.rank_correlation,
        )


def _reordered(rng: np.random.Generator, prompts: Tokens, outputs: Tokens, rank_correlation: float) -> Tokens:
    """The same outputs in an order whose ranks go with those of the prompts as in a Gaussian copula.

    Prompts get normal scores in the order of their ranks, outputs are ranked by scores of correlation
    2 sin(pi r / 6) with them, whose Spearman correlation is r (Pearson 1907). So the distribution of the
    outputs stays what it is, point masses too (Iman and Conover 1982).
    """
    correlation = 2 * math.sin(math.pi * rank_correlation / 6)
    scores = np.empty(len(prompts))
    scores[np.argsort(prompts, kind="stable")] = np.sort(rng.standard_normal(len(prompts)))
    scores *= correlation
    scores += math.sqrt(1 - correlation**2) * rng.standard_normal(len(prompts))
    reordered = np.empty_like(outputs)
    reordered[np.argsort(scores, kind="stable")] = np.sort(outputs)
    return reordered
