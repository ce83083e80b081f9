"""What decides a list schedule: few numbers (a shape), or a key and a delay of every request (a plan)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspsched.errors import InputError
from cspsched.problem.cost import IntArray
from cspsched.problem.json_io import require_int, require_keys

FloatArray = npt.NDArray[np.float64]
Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
SHORTEST_FILL = 16
"""Batches are filled to that many tokens at least, if the knob does not say less."""
MOST_DOUBLINGS = 2
"""How often the tokens to which a request fills batches are doubled or halved at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How requests are admitted."""

    seats: int
    """Most running requests."""
    fill_tokens: int
    """Prefill fills a batch up to so many tokens, the decodes that are planned by then included."""
    longest_chunk: int
    """Most prefill tokens of a request in a batch."""
    depth: int = 1
    """How many waiting requests that do not fit may be passed over in a batch, the last included."""
    pace: int = 0
    """Thousandths of a batch from one admission to the next at least; 0 means no limit."""

    def __post_init__(self) -> None:
        for knob in fields(self):
            value, least = getattr(self, knob.name), 0 if knob.name == "pace" else 1
            if value < least:
                raise InputError(f"list schedule: {knob.name} is {value}, expected at least {least}")

    @classmethod
    def from_json(cls, data: Any, where: str) -> Knobs:
        """Read what `asdict` gave."""
        names = [knob.name for knob in fields(cls)]
        require_keys(data, where, required=names, optional=())
        values = {name: require_int(data, name, where) for name in names}
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A family of orders: requests go by rising `O^a v^b e^(w t)`, equal ones by arrival.

    O is the output, v = I + (O - 1) / 2 the mean KV cache and t the arrival in seconds. So a = b = w = 0 is
    first come, first served; a = 1 shortest output, a = b = 1 smallest volume, a = -1 longest output first.
    """

    output_power: float = 0.0
    """a."""
    context_power: float = 0.0
    """b."""
    ageing_per_s: float = 0.0
    """w: how fast waiting requests gain on those that come later."""
    knobs: Knobs

    def keys(self, arrival_ns: IntArray, prompt_tokens: IntArray, output_tokens: IntArray) -> FloatArray:
        """Logarithm of the family's number for every request."""
        context = prompt_tokens + (output_tokens - 1) / 2
        return np.asarray(
            self.output_power * np.log(output_tokens)
            + self.context_power * np.log(context)
            + self.ageing_per_s * (arrival_ns / 1e9),
            dtype=np.float64,
        )

    def __str__(self) -> str:
        order = f"O^{self.output_power:.3g} v^{self.context_power:.3g} e^({self.ageing_per_s:.3g} t)"
        if not self.output_power and not self.context_power:
            order = "arrival"
        knobs = self.knobs
        return (
            f"list by {order}, {knobs.seats} seats, batches filled to {knobs.fill_tokens} tokens, "
            f"chunk {knobs.longest_chunk}, depth {knobs.depth}, pace {knobs.pace}"
        )

    @classmethod
    def from_json(cls, data: Any, where: str) -> Shape:
        """Read what `asdict` gave."""
        names = [name.name for name in fields(cls)]
        require_keys(data, where, required=names, optional=())
        powers = {name: _number(data[name], f"{where}: {name}") for name in names[:-1]}
        return cls(**powers, knobs=Knobs.from_json(data["knobs"], f"{where}: knobs"))


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{where} is {value!r}, expected a number")
    return float(value)


class Pause(NamedTuple):
    """A preemption with recomputation: what a request has on the device is lost amid its output."""

    request: int
    """In order of arrival."""
    tokens: int
    """Output tokens before it, fewer than all."""
    hold_batches: int
    """Batches without the request at least, unless no other request runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Decisions for every request, in order of arrival.

    Attributes
    ----------
    knobs
        How requests are admitted.
    keys
        Shape (num_requests,): the smallest goes first.
    delay_ns
        int64, shape (num_requests,): how long after its arrival a request may be admitted at the earliest.
    chunk_doublings
        int8, shape (num_requests,): how often `fill_tokens` is doubled for a request, halved if negative.
    pauses
        At most one of a request.
    """

    knobs: Knobs
    keys: FloatArray
    delay_ns: IntArray
    chunk_doublings: Int8Array
    pauses: tuple[Pause, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "knobs": asdict(self.knobs), "keys": self.keys.tolist(), "delay_ns": self.delay_ns.tolist(),
            "chunk_doublings": self.chunk_doublings.tolist(),
            "pauses": [list(pause) for pause in self.pauses],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any, num_requests: int, where: str) -> Plan:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If a value is missing or wrong, or there are not as many as requests.
        """
        require_keys(
            data, where, required=("knobs", "keys", "delay_ns", "chunk_doublings", "pauses"), optional=()
        )
        for name in ("keys", "delay_ns", "chunk_doublings"):
            if not isinstance(data[name], list) or len(data[name]) != num_requests:
                raise InputError(f"{where}: {name} must be a list of {num_requests} numbers")
        keys = [_number(key, f"{where}: a key") for key in data["keys"]]
        if any(type(one) is not int or abs(one) > MOST_DOUBLINGS for one in data["chunk_doublings"]):
            raise InputError(
                f"{where}: chunk_doublings must be whole numbers from {-MOST_DOUBLINGS} to {MOST_DOUBLINGS}"
            )
        if any(type(delay) is not int or not 0 <= delay < 2**61 for delay in data["delay_ns"]):
            raise InputError(f"{where}: delay_ns must be whole numbers of at least 0")
        return cls(
            knobs=Knobs.from_json(data["knobs"], f"{where}: knobs"),
            keys=np.array(keys, dtype=np.float64),
            delay_ns=np.array(data["delay_ns"], dtype=np.int64),
            chunk_doublings=np.array(data["chunk_doublings"], dtype=np.int8),
            pauses=_pauses(data["pauses"], num_requests, f"{where}: pauses"),
        )


def _pauses(data: Any, num_requests: int, where: str) -> tuple[Pause, ...]:
    if not isinstance(data, list) or not all(map(_is_pause, data)):
        raise InputError(f"{where} must be a list of [request, tokens, hold_batches], whole numbers")
    pauses = tuple(Pause(*one) for one in data)
    requests = {pause.request for pause in pauses}
    if len(requests) < len(pauses) or not requests <= set(range(num_requests)):
        raise InputError(f"{where} must name different requests, each below {num_requests}")
    return pauses


def _is_pause(data: Any) -> bool:
    if not isinstance(data, list) or len(data) != len(Pause._fields):
        return False
    return all(
        type(value) is int and least <= value < 2**31 for value, least in zip(data, (0, 1, 0), strict=True)
    )
