"""Where a result comes from: everything that another person needs to get the same number."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from cspsched.costs.parallelism import DEGREES, ONE_GPU, Parallelism
from cspsched.costs.presets import CostInfo, describe_cost
from cspsched.errors import CspschedError, UsageError
from cspsched.policies.base import make_policy
from cspsched.policies.catalogue import lengths_known_to
from cspsched.policies.text import PolicyText
from cspsched.problem.instance import Instance, Limits, Switches
from cspsched.problem.result import tool_versions
from cspsched.serving import Serving, cost_of, hardware
from cspsched.trace.trace import Trace
from cspsched.units import NS_PER_S

EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
"""Seconds since 1970 that stand for now (reproducible-builds.org), so that outputs repeat on another day."""


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """One policy as it ran.

    Attributes
    ----------
    settings
        All of them by name, defaults included; empty for a policy without settings.
    file_sha256
        Of the user's own file; None for a policy of the registry.
    lengths
        What it takes for outputs that have not been generated; None if it looks at none or does not say.
    """

    label: str
    text: str
    settings: Mapping[str, Any]
    file_sha256: str | None
    lengths: str | None

    @classmethod
    def of(cls, text: str, instance: Instance) -> PolicyFacts:
        """The facts of a policy that can be made, on an instance."""
        policy, wanted = make_policy(text), PolicyText.read(text)
        settings = getattr(policy, "settings", None)
        given = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {}
        digest = hashlib.sha256(wanted.file.read_bytes()).hexdigest() if wanted.file else None
        return cls(
            label=policy.label,
            text=text,
            settings=given,
            file_sha256=digest,
            lengths=lengths_known_to(policy, instance),
        )

    @property
    def line(self) -> str:
        """The policy in one line."""
        digest = f", file sha256 {self.file_sha256}" if self.file_sha256 else ""
        settings = ", ".join(f"{name}={_plain(value)}" for name, value in self.settings.items())
        lengths = f", knows {self.lengths}" if self.lengths else ""
        return f"{self.label}{digest}{f' ({settings})' if settings else ''}{lengths}"

    def to_json(self) -> dict[str, Any]:
        """Label, text, settings, checksum, and what is known of outputs."""
        settings = {name: _plain(value) for name, value in self.settings.items()}
        return {
            "label": self.label,
            "text": self.text,
            "settings": settings,
            "file_sha256": self.file_sha256,
            "lengths": self.lengths,
        }


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Trace, set-up and tools of a result.

    Attributes
    ----------
    model, device, parallelism
        None where the instance came from a file that does not say.
    cost_error
        By operator, how well the cost model meets the measurements that it was fitted to; empty where its
        source states none.
    span_s
        From the first arrival to the last.
    date
        Day in UTC; that of `SOURCE_DATE_EPOCH` where it is set.
    command
        Command line without the options that only say where results are written; None from Python.
    """

    trace: str
    fingerprint: str
    num_requests: int
    span_s: float
    model: str | None
    device: str | None
    parallelism: Parallelism | None
    cost: str
    cost_error: Mapping[str, str]
    limits: Limits
    switches: Switches
    policies: tuple[PolicyFacts, ...]
    objective: str
    seed: int
    versions: Mapping[str, str]
    date: str
    command: str | None

    @property
    def line(self) -> str:
        """Trace, instance, set-up and tools in one line; `rows` has everything."""
        parallel = f" ({self.parallelism.title})" if self.parallelism not in (None, ONE_GPU) else ""
        served_by = f"{self.model} on {self.device}{parallel}, " if self.model else ""
        return (
            f"{self.trace}: {self.num_requests:,} requests over {self.span_s:.9g} s, instance "
            f"{self.fingerprint[:19]}, {served_by}cost model {self.cost}, seed {self.seed}, cspsched "
            f"{self.versions['cspsched']}, {self.date}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of everything, in the order in which people ask."""
        parallel = self.parallelism.title if self.parallelism else None
        served_by = ", ".join(filter(None, (self.model, self.device, parallel)))
        errors = "; ".join(f"{name}: {text}" for name, text in self.cost_error.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = [
            ("trace", f"{self.trace}: {self.num_requests:,} requests over {self.span_s:.9g} s"),
            ("instance", self.fingerprint),
            ("model and device", served_by or "not stated by the file"),
            ("cost model", self.cost),
            ("error of the cost model", errors or "none stated"),
            ("limits", _listed(self.limits.to_json())),
            ("switches", _listed(self.switches.to_json())),
            *((f"policy {number}", policy.line) for number, policy in enumerate(self.policies, 1)),
            ("objective", self.objective),
            ("seed", str(self.seed)),
            ("versions", versions),
            ("date", self.date),
        ]
        return [*rows, ("command", self.command)] if self.command else rows

    def to_json(self) -> dict[str, Any]:
        """The same with units in the names."""
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("parallelism", "limits", "switches", "policies", "cost_error", "versions")
        }
        return {
            **plain,
            **(self.parallelism.degrees if self.parallelism else dict.fromkeys(DEGREES)),
            "cost_error": dict(self.cost_error),
            "limits": self.limits.to_json(),
            "switches": {name: _plain(value) for name, value in self.switches.to_json().items()},
            "policies": [policy.to_json() for policy in self.policies],
            "versions": dict(self.versions),
        }


def provenance_of(
    instance: Instance,
    policies: Iterable[str],
    *,
    objective: str,
    seed: int,
    trace: Trace | str,
    serving: Serving | None = None,
    command: str | None = None,
) -> Provenance:
    """What a result on an instance goes back to.

    Parameters
    ----------
    instance
        As it is measured, without the requests that can never be served.
    policies
        Their texts; one that cannot be made is left out, for its error is told elsewhere.
    trace
        The trace, or the name of a file that holds the whole instance.
    serving
        The set-up that made the instance of the trace; None if the instance came from a file.
    """
    model, device, parallelism = hardware(serving) if serving else (None, None, None)
    arrivals = instance.columns.arrival_ns
    return Provenance(
        trace=trace if isinstance(trace, str) else trace.name,
        fingerprint=instance.fingerprint(),
        num_requests=len(instance.requests),
        span_s=int(arrivals.max() - arrivals.min()) / NS_PER_S,
        model=model,
        device=device,
        parallelism=parallelism,
        cost=instance.cost.name,
        cost_error=_cost_error(instance, serving),
        limits=instance.limits,
        switches=instance.switches,
        policies=tuple(_facts(policies, instance)),
        objective=objective,
        seed=seed,
        versions=tool_versions(),
        date=today(),
        command=command,
    )


def today() -> str:
    """The day in UTC, or that of `SOURCE_DATE_EPOCH`.

    Raises
    ------
    UsageError
        If the variable is no whole number of seconds.
    """
    text = os.environ.get(EPOCH_VARIABLE)
    if text is None:
        return time.strftime("%Y-%m-%d", time.gmtime())
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(int(text)))
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{EPOCH_VARIABLE} is {text!r}, expected whole seconds since 1970") from None


def _facts(policies: Iterable[str], instance: Instance) -> Iterable[PolicyFacts]:
    for text in policies:
        try:
            yield PolicyFacts.of(text, instance)
        except UsageError:
            continue


def _cost_error(instance: Instance, serving: Serving | None) -> Mapping[str, str]:
    """What the cost model's own file says; of an instance from a file only a shipped model's."""
    name = cost_of(serving) if serving else instance.cost.name
    try:
        info: CostInfo = describe_cost(name)
    except CspschedError:
        return {}
    return info.fit_error


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
