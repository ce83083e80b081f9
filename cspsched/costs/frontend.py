"""What a client waits for around the schedule: HTTP, tokenisation, detokenisation, streaming.

A cost file may have a part `[frontend]`. It is no part of a batch: neither an optimum nor a bound nor a
policy sees it, and reports add it to what a client sees only where they are asked to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspsched.costs.facts import fact_names, read_toml, unknown_name
from cspsched.costs.presets import COST_SUFFIXES, cost_names, cost_path, read_cost
from cspsched.errors import InputError, UsageError
from cspsched.problem.json_io import require_int, require_keys, require_text
from cspsched.resources import shipped_file
from cspsched.units import NS_PER_S, seconds_to_ns

FRONTEND_FOLDER = "models/frontends"
OWN = "cost"
"""Text that means the part of the cost model in use."""
TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s)")
SECONDS = {"ns": "e-9", "us": "e-6", "ms": "e-3", "s": ""}
NS_PER_MS = NS_PER_S // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """Constants of every request, in integer nanoseconds.

    Attributes
    ----------
    request_ns
        From when the client sends a request until the scheduler has it.
    output_ns
        From when the engine has generated a token until the client has it. Tokens are delayed, not spread:
        TPOT and ITL stay as they are.
    source
        Where the constants come from, in words.
    """

    request_ns: int
    output_ns: int = 0
    source: str = "given by hand"

    def __post_init__(self) -> None:
        for name in ("request_ns", "output_ns"):
            value = getattr(self, name)
            if not 0 <= value < 2**53:
                raise InputError(f"frontend: {name} is {value}, expected whole nanoseconds from 0 on")

    @property
    def added_ns(self) -> int:
        """What a client's TTFT and latency are above those of the schedule."""
        return self.request_ns + self.output_ns

    @property
    def line(self) -> str:
        """What is added, in a sentence."""
        parts = f"{self.request_ns / NS_PER_MS:.3f} ms before the scheduler"
        if self.output_ns:
            parts += f", {self.output_ns / NS_PER_MS:.3f} ms behind each token"
        return f"{parts} ({self.source})"

    def client_s(self, summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """TTFT and latency as a client sees them, of the summary of a schedule's metrics, in seconds."""
        added_s = self.added_ns / NS_PER_S
        return {
            f"client_{name}": {statistic: value + added_s for statistic, value in summary[name].items()}
            for name in ("ttft_s", "latency_s")
        }

    def to_json(self) -> dict[str, Any]:
        """The constants and where they come from."""
        return {"request_ns": self.request_ns, "output_ns": self.output_ns, "source": self.source}

    def to_toml(self) -> str:
        """The part as a cost file has it."""
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.to_json().items()]
        return "\n".join(["[frontend]", *lines]) + "\n"

    @classmethod
    def from_json(cls, data: Any, where: str) -> Frontend:
        """Read the part of a file.

        Raises
        ------
        InputError
            If a key is missing or unknown, or a time is no whole number of nanoseconds from 0 on.
        """
        require_keys(data, where, required=("request_ns",), optional=("output_ns", "source"))
        times = {name: require_int(data, name, where) for name in ("request_ns", "output_ns") if name in data}
        source = {"source": require_text(data, "source", where)} if "source" in data else {}
        return cls(**times, **source)  # type: ignore[arg-type]


def frontend_names() -> list[str]:
    """Names of the parts that ship by themselves."""
    return fact_names(FRONTEND_FOLDER)


def load_frontend(text: str, cost: str | Path) -> Frontend:
    """Frontend of a text: a time such as `7.5ms`, `cost`, a shipped name, a cost model or a file.

    Parameters
    ----------
    cost
        Name or file of the cost model in use, which `cost` means.

    Raises
    ------
    UsageError
        If the text means none of these.
    InputError
        If the file has no such part, or a wrong one.
    """
    match = TIME.fullmatch(text.strip().lower())
    if match is not None:
        return Frontend(request_ns=seconds_to_ns(f"{match[1]}{SECONDS[match[2]]}"))
    path = _path(str(cost) if text == OWN else text)
    data = read_cost(path) if path.suffix in COST_SUFFIXES else read_toml(path)
    if "frontend" not in data:
        raise InputError(
            f"{path} has no part [frontend]; fit one to a run ('cspsched profile fit --from-run'), or give a "
            f"time such as 7.5ms, or a shipped one ({', '.join(frontend_names())})"
        )
    return Frontend.from_json(data["frontend"], f"{path}: frontend")


def _path(text: str) -> Path:
    if Path(text).suffix in COST_SUFFIXES:
        return Path(text)
    shipped = shipped_file(FRONTEND_FOLDER, text, ".toml")
    if shipped is not None:
        return shipped
    if text in cost_names():
        return cost_path(text)
    known = [OWN, *frontend_names()]
    raise UsageError(f"{unknown_name('frontend', text, known)}, a time such as 7.5ms, a cost model, a file")


def stated(frontend: Frontend | None) -> str:
    """What a report says of it, also where nothing is added."""
    if frontend is None:
        return "off: the times are the engine's"
    return f"{frontend.line}, in the client's TTFT and latency only"
