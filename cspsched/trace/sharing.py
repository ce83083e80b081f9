"""What prompts share with the prompts before them: what a prefix cache without limits would hit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from cspsched.problem.columns import Prefix
from cspsched.units import ns_to_seconds

_Place = tuple[int, int, str]
"""Stream of the tree: its parent there, the tokens of the parent behind which it begins, its name."""
_ROOT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixStatistics:
    """Shared prefixes; a prompt shares what it has in common with the earlier prompt that has most of it."""

    shared_tokens: int
    """Sum over the requests."""
    shared_share: float
    """Of all prompt tokens: the hit rate of a cache that never forgets, token by token."""
    num_sharing: int
    """Requests that share at least a token."""
    shared_tokens_mean: float | None
    """Over the requests that share; None if none does."""
    reuse_s_p50: float | None
    """Median over the requests that share: time since all that they share was last used."""


@dataclass(slots=True)
class _Stream:
    """A stream of text at its place: how far prompts have come in it, and when last."""

    number: int
    reached: list[tuple[int, int]] = field(default_factory=list)
    """(tokens, ns): fewer tokens later; who came as far or further at a later time stands instead."""

    @property
    def known_tokens(self) -> int:
        """Tokens that some prompt has had."""
        return self.reached[0][0] if self.reached else 0

    def last_use_ns(self, tokens: int) -> int:
        """When a prompt last had at least so many tokens."""
        return next(time_ns for reached, time_ns in reversed(self.reached) if reached >= tokens)

    def use(self, tokens: int, time_ns: int) -> None:
        """Mark the first tokens as used."""
        while self.reached and self.reached[-1][0] <= tokens:
            self.reached.pop()
        self.reached.append((tokens, time_ns))


def prefix_statistics(
    arrivals_ns: Sequence[int], prompts: Sequence[int], prefixes: Sequence[Prefix]
) -> PrefixStatistics:
    """Statistics of the prefixes of requests in the order of their arrival."""
    uses = list(shared_with_earlier(arrivals_ns, prefixes))
    shared = [tokens for tokens, _ in uses]
    sharing = [tokens for tokens in shared if tokens]
    reuse_ns = [
        arrival_ns - last_ns
        for arrival_ns, (tokens, last_ns) in zip(arrivals_ns, uses, strict=True)
        if tokens
    ]
    return PrefixStatistics(
        shared_tokens=sum(shared),
        shared_share=sum(shared) / sum(prompts),
        num_sharing=len(sharing),
        shared_tokens_mean=fmean(sharing) if sharing else None,
        reuse_s_p50=ns_to_seconds(median(reuse_ns)) if reuse_ns else None,
    )


def shared_with_earlier(arrivals_ns: Sequence[int], prefixes: Sequence[Prefix]) -> Iterator[tuple[int, int]]:
    """Tokens that each request shares with those before it, and when all of them were last used.

    Requests are in the order of their arrival; the time of who shares nothing is 0.
    """
    streams: dict[_Place, _Stream] = {}
    for arrival_ns, prefix in zip(arrivals_ns, prefixes, strict=True):
        yield _add(streams, prefix, arrival_ns)


def _add(streams: dict[_Place, _Stream], prefix: Prefix, arrival_ns: int) -> tuple[int, int]:
    """Tokens that a prefix shares with those before it, and when all of them were last used; it is added."""
    parent, behind = _ROOT, 0
    num_shared, last_ns, goes_on = 0, 0, True
    for name, tokens in prefix:
        stream = streams.setdefault((parent, behind, name), _Stream(len(streams)))
        known = min(tokens, stream.known_tokens) if goes_on else 0
        if known:
            num_shared += known
            last_ns = stream.last_use_ns(known)
        goes_on = known == tokens
        stream.use(tokens, arrival_ns)
        parent, behind = stream.number, tokens
    return num_shared, last_ns
