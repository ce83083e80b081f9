"""Seeded traces: lengths from mixtures of lognormals, arrivals from a Gamma renewal process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cspsched.errors import UsageError
from cspsched.problem.request import Request
from cspsched.trace.cells import MAX_ARRIVAL_S
from cspsched.trace.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NS_PER_US = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMixture:
    """Tokens: a mixture of lognormals, rounded to whole tokens and clipped."""

    weights: tuple[float, ...]
    """Sum 1."""
    mu: tuple[float, ...]
    """Mean of the logarithm (natural, of tokens) of each component."""
    sigma: tuple[float, ...]
    """Standard deviation of the logarithm of each component."""
    clip: tuple[int, int]
    """Fewest and most tokens, inclusive."""

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Draw independent lengths, shape (size,), in tokens."""
        component = rng.choice(len(self.weights), size=size, p=self.weights)
        logarithm = rng.normal(np.array(self.mu)[component], np.array(self.sigma)[component])
        return np.clip(np.rint(np.exp(logarithm)), *self.clip).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a kind of traffic looks like, apart from its rate. Prompt and output are independent."""

    name: str
    prompt: LengthMixture
    output: LengthMixture
    interarrival_cv: float
    """Standard deviation over mean of the gaps between arrivals: 1 is Poisson, more is bursty."""
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.interarrival_cv < math.inf:
            raise UsageError(f"interarrival_cv is {self.interarrival_cv}, expected a finite number above 0")


CHAT = Profile(
    name="chat",
    prompt=LengthMixture(
        weights=(0.041, 0.368, 0.179, 0.412),
        mu=(4.497, 5.811, 7.981, 6.996),
        sigma=(1.353, 0.349, 0.394, 0.102),
        clip=(2, 14050),
    ),
    output=LengthMixture(
        weights=(0.138, 0.536, 0.054, 0.272),
        mu=(4.222, 4.603, 6.228, 6.002),
        sigma=(0.956, 0.408, 0.138, 0.045),
        clip=(7, 1000),
    ),
    interarrival_cv=1.07,
    source=(
        "fitted to the conversation trace of Azure LLM 2023 (AzureLLMInferenceTrace_conv.csv, CC-BY-4.0); "
        "Kolmogorov-Smirnov distance 0.116 (prompt), 0.025 (output); gaps Gamma with shape 0.871"
    ),
)

TINY = Profile(
    name="tiny",
    prompt=LengthMixture(weights=(1.0,), mu=(2.7,), sigma=(0.7,), clip=(4, 40)),
    output=LengthMixture(weights=(1.0,), mu=(1.6,), sigma=(0.6,), clip=(2, 12)),
    interarrival_cv=1.0,
    source="made up: small enough to be solved to optimality, uneven enough that the order matters",
)


def generate_trace(profile: Profile, *, num_requests: int, rate_per_s: float, seed: int) -> Trace:
    """Draw a trace; the same arguments give the same requests.

    Parameters
    ----------
    profile : Profile
        Lengths and burstiness.
    num_requests : int
        At least 1; they are named r0, r1, ...
    rate_per_s : float
        Mean arrivals per second.
    seed : int
        At least 0.

    Returns
    -------
    Trace
        The first request arrives at 0; arrivals are whole microseconds.

    Raises
    ------
    UsageError
        If a number makes no sense, or the trace would span more than 9e9 seconds.
    """
    _check_arguments(num_requests, rate_per_s, seed)
    rng = np.random.default_rng(seed)
    arrivals_us = _draw_arrivals_us(rng, profile.interarrival_cv, num_requests, rate_per_s)
    prompts = profile.prompt.draw(rng, num_requests)
    outputs = profile.output.draw(rng, num_requests)
    columns = zip(arrivals_us.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return Trace(
        name=profile.name,
        format="generated",
        requests=tuple(_request(number, *row) for number, row in enumerate(columns)),
    )


def _draw_arrivals_us(
    rng: np.random.Generator, cv: float, num_requests: int, rate_per_s: float
) -> NDArray[np.int64]:
    """Microseconds, shape (num_requests,): gaps are Gamma with mean 1 / rate and the given variation.

    Whole microseconds, so that the last bit of a platform's logarithm does not show in the file.
    """
    gaps_s = rng.gamma(shape=cv**-2, scale=cv**2 / rate_per_s, size=num_requests - 1)
    arrivals_s = np.concatenate(([0.0], np.cumsum(gaps_s)))
    if not arrivals_s[-1] <= MAX_ARRIVAL_S:
        raise UsageError(
            f"rate_per_s is {rate_per_s}: the trace spans over {MAX_ARRIVAL_S} s, expected a higher rate"
        )
    return np.rint(arrivals_s * 1e6).astype(np.int64)


def _request(number: int, arrival_us: int, prompt_tokens: int, output_tokens: int) -> Request:
    return Request(
        request_id=f"r{number}",
        arrival_ns=arrival_us * _NS_PER_US,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def _check_arguments(num_requests: int, rate_per_s: float, seed: int) -> None:
    if num_requests < 1:
        raise UsageError(f"num_requests is {num_requests}, expected at least 1")
    if not 0 < rate_per_s < math.inf:
        raise UsageError(f"rate_per_s is {rate_per_s}, expected a finite rate above 0")
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected at least 0")
