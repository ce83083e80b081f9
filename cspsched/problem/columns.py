"""Requests as columns, and the requests themselves as views that are made when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypedDict, Unpack, cast, overload

import numpy as np
import numpy.typing as npt

from cspsched.problem.cost import IntArray
from cspsched.problem.request import MAX_ARRIVAL_NS, MAX_TOKENS, OPTIONAL_NUMBERS, Request

Prefix = tuple[tuple[str, int], ...]
Positions = npt.NDArray[np.intp]
NONE = 0
"""In a column of `OPTIONAL_NUMBERS`: the request has none."""
_ROWS_AT_ONCE = 65_536


class OptionalFields(TypedDict, total=False):
    """Columns that many traces do not have, one value of each request."""

    priority: Sequence[int]
    client_id: Sequence[str]
    ttft_limit_ns: Sequence[int | None]
    tpot_limit_ns: Sequence[int | None]
    max_tokens: Sequence[int | None]
    predicted_tokens: Sequence[int | None]
    session_id: Sequence[str]
    think_time_ns: Sequence[int]
    prefix: Sequence[Prefix]


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestColumns:
    """The fields of `Request`, one column each, shape (num_requests,); int64 where they are numbers.

    Attributes
    ----------
    client_id, session_id, prefix, think_time_ns
        None if no request has any.
    ttft_limit_ns, tpot_limit_ns, max_tokens, predicted_tokens
        `NONE` of who has none; None if no request has any.

    Raises
    ------
    TraceError
        If a value makes no sense, in the words of `Request`.
    """

    request_id: Sequence[str]
    arrival_ns: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    priority: IntArray
    client_id: Sequence[str] | None = None
    ttft_limit_ns: IntArray | None = None
    tpot_limit_ns: IntArray | None = None
    max_tokens: IntArray | None = None
    predicted_tokens: IntArray | None = None
    session_id: Sequence[str] | None = None
    think_time_ns: IntArray | None = None
    prefix: Sequence[Prefix] | None = None

    def __post_init__(self) -> None:
        wrong = (self.prompt_tokens < 1) | (self.prompt_tokens > MAX_TOKENS)
        wrong |= (self.output_tokens < 1) | (self.output_tokens > MAX_TOKENS)
        wrong |= (self.arrival_ns < 0) | (self.arrival_ns > MAX_ARRIVAL_NS)
        for column in self._optional_numbers.values():
            if column is not None:
                wrong |= column < NONE
        for declared in (self.max_tokens, self.predicted_tokens):
            if declared is not None:
                wrong |= declared > MAX_TOKENS
        if self.think_time_ns is not None:
            wrong |= (self.think_time_ns < 0) | (self.think_time_ns > MAX_ARRIVAL_NS)
        if self.max_tokens is not None:
            wrong |= (self.max_tokens != NONE) & (self.max_tokens < self.output_tokens)
        for i in np.flatnonzero(wrong).tolist():
            self.request(i)
        if self.prefix is not None:
            for i, (prefix, prompt) in enumerate(zip(self.prefix, self.prompt_tokens.tolist(), strict=True)):
                tokens = [length for _, length in prefix]
                if tokens and (min(tokens) < 1 or sum(tokens) > prompt):
                    self.request(i)

    @classmethod
    def of(cls, requests: Sequence[Request]) -> RequestColumns:
        """Columns of requests."""
        optional = {
            name: [getattr(request, name) for request in requests] for name in OptionalFields.__annotations__
        }
        return cls.of_fields(
            request_id=[request.request_id for request in requests],
            arrival_ns=np.array([request.arrival_ns for request in requests], dtype=np.int64),
            prompt_tokens=np.array([request.prompt_tokens for request in requests], dtype=np.int64),
            output_tokens=np.array([request.output_tokens for request in requests], dtype=np.int64),
            **cast(OptionalFields, optional),
        )

    @classmethod
    def of_fields(
        cls,
        *,
        request_id: Sequence[str],
        arrival_ns: IntArray,
        prompt_tokens: IntArray,
        output_tokens: IntArray,
        **given: Unpack[OptionalFields],
    ) -> RequestColumns:
        """Columns from the fields of requests, without those that are left out."""
        priority = given.get("priority", ())
        return cls(
            request_id=request_id,
            arrival_ns=arrival_ns,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            priority=np.array(priority, dtype=np.int64)
            if len(priority)
            else np.zeros(len(arrival_ns), dtype=np.int64),
            client_id=_if_any(given.get("client_id", ())),
            ttft_limit_ns=_numbers(given.get("ttft_limit_ns", ())),
            tpot_limit_ns=_numbers(given.get("tpot_limit_ns", ())),
            max_tokens=_numbers(given.get("max_tokens", ())),
            predicted_tokens=_numbers(given.get("predicted_tokens", ())),
            session_id=_if_any(given.get("session_id", ())),
            think_time_ns=_numbers(given.get("think_time_ns", ())),
            prefix=_if_any(given.get("prefix", ())),
        )

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def _optional_numbers(self) -> dict[str, IntArray | None]:
        return {name: getattr(self, name) for name in OPTIONAL_NUMBERS}

    @property
    def peak_kv_tokens(self) -> IntArray:
        """I + O - 1 of every request."""
        return self.prompt_tokens + self.output_tokens - 1

    @cached_property
    def repeated_name(self) -> str | None:
        """The first name that another request has already, None if all are unique."""
        if len(set(self.request_id)) == len(self):
            return None
        seen: set[str] = set()
        for name in self.request_id:
            if name in seen:
                return name
            seen.add(name)
        return None

    def request(self, i: int) -> Request:
        """The request at a position, made anew."""
        given = self._optional_numbers.items()
        numbers = {name: int(column[i]) for name, column in given if column is not None}
        return Request(
            request_id=self.request_id[i],
            arrival_ns=int(self.arrival_ns[i]),
            prompt_tokens=int(self.prompt_tokens[i]),
            output_tokens=int(self.output_tokens[i]),
            priority=int(self.priority[i]),
            client_id="" if self.client_id is None else self.client_id[i],
            prefix=() if self.prefix is None else self.prefix[i],
            session_id="" if self.session_id is None else self.session_id[i],
            think_time_ns=0 if self.think_time_ns is None else int(self.think_time_ns[i]),
            **{name: number for name, number in numbers.items() if number != NONE},
        )

    def taken(self, positions: Positions | slice) -> RequestColumns:
        """Columns of some of the requests, each named once at most."""
        taken = RequestColumns(
            **{one.name: _taken(getattr(self, one.name), positions) for one in fields(self)}
        )
        return taken._knowing_names_of(self)

    def earlier(self, ns: int) -> RequestColumns:
        """The same requests, each arriving so much earlier."""
        return replace(self, arrival_ns=self.arrival_ns - ns)._knowing_names_of(self)

    def arriving(self, arrival_ns: IntArray) -> RequestColumns:
        """The same requests with other arrivals, turns of no session."""
        changed = replace(self, arrival_ns=arrival_ns, session_id=None, think_time_ns=None)
        return changed._knowing_names_of(self)

    def with_limits(self, *, ttft_limit_ns: int | None, tpot_limit_ns: int | None) -> RequestColumns:
        """The same requests with SLO limits where they have none of their own."""
        given = {"ttft_limit_ns": ttft_limit_ns, "tpot_limit_ns": tpot_limit_ns}
        changed: dict[str, Any] = {
            name: _filled(getattr(self, name), limit_ns, len(self))
            for name, limit_ns in given.items()
            if limit_ns is not None
        }
        return replace(self, **changed)._knowing_names_of(self) if changed else self

    def _knowing_names_of(self, other: RequestColumns) -> RequestColumns:
        """Mark the names as unique if those of another set, which holds them all, are known to be."""
        if other.__dict__.get("repeated_name", "") is None:
            self.__dict__["repeated_name"] = None
        return self

    def canonical_json(self) -> Iterator[str]:
        """The list of `Request.to_json` of all requests as canonical JSON, in pieces."""
        extra = OptionalFields.__annotations__.keys() - {"priority"}
        has_extra = any(getattr(self, name) is not None for name in extra)
        for first in range(0, len(self), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            if has_extra:
                rows = (canonical(self.request(i).to_json()) for i in range(len(self))[some])
            else:
                plain = (self.arrival_ns, self.output_tokens, self.priority, self.prompt_tokens)
                names = map(json.dumps, self.request_id[some])
                numbers = zip(*(column[some].tolist() for column in plain), names, strict=True)
                rows = (
                    f'{{"arrival_ns":{arrival},"output_tokens":{output},"priority":{priority},'
                    f'"prompt_tokens":{prompt},"request_id":{name}}}'
                    for arrival, output, priority, prompt, name in numbers
                )
            yield ("," if first else "[") + ",".join(rows)
        yield "]" if len(self) else "[]"


class Requests(Sequence[Request]):
    """Requests that are columns; each is made when it is asked for, all of them once when all are.

    Equal to a tuple of the same requests, and hashed like it.
    """

    __slots__ = ("_made", "columns")

    def __init__(self, columns: RequestColumns) -> None:
        self.columns = columns
        self._made: tuple[Request, ...] | None = None

    def __add__(self, others: tuple[Request, ...]) -> tuple[Request, ...]:
        return self._all() + others

    def _all(self) -> tuple[Request, ...]:
        if self._made is None:
            self._made = tuple(map(self.columns.request, range(len(self))))
        return self._made

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Requests: ...

    def __getitem__(self, index: int | slice) -> Request | Requests:
        if isinstance(index, slice):
            return Requests(self.columns.taken(index))
        return self._made[index] if self._made is not None else self.columns.request(index)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Requests):
            return self is other or self._all() == other._all()
        return self._all() == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[type[Requests], tuple[RequestColumns]]:
        return Requests, (self.columns,)


def columns_of(requests: Sequence[Request]) -> RequestColumns:
    """Columns of requests, those that they are views of if they are views."""
    return requests.columns if isinstance(requests, Requests) else RequestColumns.of(requests)


def canonical(data: Any) -> str:
    """JSON with sorted keys and no blanks."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _if_any(values: Sequence[Any]) -> Sequence[Any] | None:
    return values if any(values) else None


def _numbers(values: Sequence[int | None]) -> IntArray | None:
    if all(value is None for value in values):
        return None
    return np.array([value or NONE for value in values], dtype=np.int64)


def _filled(limits_ns: IntArray | None, limit_ns: int, count: int) -> IntArray:
    if limits_ns is None:
        return np.full(count, limit_ns, dtype=np.int64)
    return np.where(limits_ns == NONE, limit_ns, limits_ns)


def _taken(values: Any, positions: Positions | slice) -> Any:
    """Some of a column, of which there may be none."""
    if values is None or isinstance(values, np.ndarray) or isinstance(positions, slice):
        return None if values is None else values[positions]
    return [values[i] for i in positions.tolist()]
