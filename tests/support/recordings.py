"""Recorded cases made of our own simulations: what a recorder of a real engine would have written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.recording.engines import cost_of
from cspsched.referee.history import follow
from cspsched.simulate import Simulation, simulate
from cspsched.units import NS_PER_S, ns_to_seconds

COST = {"a": 0.008, "b": 4e-05, "c": 2e-08}
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 16,
    "max_num_seqs": 4,
    "num_kv_blocks": 13,
    "block_size": 2,
    "max_model_len": 64,
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "cost": COST,
}
"""A device of 12 usable blocks, on which the requests below preempt each other."""
SHAPES = ((9, 6, 0.0), (3, 8, 0.0), (5, 7, 0.001), (2, 5, 0.02), (8, 3, 0.05))


def requests_of(shapes: tuple[tuple[int, int, float], ...] = SHAPES) -> tuple[Request, ...]:
    """Requests r0, r1, ... from (prompt, output, arrival in seconds)."""
    return tuple(
        Request(
            request_id=f"r{i}",
            arrival_ns=round(arrival_s * NS_PER_S),
            prompt_tokens=prompt,
            output_tokens=output,
        )
        for i, (prompt, output, arrival_s) in enumerate(shapes)
    )


def instance_of(config: dict[str, Any], requests: tuple[Request, ...]) -> Instance:
    """Instance of a configuration of vLLM V1, put together here anew."""
    cost = cost_of(config, "test")
    assert cost is not None
    limits = Limits(
        kv_blocks=config["num_kv_blocks"] - 1,
        block_tokens=config["block_size"],
        max_batch_tokens=config["max_num_batched_tokens"],
        max_batch_requests=config["max_num_seqs"],
        max_model_len=config["max_model_len"],
    )
    return Instance(requests=requests, limits=limits, cost=cost)


def simulated(policy: str = "vllm", config: dict[str, Any] = TIGHT) -> tuple[Instance, Simulation]:
    """The requests above under a policy."""
    instance = instance_of(config, requests_of())
    return instance, simulate(instance, make_policy(policy))


def log_lines(instance: Instance, simulation: Simulation) -> list[dict[str, Any]]:
    """One line an iteration, as on a virtual clock."""
    schedule, names = simulation.schedule, [request.request_id for request in instance.requests]
    history = follow(instance, schedule)
    lines = []
    for j in range(schedule.num_batches):
        entries = range(schedule.first_entry[j], schedule.first_entry[j + 1])
        rows = [
            [names[schedule.request[e]], int(schedule.tokens[e]), int(history.kv_before[e])] for e in entries
        ]
        lines.append(
            {
                "it": j,
                "sched": rows,
                "preempted": [[names[i], 0, 0] for batch, i in simulation.preempted if batch == j],
                "waiting": int(simulation.num_waiting[j]),
                "kv_used": int(simulation.held_blocks[j]),
                "t_start": ns_to_seconds(int(schedule.start_ns[j])),
                "t_end": ns_to_seconds(int(schedule.end_ns[j])),
                "emitted": [names[schedule.request[e]] for e in entries if history.generates[e]],
                "finished": [names[schedule.request[e]] for e in entries if history.finishes[e]],
            }
        )
    return lines


def write_log(path: Path, lines: list[dict[str, Any]], *, meta: dict[str, Any] | None = None) -> None:
    """Log of lines with its first and last line; a complete one."""
    around = [{"meta": meta or {}}, *lines, {"summary": {"iterations": len(lines)}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in around), encoding="utf-8")


def write_trace(path: Path, requests: tuple[Request, ...]) -> None:
    """Trace on the clock of the recording."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["request_id", "arrival", "prompt_tokens", "output_tokens", "priority"])
        for one in requests:
            arrival = ns_to_seconds(one.arrival_ns)
            rows.writerow([one.request_id, arrival, one.prompt_tokens, one.output_tokens, one.priority])


def write_case(
    folder: Path,
    name: str,
    config: dict[str, Any],
    lines: list[dict[str, Any]],
    requests: tuple[Request, ...] | None = None,
) -> None:
    """A case of three files, without a manifest."""
    write_log(folder / f"{name}.log.jsonl", lines)
    write_trace(folder / f"{name}.trace.csv", requests or requests_of())
    (folder / f"{name}.config.json").write_text(json.dumps(config), encoding="utf-8")
