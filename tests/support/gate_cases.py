"""A repository with a scheduler in it, as users of the gate have: checkouts that differ in one rule."""

from __future__ import annotations

from pathlib import Path

SCHEDULER = '''
"""Running requests first, then the queue."""

from cspsched.policies.batching import QueueRun


class Mine:
    """First come, first served."""

    name = label = "mine"

    def new_run(self, instance):
        return Run(instance)


class Run(QueueRun):
    def schedule(self, step):
        """Decodes, then prefills."""
        {schedule}
        self.decode(step)
        self.prefill(step)

    def keep_first(self, step):
        """The victim is the last of them."""
        return {victim}

    def fits(self, step, request):
        """A seat is free, and the memory."""
        return len(self.running) < {seats} and super().fits(step, request)
'''
GATE = """
objectives = ["latency", "ttft"]
steps = 10

[limits]
excess_at_most = "{excess}"

[serving]
cost = "infermax-70b"
kv-tokens = 14
block-tokens = 1

[[traces]]
trace = "trace.csv"
name = "burst"

[[policies]]
name = "mine"
head = "scheduler.py:Mine"
"""
ROUND = ((0.0, 8, 5), (0.0, 8, 5), (0.0, 4, 2), (0.05, 3, 5))
"""Arrival in seconds, prompt and output tokens; the first two are equal."""
TRACE = "request_id,arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"r{4 * k + i},{k + arrival},{prompt},{output}\n"
    for k in range(12)
    for i, (arrival, prompt, output) in enumerate(ROUND)
)
"""Twelve rounds: more than the exact solver is tried on, so that the gate takes no second."""


def write_checkout(
    folder: Path,
    *,
    victim: str = "list(self.running)",
    seats: int = 64,
    schedule: str = "pass",
    excess: str = "1000 %",
) -> Path:
    """A folder with gate.toml, a trace and a scheduler; returns the gate's file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = SCHEDULER.format(victim=victim, seats=seats, schedule=schedule)
    (folder / "scheduler.py").write_text(text)
    (folder / "trace.csv").write_text(TRACE)
    (folder / "gate.toml").write_text(GATE.format(excess=excess))
    return folder / "gate.toml"
