"""A request: one row of a trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cspsched.errors import InputError, TraceError
from cspsched.problem.json_io import require_int, require_keys, require_text

# Sums and squares of these still fit into 64 bits.
MAX_TOKENS = 1_000_000_000
MAX_ARRIVAL_NS = 9 * 10**18
OPTIONAL_NUMBERS = ("ttft_limit_ns", "tpot_limit_ns", "max_tokens", "predicted_tokens")
"""Fields of a request that are at least 1 where it has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row of a trace. Times are integer nanoseconds since the first arrival."""

    request_id: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    """Smaller is served first, by policies that look at it."""
    client_id: str = ""
    """Whose request it is, for policies that are fair to clients."""
    ttft_limit_ns: int | None = None
    """SLO: longest time to the first token, if there is a limit."""
    tpot_limit_ns: int | None = None
    """SLO: longest time per output token after the first, if there is a limit."""
    prefix: tuple[tuple[str, int], ...] = ()
    """What the prompt begins with, as (stream, tokens) segments: the first tokens of a named stream of text.
    Prompts share their tokens as far as their segments agree; the rest is the request's own."""
    max_tokens: int | None = None
    """Limit of the output that the caller declares, for policies that reserve memory by it."""
    predicted_tokens: int | None = None
    """Predicted output, for policies that rank by it."""
    session_id: str = ""
    """Conversation of which it is a turn, in the order of the file; empty if of none."""
    think_time_ns: int = 0
    """From the last token of the turn before to its arrival, where loops are closed."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise TraceError(
                f"request {self.request_id!r}: prompt_tokens is {self.prompt_tokens}, expected at least 1"
            )
        if self.output_tokens < 1:
            raise TraceError(
                f"request {self.request_id!r}: output_tokens is {self.output_tokens}, expected at least 1"
            )
        if self.arrival_ns < 0:
            raise TraceError(f"request {self.request_id!r}: arrival_ns is {self.arrival_ns}, expected >= 0")
        for name in OPTIONAL_NUMBERS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TraceError(f"request {self.request_id!r}: {name} is {value}, expected at least 1")
        if self.max_tokens is not None and self.max_tokens < self.output_tokens:
            raise TraceError(
                f"request {self.request_id!r}: max_tokens is {self.max_tokens}, expected at least its "
                f"output_tokens, {self.output_tokens}"
            )
        if not 0 <= self.think_time_ns <= MAX_ARRIVAL_NS:
            raise TraceError(
                f"request {self.request_id!r}: think_time_ns is {self.think_time_ns}, "
                f"expected 0 to {MAX_ARRIVAL_NS}"
            )
        shared = sum(tokens for _, tokens in self.prefix)
        if any(tokens < 1 for _, tokens in self.prefix) or shared > self.prompt_tokens:
            raise TraceError(
                f"request {self.request_id!r}: prefix has segments of {[t for _, t in self.prefix]} tokens, "
                f"expected at least 1 each and together at most the prompt, {self.prompt_tokens}"
            )
        for name, largest in (
            ("prompt_tokens", MAX_TOKENS),
            ("output_tokens", MAX_TOKENS),
            ("arrival_ns", MAX_ARRIVAL_NS),
            ("max_tokens", MAX_TOKENS),
            ("predicted_tokens", MAX_TOKENS),
        ):
            value = getattr(self, name)
            if value is not None and value > largest:
                raise TraceError(
                    f"request {self.request_id!r}: {name} is {value}, expected at most {largest}"
                )

    @property
    def peak_kv_tokens(self) -> int:
        """KV entries held when the last token is generated: I + O - 1, for that token is never processed."""
        return self.prompt_tokens + self.output_tokens - 1

    def generating(self, output_tokens: int) -> Request:
        """The same request with another output, which its declared limit is made to allow."""
        limit = None if self.max_tokens is None else max(self.max_tokens, output_tokens)
        return replace(self, output_tokens=output_tokens, max_tokens=limit)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what many traces do not have only where there is any."""
        extra = {
            "client_id": self.client_id,
            **{name: getattr(self, name) for name in OPTIONAL_NUMBERS},
            "prefix": [list(segment) for segment in self.prefix],
            "session_id": self.session_id,
            "think_time_ns": self.think_time_ns,
        }
        return {
            "request_id": self.request_id,
            "arrival_ns": self.arrival_ns,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "priority": self.priority,
            **{name: value for name, value in extra.items() if value},
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Request:
        """Read what `to_json` wrote."""
        numbers = ("arrival_ns", "prompt_tokens", "output_tokens", "priority")
        optional = (*OPTIONAL_NUMBERS, "think_time_ns", "client_id", "session_id", "prefix")
        require_keys(data, where, required=("request_id", *numbers), optional=optional)
        return cls(
            request_id=require_text(data, "request_id", where),
            **{name: require_int(data, name, where) for name in numbers},
            **{name: require_int(data, name, where) for name in OPTIONAL_NUMBERS if name in data},
            think_time_ns=require_int(data, "think_time_ns", where) if "think_time_ns" in data else 0,
            client_id=require_text(data, "client_id", where) if "client_id" in data else "",
            session_id=require_text(data, "session_id", where) if "session_id" in data else "",
            prefix=_prefix_from_json(data.get("prefix", []), f"{where}: prefix"),
        )


def _prefix_from_json(data: Any, where: str) -> tuple[tuple[str, int], ...]:
    if not isinstance(data, list):
        raise InputError(f"{where} is {data!r}, expected a list of [stream, tokens]")
    for segment in data:
        match segment:
            case [str(), int()]:
                continue
            case _:
                raise InputError(f"{where} has {segment!r}, expected [stream, tokens]")
    return tuple((stream, tokens) for stream, tokens in data)
