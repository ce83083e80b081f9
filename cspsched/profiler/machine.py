"""What a profile was measured on: versions, the device with its clocks, the host; no serial numbers."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GPU_FACTS = (
    "name", "uuid", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "temperature.gpu", "ecc.mode.current",
)  # fmt: skip
"""Asked of nvidia-smi: names, MHz, watts, degrees Celsius."""
GPU_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
"""What may change while measuring."""
HASH_DIGITS = 12


def machine_facts(torch: Any, device: str) -> dict[str, Any]:
    """Facts that stay the same during a run."""
    return {
        "device": device,
        "device_name": device_name(torch, device),
        "gpu": _gpu_facts() if device == "cuda" else {},
        "host_cpu": _cpu_name(),
        "host_threads": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cspsched": _version_of("cspsched"),
        "git_sha": _git_sha(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "triton": _version_of("triton"),
    }


def device_name(torch: Any, device: str) -> str:
    """Name of the GPU, or of the processor."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else _cpu_name()


def device_state(device: str) -> dict[str, str]:
    """Clocks, temperature and power now; empty for a CPU."""
    return _ask_gpu(GPU_STATE) if device == "cuda" else {}


def utc_now() -> str:
    """Date and time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _gpu_facts() -> dict[str, str]:
    facts = _ask_gpu(GPU_FACTS)
    if "uuid" in facts:
        facts["uuid_hash"] = hashlib.sha256(facts.pop("uuid").encode()).hexdigest()[:HASH_DIGITS]
    return facts


def _ask_gpu(names: Sequence[str]) -> dict[str, str]:
    answer = _output(
        "nvidia-smi", "-i", "0", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"
    )
    values = [value.strip() for value in answer.split(",")] if answer else []
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def _git_sha() -> str | None:
    """Commit of the checkout that runs; None for an installed package."""
    root = Path(__file__).parents[2]
    return _output("git", "-C", str(root), "rev-parse", "HEAD") or None if (root / ".git").exists() else None


def _output(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
