"""A request: one row of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cspsched.errors import TraceError
from cspsched.problem.json_io import require_int, require_keys, require_text

# Sums and squares of these still fit into 64 bits.
MAX_TOKENS = 1_000_000_000
MAX_ARRIVAL_NS = 9 * 10**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row of a trace. Times are integer nanoseconds since the first arrival."""

    request_id: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    """Smaller is served first, by policies that look at it."""

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
        for name, largest in (
            ("prompt_tokens", MAX_TOKENS),
            ("output_tokens", MAX_TOKENS),
            ("arrival_ns", MAX_ARRIVAL_NS),
        ):
            value = getattr(self, name)
            if value > largest:
                raise TraceError(
                    f"request {self.request_id!r}: {name} is {value}, expected at most {largest}"
                )

    @property
    def peak_kv_tokens(self) -> int:
        """KV entries held when the last token is generated: I + O - 1, for that token is never processed."""
        return self.prompt_tokens + self.output_tokens - 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "request_id": self.request_id,
            "arrival_ns": self.arrival_ns,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "priority": self.priority,
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Request:
        """Read what `to_json` wrote."""
        numbers = ("arrival_ns", "prompt_tokens", "output_tokens", "priority")
        require_keys(data, where, required=("request_id", *numbers), optional=())
        return cls(
            request_id=require_text(data, "request_id", where),
            arrival_ns=require_int(data, "arrival_ns", where),
            prompt_tokens=require_int(data, "prompt_tokens", where),
            output_tokens=require_int(data, "output_tokens", where),
            priority=require_int(data, "priority", where),
        )
