"""Write the frozen instances of the exact solver's benchmark suite.

Usage: python benchmarks/exact_instances.py [--out FOLDER]

Every instance follows from its family, size and seed, and from the shipped cost models and generators, which
may change: the files are frozen, and written again only to start a new suite. A file holds one family and
size, one instance a line, each in the schema `cspsched/instance/1` with its cost model in it.

* tiny: N 3-6, prompts 10-60, outputs 3-20, M = 0.35 of the sum of peaks, all at 0, full class, 50 seeds each.
* expected: E2 to E4 of the specification, and two instances on which a plain model has gaps of 40-60 %.
* packing: the random instances of MC-SF (arXiv 2502.07115): unit batches, run to completion, n 8-60.
* real: windows of the chat generator on H100 and A100 at 50, 80 and 110 % load; memory binds in half of them.
* long: N 5-20, prompts 20-200, outputs 50-200, M = 0.35 of the sum of peaks, all at 0, full class.
* completion: as tiny with outputs 5-20, run to completion; N 8 and 15 with M = 0.35, N 20 with M = 0.6.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cspsched.costs.presets import load_cost
from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits, Preemption, Switches
from cspsched.problem.request import Request
from cspsched.referee.metrics import measure
from cspsched.simulate import simulate
from cspsched.trace.generators import generate_trace, load_profile
from cspsched.units import NS_PER_S

SUITE_SCHEMA = "cspsched/benchmark-instances/1"
FOLDER = Path(__file__).parent / "instances"
COMPLETION = Switches(chunked_prefill=False, holding=False, preemption=Preemption.NONE)
LOADS = (50, 80, 110)
"""Arrival rate in per cent of what the replica serves if all requests are there at 0."""
Shape = tuple[int, int]
Named = tuple[str, Instance]


def instance_of(
    shapes: Sequence[Shape], kv_tokens: int, cost: str, switches: Switches, budget: int = 4096
) -> Instance:
    """Instance with token-granular memory and all requests at 0."""
    return Instance(
        requests=tuple(
            Request(request_id=f"r{k}", arrival_ns=0, prompt_tokens=prompt, output_tokens=output)
            for k, (prompt, output) in enumerate(shapes)
        ),
        limits=Limits(kv_blocks=kv_tokens, block_tokens=1, max_batch_tokens=budget, max_batch_requests=64),
        cost=load_cost(cost),
        switches=switches,
    )


def drawn(
    label: str, count: int, prompts: Shape, outputs: Shape, share: float, switches: Switches
) -> Instance:
    """Uniform lengths; memory is a share of the sum of peaks, at least the largest peak."""
    rng = random.Random(label)
    shapes = [(rng.randint(*prompts), rng.randint(*outputs)) for _ in range(count)]
    peaks = [prompt + output - 1 for prompt, output in shapes]
    return instance_of(shapes, max(max(peaks), int(share * sum(peaks))), "infermax-70b-linear", switches)


def tiny(count: int) -> Iterator[Named]:
    """Small and tight: where schedulers differ and a proof is thinkable."""
    for seed in range(50):
        name = f"tiny-n{count}-s{seed}"
        yield name, drawn(name, count, (10, 60), (3, 20), 0.35, Switches())


def expected() -> Iterator[Named]:
    """E2 to E4 with and without preemption, and two sets of four equal requests."""
    mixed = [(4, 4), (2, 8), (6, 3), (1, 6)]
    kept = Switches(preemption=Preemption.NONE)
    yield "expected-e2", instance_of([(2, 4)] * 3, 9, "infermax-70b-linear", Switches(), 16)
    yield "expected-e3", instance_of([(2, 4)] * 3, 9, "infermax-70b-linear", kept, 16)
    yield "expected-e4-recompute", instance_of(mixed, 16, "infermax-70b-linear", Switches(), 32)
    yield "expected-e4-none", instance_of(mixed, 16, "infermax-70b-linear", kept, 32)
    yield "expected-2-6-x4", instance_of([(2, 6)] * 4, 12, "infermax-70b", Switches(), 64)
    yield "expected-2-8-x4", instance_of([(2, 8)] * 4, 16, "infermax-70b", Switches(), 64)


def hindsight(seed: int, count: int | None = None) -> Instance:
    """E8 of the specification; a count given replaces the one that is drawn."""
    rng = random.Random(seed)
    kv_tokens, drawn_count = rng.randint(30, 50), rng.randint(8, 12)
    shapes = []
    for _ in range(count or drawn_count):
        start = rng.randint(1, 5)
        shapes.append((start + 1, rng.randint(1, kv_tokens - start)))
    return instance_of(shapes, kv_tokens, "unit", COMPLETION)


def packing() -> Iterator[Named]:
    """E8's own two, then four seeds of each size."""
    yield "packing-e8-1000", hindsight(1000)
    yield "packing-e8-1001", hindsight(1001)
    for count in (8, 10, 12, 40, 50, 60):
        for seed in range(2000, 2004):
            yield f"packing-n{count}-s{seed}", hindsight(seed, count)


def real(device: str) -> Iterator[Named]:
    """Windows of chat traffic; every second one with a KV cache that binds."""
    cost = load_cost(f"{device}-llama-3.1-8b")
    for count in (6, 10, 14, 20):
        for k, load in enumerate(LOADS):
            name = f"real-{device}-n{count}-load{load}"
            yield name, window(name, cost, count, load, binding=(k + count // 2) % 2 == 0)


def window(name: str, cost: CostModel, count: int, load: int, *, binding: bool) -> Instance:
    """Requests of the chat generator at a load, which is relative to vLLM with all of them at 0."""
    seed = random.Random(name).randrange(10**6)
    requests = generate_trace(load_profile("chat"), num_requests=count, rate_per_s=1.0, seed=seed).requests
    blocks = [-(-request.peak_kv_tokens // 16) for request in requests]
    limits = Limits(
        kv_blocks=max(max(blocks), sum(blocks) * 35 // 100) if binding else sum(blocks),
        block_tokens=16,
        max_batch_tokens=2048,
        max_batch_requests=256,
    )
    together = Instance(
        requests=tuple(replace(request, arrival_ns=0) for request in requests), limits=limits, cost=cost
    )
    busy_ns = measure(together, simulate(together, make_policy("vllm")).schedule).makespan_ns
    # The generator's clock has a mean gap of a second; at load 1 it is the busy time of a request.
    slower = (busy_ns * 100, count * load * NS_PER_S)
    spread = tuple(
        replace(request, arrival_ns=request.arrival_ns * slower[0] // slower[1]) for request in requests
    )
    return replace(together, requests=spread)


def long(count: int) -> Iterator[Named]:
    """Outputs too long for any model with a cell for each request and batch."""
    for seed in range(4):
        name = f"long-n{count}-s{seed}"
        yield name, drawn(name, count, (20, 200), (50, 200), 0.35, Switches())


def completion() -> Iterator[Named]:
    """The smaller class in which everybody runs to completion."""
    for count, share in ((8, 0.35), (15, 0.35), (20, 0.6)):
        for seed in range(4):
            name = f"completion-n{count}-s{seed}"
            yield name, drawn(name, count, (10, 60), (5, 20), share, COMPLETION)


def files() -> Iterator[tuple[str, Iterator[Named]]]:
    """Every file of the suite and what it holds."""
    yield "expected", expected()
    yield "packing", packing()
    yield "completion", completion()
    for count in (3, 4, 5, 6):
        yield f"tiny-n{count}", tiny(count)
    for device in ("h100", "a100-80"):
        yield f"real-{device}", real(device)
    for count in (5, 10, 20):
        yield f"long-n{count}", long(count)


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for stem, instances in files():
        lines = [f"{json.dumps(name)}: {_compact(instance)}" for name, instance in instances]
        head = f'{{"schema": {json.dumps(SUITE_SCHEMA)}, "instances": {{\n'
        (folder / f"{stem}.json").write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
        print(f"{stem}: {len(lines)} instances")


def _compact(instance: Instance) -> str:
    return json.dumps(instance.to_json(), separators=(",", ":"))


if __name__ == "__main__":
    main()
