"""An instance: requests, limits, switches and the cost model; everything that a schedule is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cspsched.errors import InfeasibleError, InputError
from cspsched.problem.columns import Positions, RequestColumns, Requests, canonical, columns_of
from cspsched.problem.cost import INT64_SAFE, CostModel
from cspsched.problem.json_io import require_int, require_keys, require_schema
from cspsched.problem.request import Request
from cspsched.units import ceil_div


class Preemption(StrEnum):
    """What may happen to the KV cache of an unfinished request."""

    NONE = "none"
    RECOMPUTE = "recompute"
    """It is dropped, and computed again when the request goes on."""
    SWAP = "swap"
    """It is moved to host memory and back."""
    EITHER = "either"

    @property
    def recomputes(self) -> bool:
        """Whether KV entries may be dropped."""
        return self in (Preemption.RECOMPUTE, Preemption.EITHER)

    @property
    def swaps(self) -> bool:
        """Whether KV entries may be moved to host memory."""
        return self in (Preemption.SWAP, Preemption.EITHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Capacities of one replica."""

    kv_blocks: int
    """Usable KV blocks on the device."""
    block_tokens: int = 16
    """Tokens a KV block holds (b); 1 is the token-granular case."""
    max_batch_tokens: int
    """C: token budget of a batch."""
    max_batch_requests: int
    """R: most requests processed in a batch."""
    max_model_len: int | None = None
    """Longest request (I + O - 1) that the engine takes, if it has such a limit."""
    host_kv_blocks: int = 0
    """KV blocks in host memory, for preemption by swap."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            least = 0 if limit.name == "host_kv_blocks" else 1
            if value is not None and value < least:
                raise InputError(f"{limit.name} is {value}, expected at least {least}")
            if value is not None and value >= INT64_SAFE:
                raise InputError(f"{limit.name} is {value}, expected less than {INT64_SAFE}")

    @property
    def kv_tokens(self) -> int:
        """M: KV capacity in tokens."""
        return self.kv_blocks * self.block_tokens

    def blocks_of(self, tokens: int) -> int:
        """KV blocks that a number of resident tokens occupies."""
        return ceil_div(tokens, self.block_tokens)

    def to_json(self) -> dict[str, int | None]:
        """Plain values."""
        return {
            limit.name: getattr(self, limit.name)
            for limit in fields(Limits)
            # Instances without swap keep the fingerprint that they had before there was any.
            if limit.name != "host_kv_blocks" or self.host_kv_blocks
        }


POLICY_CLASS_OF_PREEMPTION = {
    Preemption.NONE: "no preemption",
    Preemption.RECOMPUTE: "",
    Preemption.SWAP: "swap",
    Preemption.EITHER: "recompute or swap",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What a schedule may do; each restricts or widens the same problem."""

    chunked_prefill: bool = True
    """A prompt or refill may be processed in several batches."""
    hybrid_batches: bool = True
    """Prefill and decode may share a batch."""
    holding: bool = True
    """A resident request may sit out a batch."""
    preemption: Preemption = Preemption.RECOMPUTE
    reservation: bool = False
    """A resident request occupies I + O - 1 tokens from its admission on."""
    prefix_caching: bool = False
    """Bounds count on prefix cache hits: a prompt's block costs nothing where another request computed it."""

    @property
    def policy_class(self) -> str:
        """Name of the class of schedules, so that a restricted optimum is never called the optimum."""
        names = [
            "full" if self == Switches() else "",
            "" if self.chunked_prefill else "no chunking",
            "" if self.hybrid_batches else "no hybrid batches",
            "" if self.holding else "no holding",
            POLICY_CLASS_OF_PREEMPTION[self.preemption],
            "reservation" if self.reservation else "",
            "prefix caching" if self.prefix_caching else "",
        ]
        return ", ".join(name for name in names if name)

    def to_json(self) -> dict[str, bool | str]:
        """Plain values."""
        return {
            switch.name: getattr(self, switch.name)
            for switch in fields(Switches)
            # Instances without prefix caching keep the fingerprint that they had before there was any.
            if switch.name != "prefix_caching" or self.prefix_caching
        }

    @property
    def run_to_completion(self) -> bool:
        """Whether a request, once admitted, is in every batch until it finishes, its prompt in one piece."""
        return (
            not self.chunked_prefill
            and not self.holding
            and self.hybrid_batches
            and self.preemption is Preemption.NONE
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A request that no schedule can serve, and why in one sentence."""

    request: Request
    reason: str


INSTANCE_SCHEMA = "cspsched/instance/1"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Requests in arrival-file order, the limits, the switches and the cost model of one replica."""

    requests: Sequence[Request]
    """A tuple, or `Requests`, which are columns and equal to the tuple."""
    limits: Limits
    cost: CostModel
    switches: Switches = field(default_factory=Switches)

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError("the trace has no requests")
        repeated = self._repeated_name()
        if repeated is not None:
            raise InputError(f"request_id {repeated!r} appears twice, expected unique names")

    def _repeated_name(self) -> str | None:
        if isinstance(self.requests, Requests):
            return self.requests.columns.repeated_name
        seen: set[str] = set()
        for request in self.requests:
            if request.request_id in seen:
                return request.request_id
            seen.add(request.request_id)
        return None

    @cached_property
    def columns(self) -> RequestColumns:
        """The requests in columns."""
        return columns_of(self.requests)

    def rejection_of(self, request: Request) -> Rejection | None:
        """Why a request can never be served under the limits, or None if it can."""
        limits, peak = self.limits, request.peak_kv_tokens
        blocks = limits.blocks_of(peak)
        arithmetic = f"{request.prompt_tokens} prompt + {request.output_tokens} output - 1 = {peak} tokens"
        if limits.max_model_len is not None and peak > limits.max_model_len:
            reason = f"is longer than max_model_len {limits.max_model_len} ({arithmetic})"
        elif blocks > limits.kv_blocks:
            reason = (
                f"alone needs {blocks} KV blocks, the device offers {limits.kv_blocks} "
                f"({arithmetic} in blocks of {limits.block_tokens})"
            )
        elif not self.switches.chunked_prefill and request.prompt_tokens > limits.max_batch_tokens:
            reason = (
                f"has a prompt of {request.prompt_tokens} tokens, more than max_batch_tokens "
                f"{limits.max_batch_tokens}, and chunked prefill is off"
            )
        else:
            return None
        return Rejection(request=request, reason=f"request {request.request_id!r} {reason}")

    def split_rejected(self) -> tuple[Instance, tuple[Rejection, ...]]:
        """The instance without the requests that can never be served, and those with the reasons.

        Its clock starts when that of the whole instance does, at its own first arrival: who can never be
        served sets no time. The rejected keep the arrivals that they had.

        Raises
        ------
        InfeasibleError
            If no request remains.
        """
        return self._split

    @cached_property
    def _split(self) -> tuple[Instance, tuple[Rejection, ...]]:
        unfit = np.flatnonzero(self._may_be_unfit)
        found = {i: self.rejection_of(self.requests[i]) for i in unfit.tolist()}
        rejections = tuple(filter(None, found.values()))
        if not rejections:
            return self, ()
        is_kept = np.ones(len(self.requests), dtype=bool)
        is_kept[[i for i, rejection in found.items() if rejection]] = False
        if not is_kept.any():
            raise InfeasibleError(f"no request can be served; the first: {rejections[0].reason}")
        arrival_ns = self.columns.arrival_ns
        early_ns = int(arrival_ns[is_kept].min() - arrival_ns.min())
        return replace(self, requests=self._kept(np.flatnonzero(is_kept), early_ns)), rejections

    @property
    def _may_be_unfit(self) -> npt.NDArray[np.bool_]:
        """Requests of which `rejection_of` decides; it takes all others."""
        limits, columns = self.limits, self.columns
        unfit = columns.peak_kv_tokens > limits.kv_tokens
        if limits.max_model_len is not None:
            unfit |= columns.peak_kv_tokens > limits.max_model_len
        if not self.switches.chunked_prefill:
            unfit |= columns.prompt_tokens > limits.max_batch_tokens
        return unfit

    def _kept(self, positions: Positions, early_ns: int) -> Sequence[Request]:
        """Some of the requests, arriving so much earlier."""
        if isinstance(self.requests, Requests):
            return Requests(self.columns.taken(positions).earlier(early_ns))
        kept = tuple(self.requests[i] for i in positions.tolist())
        if not early_ns:
            return kept
        return tuple(replace(request, arrival_ns=request.arrival_ns - early_ns) for request in kept)

    def to_json(self) -> dict[str, Any]:
        """Plain values with a schema version."""
        return self._around() | {"requests": [request.to_json() for request in self.requests]}

    def _around(self) -> dict[str, Any]:
        """The JSON without the requests."""
        return {
            "schema": INSTANCE_SCHEMA,
            "requests": [],
            "limits": self.limits.to_json(),
            "switches": self.switches.to_json(),
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "instance") -> Instance:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If the schema is another one, or a value is missing or wrong.
        """
        require_schema(data, INSTANCE_SCHEMA, where)
        require_keys(data, where, required=("requests", "limits", "switches", "cost"), optional=())
        if not isinstance(data["requests"], list):
            raise InputError(f"{where}: requests must be a list, got {type(data['requests']).__name__}")
        return cls(
            requests=tuple(
                Request.from_json(row, f"{where}: requests[{k}]") for k, row in enumerate(data["requests"])
            ),
            limits=_limits_from_json(data["limits"], f"{where}: limits"),
            switches=_switches_from_json(data["switches"], f"{where}: switches"),
            cost=CostModel.from_json(data["cost"], f"{where}: cost"),
        )

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: equal exactly when the instances are."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        sha = hashlib.sha256()
        for piece in self._canonical():
            sha.update(piece.encode())
        return "sha256:" + sha.hexdigest()

    def _canonical(self) -> Iterator[str]:
        """The JSON with sorted keys and no blanks, in pieces."""
        if not isinstance(self.requests, Requests):
            yield canonical(self.to_json())
            return
        around = self._around()
        for number, key in enumerate(sorted(around)):
            yield ("," if number else "{") + f'"{key}":'
            yield from self.columns.canonical_json() if key == "requests" else (canonical(around[key]),)
        yield "}"


def _limits_from_json(data: Any, where: str) -> Limits:
    names = [limit.name for limit in fields(Limits)]
    # Files written before there was a host memory lack it.
    require_keys(data, where, required=set(names) - {"host_kv_blocks"}, optional=("host_kv_blocks",))
    given = [
        name
        for name in names
        if data.get(name) is not None or name not in ("max_model_len", "host_kv_blocks")
    ]
    return Limits(**{name: require_int(data, name, where) for name in given})


def _switches_from_json(data: Any, where: str) -> Switches:
    names = [switch.name for switch in fields(Switches)]
    # Files written before bounds knew the prefix cache lack it.
    require_keys(data, where, required=set(names) - {"prefix_caching"}, optional=("prefix_caching",))
    for name in names:
        if name != "preemption" and not isinstance(data.get(name, False), bool):
            raise InputError(f"{where}: {name} is {data[name]!r}, expected true or false")
    try:
        return Switches(**{**data, "preemption": Preemption(data["preemption"])})
    except ValueError:
        raise InputError(
            f"{where}: preemption is {data['preemption']!r}, expected one of {', '.join(Preemption)}"
        ) from None
