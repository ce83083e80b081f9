"""A measured run of vLLM 0.19 (RTX 4090, Llama 3.1 8B, 300 requests) is simulated to within a few percent."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from cspsched.costs.presets import load_cost
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.referee.history import follow
from cspsched.referee.rules import find_violations
from cspsched.simulate import Simulation, simulate
from cspsched.units import NS_PER_S
from tests.support.places import DATA, ROOT

RUN = DATA / "real_runs" / "rtx4090_llama-3.1-8b_vllm-0.19"
COST = "rtx-4090-llama-3.1-8b"

pytestmark = pytest.mark.skipif(not RUN.is_dir(), reason=f"the measured run is not at {RUN}")

Seconds = npt.NDArray[np.float64]


class Times(NamedTuple):
    """Seconds since the first arrival, shape (num_requests,) each."""

    arrival: Seconds
    first_token: Seconds
    last_token: Seconds
    outputs: npt.NDArray[np.int64]

    def means(self) -> dict[str, float]:
        """Mean TTFT, latency and time per output token."""
        decoding = self.last_token - self.first_token
        return {
            "ttft": float((self.first_token - self.arrival).mean()),
            "latency": float((self.last_token - self.arrival).mean()),
            "tpot": float((decoding / (self.outputs - 1)).mean()),
        }


@cache
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RUN / "requests.jsonl").read_text(encoding="utf-8").splitlines()]


def column(name: str) -> Seconds:
    return np.array([row[name] for row in rows()])


def measured() -> Times:
    """What was measured. The client's clock is set so that its quickest request is queued at once."""
    arrival = column("arrival_time")
    arrival += (column("queued_ts") - arrival).min()
    start = arrival.min()
    return Times(
        arrival - start,
        column("first_token_ts") - start,
        column("last_token_ts") - start,
        column("output_toks").astype(np.int64),
    )


@cache
def simulated() -> tuple[Instance, Simulation]:
    """The run under the limits and switches of its own meta.json."""
    meta = json.loads((RUN / "meta.json").read_text(encoding="utf-8"))
    scheduler, kv_cache = meta["resolved_config"]["scheduler_config"], meta["kv_cache"]
    requests = tuple(
        Request(
            request_id=row["request_id"],
            arrival_ns=round(arrival * NS_PER_S),
            prompt_tokens=row["input_toks"],
            output_tokens=row["output_toks"],
        )
        for row, arrival in zip(rows(), measured().arrival.tolist(), strict=True)
    )
    limits = Limits(
        kv_blocks=kv_cache["num_gpu_blocks"] - 1,
        block_tokens=kv_cache["block_size"],
        max_batch_tokens=scheduler["max_num_batched_tokens"],
        max_batch_requests=scheduler["max_num_seqs"],
        max_model_len=meta["engine_kwargs"]["max_model_len"],
    )
    settings = {
        "enable_prefix_caching": kv_cache["enable_prefix_caching"],
        **{key: scheduler[key] for key in ("async_scheduling", "enable_chunked_prefill", "policy")},
        **{key: scheduler[key] for key in ("long_prefill_token_threshold", "scheduler_reserve_full_isl")},
    }
    instance = Instance(requests=requests, limits=limits, cost=load_cost(COST))
    policy = make_policy("vllm:" + ",".join(f"{key}={value}" for key, value in settings.items()))
    return instance, simulate(instance, policy)


def simulated_times() -> Times:
    instance, simulation = simulated()
    schedule = simulation.schedule
    history = follow(instance, schedule)
    tokens = history.generates
    ends, request = schedule.end_ns[schedule.batch_of_entry][tokens], schedule.request[tokens]
    first = np.full(len(instance.requests), np.iinfo(np.int64).max)
    last = np.zeros(len(instance.requests), dtype=np.int64)
    np.minimum.at(first, request, ends)
    np.maximum.at(last, request, ends)
    arrivals = np.array([row.arrival_ns for row in instance.requests])
    outputs = np.array([row.output_tokens for row in instance.requests])
    return Times(arrivals / NS_PER_S, first / NS_PER_S, last / NS_PER_S, outputs)


@pytest.mark.parametrize(("metric", "tolerance"), [("ttft", 0.05), ("latency", 0.025), ("tpot", 0.02)])
def test_means_are_met(metric: str, tolerance: float) -> None:
    """Mean TTFT within 5 %, latency within 2.5 %, TPOT within 2 % of what was measured."""
    assert simulated_times().means()[metric] == pytest.approx(measured().means()[metric], rel=tolerance)


def test_the_run_takes_as_long() -> None:
    """The last token comes within 2 % of the time at which it came, after three minutes at full memory."""
    assert simulated_times().last_token.max() == pytest.approx(measured().last_token.max(), rel=0.02)


def test_the_schedule_is_feasible() -> None:
    """The referee accepts it, with hits of the prefix cache after preemptions."""
    instance, simulation = simulated()

    assert len(simulation.schedule.hit_batch) > 0
    assert find_violations(instance, simulation.schedule) == []


def test_the_cost_model_is_fitted_to_the_profile_alone(tmp_path: Path) -> None:
    """The shipped file is, byte by byte, what the script makes of the operator profile."""
    script, profiles = ROOT / "benchmarks" / "fit_rtx4090_tables.py", RUN.parents[1] / "profiles"
    subprocess.run([sys.executable, script, profiles, "--out", tmp_path], check=True, capture_output=True)

    written = (tmp_path / f"{COST}.toml").read_bytes()
    assert written == (ROOT / "models" / "costs" / f"{COST}.toml").read_bytes()


def test_requests_are_served_in_the_measured_order() -> None:
    """Request by request the latency is within 10 % of the measured one for nine in ten."""
    real, ours = measured(), simulated_times()
    errors = np.abs((ours.last_token - ours.arrival) / (real.last_token - real.arrival) - 1)

    assert np.percentile(errors, 90) < 0.10
