"""The requests of a stage: when they come, how long they are, which of them share a prompt."""

from __future__ import annotations

import numpy as np

from cspsched.problem.cost import IntArray
from cspsched.problem.request import Request
from cspsched.studies.validation.nouns import Arrivals, Stage
from cspsched.units import NS_PER_S

CLIENT_PROMPTS = 100
"""Different prompts of inference-perf's shared-prefix load where its configuration names no number: 10 groups
of 10, shuffled once and taken in turn."""
LENGTHS = 100
"""Different lengths of prompts where all prompts are different."""


def num_prompts(stage: Stage, asked: int | None) -> int:
    """Different prompts that a client takes in turn; 0 if every request has its own."""
    if asked is not None:
        return asked
    if stage.prompts is not None:
        return stage.prompts
    return CLIENT_PROMPTS if stage.lengths.system_prompt else 0


def offsets_ns(stage: Stage, arrivals: Arrivals | None, rng: np.random.Generator) -> IntArray:
    """Arrivals of a stage with a rate since its begin, rising, shape (num_requests,)."""
    count, rate = stage.num_requests, stage.rate_rps or 1.0
    kind = arrivals or stage.arrivals or (Arrivals.POISSON if stage.duration_s is None else Arrivals.SCALED)
    if kind is Arrivals.EVEN:
        seconds = np.arange(count) / rate
    else:
        seconds = np.cumsum(rng.exponential(1 / rate, count))
    if kind is Arrivals.SCALED:
        seconds *= (count / rate if stage.duration_s is None else stage.duration_s) / seconds[-1]
    return np.rint(seconds * NS_PER_S).astype(np.int64)


def prompt_lengths(stage: Stage, prompts: int, rng: np.random.Generator) -> IntArray:
    """Lengths of the different prompts: spread evenly from least to most with the mean that was measured."""
    lengths = stage.lengths
    count = prompts or min(LENGTHS, stage.num_requests)
    even = np.linspace(lengths.prompt_least, lengths.prompt_most, count)
    shifted = np.rint(even + lengths.prompt_mean - even.mean()).astype(np.int64)
    return rng.permutation(np.maximum(shifted, 1))


def requests_of(stage: Stage, prompts: int, name: str, rng: np.random.Generator) -> list[Request]:
    """Requests of a stage without arrivals.

    A prompt begins with one of the system prompts; the rest is its own text, the same whenever it is sent.
    """
    lengths, tokens = stage.lengths, prompt_lengths(stage, prompts, rng).tolist()
    outputs = np.full(stage.num_requests, lengths.output)
    if lengths.output_least is not None:
        outputs = rng.integers(lengths.output_least, lengths.output, stage.num_requests, endpoint=True)
    found = []
    for number in range(stage.num_requests):
        kind = number % len(tokens)
        found.append(
            Request(
                request_id=f"{name}-{number}",
                arrival_ns=0,
                prompt_tokens=tokens[kind],
                output_tokens=int(outputs[number]),
                prefix=_prefix(stage, kind, tokens[kind], shared=bool(prompts)),
            )
        )
    return found


def _prefix(stage: Stage, kind: int, tokens: int, *, shared: bool) -> tuple[tuple[str, int], ...]:
    system = min(stage.lengths.system_prompt, tokens)
    groups = max(stage.lengths.system_prompts, 1)
    segments = [(f"system {kind % groups}", system)] if system else []
    if shared and tokens > system:
        segments.append((f"prompt {kind} of {stage.lengths.prompt_mean:g}", tokens - system))
    return tuple(segments)
