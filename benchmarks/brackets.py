"""Certified brackets: the best lower bound of an instance beside the best schedule of the policies.

Usage: python benchmarks/brackets.py [--cases WORD ...] [--traces FOLDER] [--check] [--improve SECONDS]
           [--json FILE]

One row per instance and objective: L and the certificate that gave it, U and what gave it, U/L,
the certified gap (U - L)/U, CPU time of the bound alone, peak memory up to there. The exit code is 1 if
a bound is above a schedule's value. With --improve, U is also searched for so long. Azure traces are read
from --traces; without it their rows are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cspsched.bounds import best_bound, check_certificate
from cspsched.costs.presets import load_cost
from cspsched.errors import CspschedError
from cspsched.improve import ImproveLimits, find_better
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.objectives import Objective
from cspsched.problem.request import Request
from cspsched.simulate.kernel import KernelRun, simulate_fast

POLICIES = (
    "vllm", "vllm:max_num_batched_tokens=512", "vllm:max_num_batched_tokens=1024",
    "sarathi:max_num_seqs=256,chunk=512", "sarathi:max_num_seqs=256,chunk=2048", "vllm-v0:max_num_seqs=256",
    "orca:max_num_seqs=256,reservation=oracle", "simple-chunking:max_num_seqs=256,chunk=2048", "infermax",
    "mc-sf", "smallest-volume",
)  # fmt: skip
LOAD_POLICIES = ("vllm", "sarathi:max_num_seqs=256,chunk=2048", "mc-sf", "smallest-volume")
"""Load 1 is the rate at which the best of these serves the requests when all are there at 0."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bracket; times in seconds, means per request for sums."""

    case: str
    objective: str
    requests: int
    lower: float
    certificate: str
    upper: float
    policy: str
    ratio: float
    gap: float
    bound_cpu_s: float
    peak_mib: float
    certified: bool
    """L <= U, and, with --check, the certificate was derived again."""


def lognormal_cost() -> CostModel:
    """12 ms a batch, 70 us a token, 0.35 us a KV entry read, 1 ns a squared prompt token."""
    return CostModel(
        name="lognormal-study",
        step=Fraction(12_000_000),
        tokens=PiecewiseLinear.linear(70_000),
        decode_context=PiecewiseLinear.linear(350),
        prefill_attention=PiecewiseLinear.linear(2),
    )


def lognormal_requests(count: int, seed: int) -> tuple[Request, ...]:
    """All at 0: prompts of about 660 tokens, outputs of about 165."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(np.rint(rng.lognormal(6.0, 1.0, count)), 1, 8192).astype(int)
    outputs = np.clip(np.rint(rng.lognormal(4.8, 0.8, count)), 1, 2048).astype(int)
    return tuple(
        Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=int(i), output_tokens=int(o))
        for k, (i, o) in enumerate(zip(prompts, outputs, strict=True))
    )


def lognormal_instance(count: int, seed: int = 1) -> Instance:
    """Lognormal lengths under M = 60k, C = 2048, R = 256."""
    limits = Limits(kv_blocks=60_000, block_tokens=1, max_batch_tokens=2048, max_batch_requests=256)
    return Instance(requests=lognormal_requests(count, seed), limits=limits, cost=lognormal_cost())


def azure_requests(path: Path) -> tuple[Request, ...]:
    """A public Azure trace of 2023, arrivals from its first request on."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    start = datetime.fromisoformat(rows[0]["TIMESTAMP"][:26])
    return tuple(
        Request(
            request_id=f"r{k}",
            arrival_ns=round((datetime.fromisoformat(row["TIMESTAMP"][:26]) - start).total_seconds() * 1e9),
            prompt_tokens=int(row["ContextTokens"]),
            output_tokens=max(1, int(row["GeneratedTokens"])),
        )
        for k, row in enumerate(rows)
    )


def at_zero(instance: Instance) -> Instance:
    """The same requests, all there at 0."""
    return replace(instance, requests=tuple(replace(request, arrival_ns=0) for request in instance.requests))


def runs(instance: Instance, policies: tuple[str, ...]) -> Iterator[tuple[str, KernelRun]]:
    """Every policy that can serve the instance, in the compiled kernel."""
    for name in policies:
        try:
            yield name, simulate_fast(instance, make_policy(name))
        except CspschedError as error:
            print(f"  {name}: {str(error)[:90]}", file=sys.stderr)


def at_load(instance: Instance, load: float, seed: int | None) -> Instance:
    """Arrivals at a share of load 1: Poisson from a seed, or the trace's own stretched."""
    together = at_zero(instance)
    busy_s = min(int(run.batch_ns[-1, 1]) for _, run in runs(together, LOAD_POLICIES)) / 1e9
    count = len(instance.requests)
    if seed is None:
        span = instance.requests[-1].arrival_ns / 1e9
        arrivals = [request.arrival_ns * (busy_s / load / span) for request in instance.requests]
    else:
        gaps = np.random.default_rng(seed).exponential(busy_s / count / load, count) * 1e9
        arrivals = list(np.cumsum(gaps) - gaps[0])
    requests = tuple(
        replace(request, arrival_ns=round(arrival))
        for request, arrival in zip(instance.requests, arrivals, strict=True)
    )
    return replace(instance, requests=requests)


def value_ns(run: KernelRun, objective: Objective) -> int:
    """An objective of a run in integer nanoseconds."""
    arrivals = int(run.workload.arrival_ns.sum())
    if objective is Objective.MAKESPAN:
        return int(run.batch_ns[-1, 1])
    times = run.finish_ns if objective is Objective.LATENCY else run.first_token_ns
    return int(times.sum()) - arrivals


def bracket(case: str, instance: Instance, objective: Objective, *, check: bool, improve_s: float) -> Row:
    """Bound first, timed alone; then all policies, and the search."""
    started = time.process_time()
    certificate = best_bound(instance, objective)
    cpu_s = time.process_time() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    values = {name: value_ns(run, objective) for name, run in runs(instance, POLICIES)}
    policy = min(values, key=values.__getitem__)
    upper, lower, count = values[policy], certificate.value_ns, len(instance.requests)
    if improve_s:
        limits = ImproveLimits(time_limit_s=improve_s)
        found, _ = find_better(instance, objective, upper, lower, limits)
        if found is not None:
            upper, policy = found.value_ns, found.found_by.split(",")[0]
    per_request = 1e9 * (1 if objective is Objective.MAKESPAN else count)
    objections = check_certificate(instance, certificate, max_tokens=10**8) if check else []
    return Row(
        case=case,
        objective=str(objective),
        requests=count,
        lower=lower / per_request,
        certificate=certificate.name,
        upper=upper / per_request,
        policy=policy,
        ratio=upper / lower,
        gap=(upper - lower) / upper,
        bound_cpu_s=cpu_s,
        peak_mib=peak_mib,
        certified=lower <= upper and not objections,
    )


def infermax_instance(requests: tuple[Request, ...], tokens: int, budget: int = 16384) -> Instance:
    """InferMax's 70b costs, token-granular memory."""
    limits = Limits(kv_blocks=tokens, block_tokens=1, max_batch_tokens=budget, max_batch_requests=4096)
    return Instance(requests=requests, limits=limits, cost=load_cost("infermax-70b")).split_rejected()[0]


def makespan_cases(traces: Path) -> Iterator[tuple[str, Callable[[], Instance], Objective]]:
    """Real and homogeneous requests, all at 0 and with arrivals."""
    for name in ("conv", "code") if traces.is_dir() else ():
        requests = azure_requests(traces / f"azure2023_{name}.csv")
        for tokens in (100_000, 30_000):
            instance = infermax_instance(requests[:1500], tokens)
            yield f"makespan-{name}-{tokens}", lambda i=instance: at_zero(i), Objective.MAKESPAN
    same = tuple(
        Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=32, output_tokens=1024) for k in range(1024)
    )
    yield "makespan-same-20000", lambda: infermax_instance(same, 20_000, 4096), Objective.MAKESPAN
    if traces.is_dir():
        whole = infermax_instance(azure_requests(traces / "azure2023_conv.csv"), 100_000)
        for load in (0.9, 1.2):
            yield f"arrivals-conv-{load}", lambda x=load: at_load(whole, x, None), Objective.MAKESPAN


def sum_cases(traces: Path) -> Iterator[tuple[str, Callable[[], Instance], Objective]]:
    """Sums of latencies and TTFT: lognormal requests by load, and a fitted cost on a real trace."""
    small = lognormal_instance(1000)
    for objective in (Objective.LATENCY, Objective.TTFT):
        yield f"{objective}-1000-offline", lambda: small, objective
        for load in (0.5, 0.7, 0.9, 1.2):
            yield f"{objective}-1000-{load}", lambda x=load: at_load(small, x, 7), objective
    yield "latency-10000-0.7", lambda: at_load(lognormal_instance(10_000), 0.7, 7), Objective.LATENCY
    if traces.is_dir():
        requests = azure_requests(traces / "azure2023_conv.csv")[:2000]
        limits = Limits(kv_blocks=27_000, block_tokens=16, max_batch_tokens=2048, max_batch_requests=256)
        fitted = Instance(requests=requests, limits=limits, cost=load_cost("h100-llama-3.1-8b"))
        for load in (0.5, 0.9):
            yield f"latency-conv-h100-{load}", lambda x=load: at_load(fitted, x, None), Objective.LATENCY
    million = lognormal_instance(1_000_000)
    for objective in (Objective.MAKESPAN, Objective.LATENCY):
        yield f"{objective}-1000000", lambda: at_load(million, 0.7, 7), objective


def main() -> int:
    """Measure the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[], help="parts of case names; all but the million")
    parser.add_argument("--traces", type=Path, default=Path("shared/data/traces"))
    parser.add_argument("--check", action="store_true", help="derive every certificate again (slow)")
    parser.add_argument("--improve", type=float, default=0.0, help="seconds of search for U in each case")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for case, build, objective in [*makespan_cases(options.traces), *sum_cases(options.traces)]:
        wanted = any(word in case for word in options.cases) if options.cases else "1000000" not in case
        if not wanted:
            continue
        row = bracket(case, build(), objective, check=options.check, improve_s=options.improve)
        rows.append(row)
        print(
            f"{row.case:26} {row.requests:8} L {row.lower:10.4f} {row.certificate:16} U {row.upper:10.4f} "
            f"{row.policy:40} U/L {row.ratio:.3f} gap {row.gap:6.1%} {row.bound_cpu_s:7.2f} s "
            f"{row.peak_mib:6.0f} MiB {'yes' if row.certified else 'NO'}",
            flush=True,
        )
    if options.json:
        document: dict[str, Any] = {"schema": "cspsched/brackets/1", "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(row.certified for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
