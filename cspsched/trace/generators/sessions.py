"""Conversations of several turns: each prompt is the whole conversation so far and new text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from cspsched.trace.generators.arrays import Floats, Tokens
from cspsched.trace.generators.lengths import LengthDistribution, Lengths
from cspsched.trace.generators.record import Lognormal, Number, Record


class Sessions(Record):
    """Turns of a session; the first prompt and all outputs are the profile's lengths."""

    mean_turns: Annotated[Number, Field(ge=1, le=10_000)]
    """The number of turns is geometric, at least 1."""
    gap_s: Lognormal
    """Seconds from the arrival of a turn to that of the next: the answer is served and read meanwhile."""
    new_tokens: LengthDistribution
    """What a later prompt adds to the conversation."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Requests of sessions, one value each, shape (num_turns,), by session and turn."""

    arrivals_s: Floats
    prompts: Tokens
    outputs: Tokens
    session: Tokens
    """Number of the session, from 0."""

    def taken(self, positions: Tokens) -> Turns:
        """Some of them, in a given order."""
        return Turns(
            arrivals_s=self.arrivals_s[positions],
            prompts=self.prompts[positions],
            outputs=self.outputs[positions],
            session=self.session[positions],
        )


def draw_turns(sessions: Sessions, lengths: Lengths, rng: np.random.Generator, starts_s: Floats) -> Turns:
    """Turns of the sessions that start at some times.

    Turn k + 1 has the prompt of turn k, its output and new tokens.
    """
    num_turns = rng.geometric(1 / sessions.mean_turns, size=len(starts_s))
    first = np.concatenate(([0], np.cumsum(num_turns)[:-1]))
    session = np.repeat(np.arange(len(starts_s)), num_turns)
    gaps_s = np.exp(sessions.gap_s.mu + sessions.gap_s.sigma * rng.standard_normal(len(session)))
    gaps_s[first] = 0.0
    prompts, outputs = lengths.draw(rng, len(session))
    added = sessions.new_tokens.draw(rng, len(session))
    added[1:] += outputs[:-1]
    added[first] = prompts[first]
    return Turns(
        arrivals_s=starts_s[session] + _running(gaps_s, first, num_turns),
        prompts=_running(added, first, num_turns).astype(np.int64),
        outputs=outputs,
        session=session,
    )


def _running(values: Floats | Tokens, first: Tokens, num_turns: Tokens) -> Floats:
    """Sum of the values of a session up to each of its turns."""
    sums = np.cumsum(values, dtype=np.float64)
    return sums - np.repeat(sums[first] - values[first], num_turns)
