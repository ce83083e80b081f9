"""`cspsched adversary`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import show, step, tell
from cspsched.cli.group import INTERRUPTED
from cspsched.cli.options import (
    MOST_SEED,
    Count,
    Duration,
    ManyValuesCommand,
    heuristic_option,
    json_option,
    objective_option,
    out_type,
    workers_option,
)
from cspsched.errors import LimitError

if TYPE_CHECKING:
    from cspsched.problem.instance import Instance

STAGE_OPTIONS = (
    click.option("--cost", default="h100-llama-3.1-8b", show_default=True,
                 help="Cost model (see 'cspsched costs')."),
    click.option("--kv-blocks", type=Count(), default=12, show_default=True,
                 help="KV capacity in blocks: so few that memory binds."),
    click.option("--block-tokens", type=Count(), default=1, show_default=True,
                 help="Tokens of a KV block."),
    click.option("--max-batch-tokens", type=Count(), default=8, show_default=True,
                 help="C: token budget of a batch."),
    click.option("--max-batch-requests", type=Count(), default=4, show_default=True,
                 help="R: most requests in a batch."),
    click.option("--preemption", type=click.Choice(["none", "recompute"]), default="recompute",
                 show_default=True, help="May a request lose its KV cache and compute it again?"),
)  # fmt: skip
"""Where the policy is to be embarrassed: limits so small that optima are proven in seconds."""
BOUND_OPTIONS = (
    click.option("--requests", type=click.IntRange(min=2, max=20), default=5, show_default=True,
                 help="Requests of a trace."),
    click.option("--most-prompt", type=Count(), default=8, show_default=True,
                 help="Longest prompt in tokens."),
    click.option("--most-output", type=Count(), default=8, show_default=True,
                 help="Longest output in tokens."),
    click.option("--most-arrival", type=click.IntRange(min=0), default=12, show_default=True,
                 help="Latest arrival, in batches of one token; 0: all come at once."),
)  # fmt: skip


def _all_of(command: Any) -> Any:
    for option in reversed((*BOUND_OPTIONS, *STAGE_OPTIONS)):
        command = option(command)
    return command


@click.command("adversary", cls=ManyValuesCommand)
@heuristic_option
@objective_option
@click.option(
    "--time-limit",
    type=Duration(),
    help="Longest wait, proofs included.  [default: 60s, or none with --trials]",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Traces to be scored; without --time-limit work is counted, and the result repeats.",
)
@_all_of
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=MOST_SEED),
    default=0,
    show_default=True,
    help="Of the search and the exact solver.",
)
@workers_option
@click.option(
    "--out", type=out_type, help="Folder for trace.csv, schedule.json, adversary.json and pictures."
)
@json_option
def adversary_command(
    policy: str,
    objective: str,
    time_limit: float | None,
    trials: int | None,
    requests: int,
    most_prompt: int,
    most_output: int,
    most_arrival: int,
    seed: int,
    workers: int,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> int:
    """Search small traces on which a policy is provably furthest from optimal.

    Lengths and arrivals are changed at random, and what makes the policy worse against list schedules is
    kept; the exact solver proves how far it is above the optimum. Ctrl-C and the limits keep the worst trace.

    \b
    cspsched adversary --heuristics sarathi --requests 5 --out worst
    cspsched adversary --heuristics my_file.py:MyPolicy --objective makespan --kv-blocks 16
    cspsched adversary --heuristics orca --trials 600 --seed 3 --json
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.problem.result import StopReason
    from cspsched.report import adversary as report
    from cspsched.report.output import require_writable
    from cspsched.studies.adversary import AdversaryLimits, AdversaryTask, Bounds, find_adversary

    if out is not None:
        require_writable(out)
    if time_limit is None and trials is None:
        time_limit = 60.0
    task = AdversaryTask(
        policy=policy,
        stage=_stage(**options),
        objective=objective,
        bounds=Bounds(
            num_requests=requests,
            prompt_tokens=most_prompt,
            output_tokens=most_output,
            arrival_ticks=most_arrival,
        ),
        limits=AdversaryLimits(time_limit_s=time_limit, trials=trials, seed=seed, num_workers=workers),
    )
    search = find_adversary(task, on_step=step)
    show(json.dumps(search.to_json(), indent=1) if as_json else report.text(search))
    interrupted = search.stop_reason is StopReason.INTERRUPTED
    if search.worst is None and not interrupted:
        raise LimitError(
            f"no trace was found that {policy} serves worse than the optimum; give a longer --time-limit or "
            "more --trials, or other limits"
        )
    if search.worst is not None and out is not None:
        written = report.write_adversary(search, search.worst, out)
        tell(f"wrote {written[0]} and {len(written) - 1} more files to {out}; to prove it again:")
        tell(f"cspsched check {out / report.SCHEDULE_FILE}")
        tell(report.solve_command(search.worst.result.instance, objective, out))
    return INTERRUPTED if interrupted else 0


def _stage(
    *,
    cost: str,
    kv_blocks: int,
    block_tokens: int,
    max_batch_tokens: int,
    max_batch_requests: int,
    preemption: str,
) -> Instance:
    """Limits and cost model; a request that is longer than the device is none."""
    from cspsched.costs.presets import load_cost
    from cspsched.problem.instance import Instance, Limits, Preemption, Switches
    from cspsched.problem.request import Request

    smallest = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)
    limits = Limits(
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_model_len=kv_blocks * block_tokens,
    )
    switches = Switches(preemption=Preemption(preemption))
    return Instance(requests=(smallest,), limits=limits, cost=load_cost(cost), switches=switches)
