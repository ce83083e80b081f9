"""What a policy reads of requests beside arrival and lengths, and whether the requests of a trace have it.

A setting states its need as `need` in the metadata of its field, a policy as a whole in its attribute
`needs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from cspsched.problem.request import Request
from cspsched.simulate import Policy


class RequestData(Enum):
    """What requests may have; the value says what is so where they have none, about requests of a trace."""

    PRIORITY = "no request of {} has a priority of its own"
    CLIENT = "no request of {} has a client_id of its own"
    LIMIT = "no request of {} has a TTFT or TPOT limit"
    SHARED_PREFIX = "no two requests of {} share a prefix"

    def is_in(self, requests: Sequence[Request]) -> bool:
        """Whether it tells any requests apart."""
        return _IS_IN[self](requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is read, at which value of a setting, and what happens where no request has it."""

    data: RequestData
    value: Any = True
    without: str


def unmet_needs(policy: Policy, requests: Sequence[Request]) -> Iterator[Need]:
    """Needs of a policy under its settings that the requests do not meet."""
    return (need for need in _needs(policy) if not need.data.is_in(requests))


def _needs(policy: Policy) -> Iterator[Need]:
    yield from getattr(policy, "needs", ())
    settings = getattr(policy, "settings", None)
    for setting in fields(settings) if settings is not None else ():
        need = setting.metadata.get("need")
        if need is not None and getattr(settings, setting.name) == need.value:
            yield need


def _differ(values: Iterable[object]) -> bool:
    return len(set(values)) > 1


def _share_a_prefix(requests: Sequence[Request]) -> bool:
    first_streams = Counter(request.prefix[0][0] for request in requests if request.prefix)
    return max(first_streams.values(), default=0) > 1


_IS_IN: dict[RequestData, Callable[[Sequence[Request]], bool]] = {
    RequestData.PRIORITY: lambda requests: _differ(request.priority for request in requests),
    RequestData.CLIENT: lambda requests: _differ(request.client_id for request in requests),
    RequestData.LIMIT: lambda requests: any(
        request.ttft_limit_ns or request.tpot_limit_ns for request in requests
    ),
    RequestData.SHARED_PREFIX: _share_a_prefix,
}
