"""What was measured: runs of one server, made of stages of load or of single requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cspsched.problem.request import Request
from cspsched.serving import Serving

METRICS = ("ttft", "tpot", "latency")
STATISTICS = ("mean", "p50", "p90", "p99")
PERCENTILES = (50, 90, 99)
GROWTH = 1.25
"""A stage is stable if the requests of its last quarter take at most so many times those of the second."""

Seconds = npt.NDArray[np.float64]
Figures = Mapping[str, Mapping[str, float]]
"""Seconds by metric and statistic; what is not known is left out."""


class Arrivals(StrEnum):
    """How the requests of a stage with a rate come."""

    SCALED = "scaled"
    """Exponential gaps, scaled so that the requests fill the stage; both loads of inference-perf."""
    POISSON = "poisson"
    """Exponential gaps."""
    EVEN = "even"
    """Equal gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Prompts and outputs of a stage, in tokens.

    Attributes
    ----------
    output, output_least
        Outputs are drawn evenly from least to output; all are as long as output where least is None.
    system_prompt, system_prompts
        Tokens that a prompt begins with, and how many different such texts there are; 0 for none.
    """

    prompt_mean: float
    prompt_least: int
    prompt_most: int
    output: int
    output_least: int | None = None
    system_prompt: int = 0
    system_prompts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A load and what clients measured under it.

    Attributes
    ----------
    rate_rps, concurrency
        Requests per second, or requests that are always in flight; one of them.
    duration_s
        None if it ends with its last request.
    prompts
        Different prompts that the client takes in turn; 0 if all are different, None if that is not said.
    peers
        By name of a peer, its relative error by metric and statistic.
    """

    name: str
    num_requests: int
    lengths: Lengths
    measured: Figures
    rate_rps: float | None = None
    concurrency: int | None = None
    duration_s: float | None = None
    prompts: int | None = None
    arrivals: Arrivals | None = None
    peers: Mapping[str, Figures] = field(default_factory=dict)

    @property
    def load(self) -> str:
        """The load in words."""
        return f"{self.concurrency} in flight" if self.rate_rps is None else f"{self.rate_rps:g}/s"


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """When each request got its tokens as the client sees it, seconds since the first arrival."""

    arrival: Seconds
    first_token: Seconds
    last_token: Seconds
    outputs: npt.NDArray[np.int64]

    def columns(self) -> dict[str, Seconds]:
        """Values of each metric; TPOT of the requests with more than one token."""
        several = self.outputs > 1
        decoding = (self.last_token - self.first_token)[several]
        return {
            "ttft": self.first_token - self.arrival,
            "tpot": decoding / (self.outputs[several] - 1),
            "latency": self.last_token - self.arrival,
        }

    def figures(self) -> Figures:
        """Mean and percentiles (linear interpolation) of each metric that there is."""
        return {
            metric: {
                "mean": float(values.mean()),
                **{f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES},
            }
            for metric, values in self.columns().items()
            if len(values)
        }

    @property
    def is_stable(self) -> bool:
        """Whether latency does not grow from the second quarter of the arrivals to the last."""
        latency = (self.last_token - self.arrival)[np.argsort(self.arrival, kind="stable")]
        quarter = max(len(latency) // 4, 1)
        second, last = latency[quarter : 2 * quarter], latency[-quarter:]
        return len(second) == 0 or float(last.mean()) <= GROWTH * float(second.mean())

    @classmethod
    def joined(cls, parts: Sequence[Times], order: npt.NDArray[np.int64]) -> Times:
        """The requests of several, the first in `order` first."""
        names = [field.name for field in fields(cls)]
        whole = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names}
        return cls(**whole)

    def part(self, first: int, end: int) -> Times:
        """The same of some requests."""
        return Times(
            arrival=self.arrival[first:end],
            first_token=self.first_token[first:end],
            last_token=self.last_token[first:end],
            outputs=self.outputs[first:end],
        )


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One server under one load after another, or with the times of single requests.

    Attributes
    ----------
    serving
        The deployment as far as the file says.
    policy
        None if the file does not say.
    stages
        In their order; empty if there are single requests.
    requests, times
        The requests with their arrivals, and what was measured of each.
    has_two_clocks
        Whether client and engine each have a clock, and the client's was set by its quickest request.
    frontend
        As `load_frontend` takes it, if the file names one.
    """

    name: str
    file: Path
    serving: Serving
    policy: str | None = None
    stages: tuple[Stage, ...] = ()
    requests: tuple[Request, ...] = ()
    times: Times | None = None
    has_two_clocks: bool = False
    frontend: str | None = None
    peers: Mapping[str, Figures] = field(default_factory=dict)
