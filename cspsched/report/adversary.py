"""The worst trace of a policy in sentences, and as files: trace, proof, pictures."""

from __future__ import annotations

import json
import shlex
from math import ceil, floor
from pathlib import Path

from cspsched.problem.instance import Instance
from cspsched.referee.metrics import measure
from cspsched.report import figures
from cspsched.report.files import png
from cspsched.report.output import write_files
from cspsched.report.table import excess
from cspsched.studies.adversary import Adversary, AdversarySearch
from cspsched.trace.write import trace_text

TRACE_FILE, SCHEDULE_FILE = "trace.csv", "schedule.json"


def text(search: AdversarySearch) -> str:
    """The verdict first, then the requests, then how it was found."""
    worst = search.worst
    found = f"{search.trials:,} traces scored, {search.proofs} solved; {search.stop_reason}"
    if worst is None:
        return f"{search.task.policy}: no trace was proven ({found})"
    lines = [_verdict(search, worst), "", "request  arrival [s]  prompt  output"]
    for request in worst.result.instance.requests:
        seconds = f"{request.arrival_ns / 1e9:.9f}"
        lines.append(
            f"{request.request_id:7}  {seconds:>11}  {request.prompt_tokens:6}  {request.output_tokens:6}"
        )
    return "\n".join([*lines, "", found])


def _verdict(search: AdversarySearch, worst: Adversary) -> str:
    """What is proven, in a sentence."""
    objective, count, result = search.objective, search.task.bounds.num_requests, worst.result
    assert result.primal_ns is not None
    assert result.dual_ns is not None
    value = objective.show(worst.rival.value_ns, count)
    head = f"{worst.rival.policy} is {excess(worst.excess)} above the optimum: {objective.label} {value}"
    if worst.is_proven:
        best = objective.show(result.primal_ns, count, ceil)
        return f"{head}; the optimum is {best}, {result.verdict}, proven by {result.certificate}."
    low, high = (objective.show(result.dual_ns, count, floor), objective.show(result.primal_ns, count, ceil))
    return f"{head}; the optimum lies between {low} ({result.certificate}) and {high}."


def solve_command(instance: Instance, objective: str, folder: Path) -> str:
    """The command that solves the saved trace again."""
    limits = instance.limits
    options = {
        "cost": instance.cost.name,
        "kv-blocks": limits.kv_blocks,
        "block-tokens": limits.block_tokens,
        "max-batch-tokens": limits.max_batch_tokens,
        "max-batch-requests": limits.max_batch_requests,
        "max-model-len": limits.max_model_len,
        "preemption": instance.switches.preemption,
        "objective": objective,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["cspsched", "solve", str(folder / TRACE_FILE), *words])


def write_adversary(search: AdversarySearch, worst: Adversary, folder: Path) -> list[Path]:
    """Write trace.csv, schedule.json (the optimum, for `check`), adversary.json and two pictures.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    result = worst.result
    assert result.schedule is not None
    optimum = measure(result.instance, result.schedule).history
    policy = worst.rival.whole_run.metrics.history
    frame = figures.frame_of([policy, optimum])
    label = worst.rival.policy
    return write_files(
        folder,
        {
            TRACE_FILE: trace_text(result.instance.requests),
            SCHEDULE_FILE: json.dumps(result.to_json()) + "\n",
            "adversary.json": json.dumps(search.to_json(), indent=1) + "\n",
            "policy.png": png(figures.batch_figure(policy, label, frame)),
            "optimum.png": png(figures.batch_figure(optimum, f"{result.verdict} schedule", frame)),
        },
    )
