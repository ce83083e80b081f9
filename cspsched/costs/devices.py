"""Devices that LLMs run on, and how they are connected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cspsched.costs.facts import TOML, checked_fields, fact_names, fact_path, read_toml, require_positive

DEVICE_FOLDER = "models/devices"
GIB = 2**30


class EngineDefaults(NamedTuple):
    """What an engine runs with when nothing is asked for."""

    max_batch_tokens: int
    max_batch_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What connects the devices of one engine, in each direction.

    Attributes
    ----------
    latency_ns
        Of a message, however small.
    """

    bandwidth_bytes_per_s: float
    latency_ns: int

    def __post_init__(self) -> None:
        require_positive(self, "link", at_least_0=("latency_ns",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU. Peak rates are dense, in floating-point operations per second.

    Attributes
    ----------
    operator_tables
        System of an installed aiconfigurator-core whose tables are of this device; None if there are none.
    link
        Where collectives are to follow from it by formula, in place of measured ones.
    memory_bytes
        Total that the driver reports to a process, which is less than the name of the card says.
    peak_flops_bf16
        None where the device has no bfloat16 matrix units.
    """

    name: str
    title: str
    source: str
    architecture: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    peak_flops_fp16: float
    peak_flops_bf16: float | None = None
    operator_tables: str | None = None
    link: Link | None = None

    def __post_init__(self) -> None:
        require_positive(self, f"device {self.name!r}")


def device_names() -> list[str]:
    """Names of the devices that ship with cspsched."""
    return fact_names(DEVICE_FOLDER)


def load_device(name: str) -> Device:
    """Read a device: a shipped one by its name, or a TOML file.

    Raises
    ------
    UsageError
        If there is none of that name.
    InputError
        If a file cannot be read, or is no device.
    """
    if name.endswith(TOML):
        return read_device(Path(name))
    return read_device(fact_path("device", DEVICE_FOLDER, name))


def read_device(path: Path) -> Device:
    """Read the TOML file of a device; its name is the file's.

    Raises
    ------
    InputError
        If a field is missing, unknown, or not what it has to be.
    """
    data = {"name": path.stem, **read_toml(path)}
    if "link" in data:
        data["link"] = Link(**checked_fields(data["link"], Link, f"{path}: link"))
    return Device(**checked_fields(data, Device, str(path)))


def engine_defaults(device: Device) -> EngineDefaults:
    """Batch limits that vLLM V1's API server chooses by the memory of the device.

    From vLLM's `EngineArgs`: 16384 tokens and 1024 requests from 160 GiB on, 8192 and 1024 from
    70 GiB on unless the device is an A100, otherwise 2048 and 256.
    """
    if device.memory_bytes >= 160 * GIB:
        return EngineDefaults(max_batch_tokens=16384, max_batch_requests=1024)
    if device.memory_bytes >= 70 * GIB and "a100" not in device.title.lower():
        return EngineDefaults(max_batch_tokens=8192, max_batch_requests=1024)
    return EngineDefaults(max_batch_tokens=2048, max_batch_requests=256)
