"""Slow, plain twin of the best possible hits: every pair of requests, segment by segment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cspsched.problem.instance import Instance
from cspsched.problem.request import Request


@dataclass(frozen=True)
class PlainHits:
    """What each request finds in the prefix cache at best; nothing where the switches say so."""

    instance: Instance

    @property
    def caches(self) -> bool:
        """Whether there is a prefix cache."""
        return self.instance.switches.prefix_caching

    def found(self, request: Request) -> int:
        """First prompt tokens that are charged to a request that arrives earlier."""
        return max((self._common[request.request_id, other] for other in self._earlier(request)), default=0)

    def findable(self, request: Request) -> int:
        """First prompt tokens that some other request may compute for it."""
        common = max((self._common[request.request_id, other] for other in self._others(request)), default=0)
        return min(common, self._longest(request))

    def found_itself(self, request: Request) -> int:
        """Of what is charged to others, what it need not process."""
        return min(self.found(request), self._longest(request))

    def wait_ns(self, request: Request) -> int | None:
        """How long after its arrival it can find more at the earliest; None if never."""
        if self.findable(request) <= self.found(request):
            return None
        return min(
            other.arrival_ns - request.arrival_ns
            for other in self.instance.requests
            if other.request_id in self._others(request)
            and self._common[request.request_id, other.request_id] > self.found(request)
        )

    def _longest(self, request: Request) -> int:
        block = self.instance.limits.block_tokens
        return (request.prompt_tokens - 1) // block * block

    def _others(self, request: Request) -> list[str]:
        return self._sharing.get(request.request_id, [])

    def _earlier(self, request: Request) -> list[str]:
        place = self._places[request.request_id]
        return [other for other in self._others(request) if self._places[other] < place]

    @cached_property
    def _places(self) -> dict[str, int]:
        """Order of arrival; of those that arrive together the shortest first."""
        ordered = sorted(
            self.instance.requests, key=lambda r: (r.arrival_ns, r.prompt_tokens, r.output_tokens)
        )
        return {request.request_id: place for place, request in enumerate(ordered)}

    @cached_property
    def _common(self) -> dict[tuple[str, str], int]:
        """Tokens in the full blocks at the beginning of both, where there are any."""
        if not self.caches:
            return {}
        limits, found = self.instance.limits, {}
        for one in self.instance.requests:
            for other in self.instance.requests:
                blocks = min(_common_tokens(one, other) // limits.block_tokens, limits.kv_blocks)
                if one is not other and blocks:
                    found[one.request_id, other.request_id] = blocks * limits.block_tokens
        return found

    @cached_property
    def _sharing(self) -> dict[str, list[str]]:
        sharing: dict[str, list[str]] = {}
        for one, other in self._common:
            sharing.setdefault(one, []).append(other)
        return sharing


def _common_tokens(one: Request, other: Request) -> int:
    """Tokens that two prompts have in common from their beginning on."""
    total = 0
    for (stream, tokens), (other_stream, other_tokens) in zip(one.prefix, other.prefix, strict=False):
        if stream != other_stream:
            break
        total += min(tokens, other_tokens)
        if tokens != other_tokens:
            break
    return total
