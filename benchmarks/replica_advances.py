"""What it costs to advance a replica: a million times in compiled code, and from Python.

Usage: python benchmarks/replica_advances.py [--requests 2000]

A busy replica is advanced by equal steps from the first to the last event of a trace, an idle one after its
last request has finished. The schedule of the busy one is that of a run in one piece, which is asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numba as nb
import numpy as np

from cspsched.compiled.jit import compiled
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance
from cspsched.serving import Serving, make_instance
from cspsched.simulate.aggregated.loops import run_vllm
from cspsched.simulate.kernel import KernelReplica, simulate_fast
from cspsched.simulate.kernel.layout import FINISHED, Kernel
from cspsched.trace import read_trace
from cspsched.trace.shipped import shipped_trace_path

ADVANCES = 1_000_000
RUN = compiled(run_vllm)


@nb.njit
def advance_often(k: Kernel, first_ns: int, step_ns: int, count: int) -> int:
    """Advance by equal steps; how often the loop did not come to the time asked for."""
    failed = 0
    for number in range(count):
        k.now.until_ns = first_ns + number * step_ns
        failed += RUN(k) != FINISHED
    return failed


def cpu_s(run: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def submitted(instance: Instance) -> KernelReplica:
    """A replica that knows all arrivals."""
    replica = KernelReplica(instance, make_policy("vllm"))
    for request in np.argsort([one.arrival_ns for one in instance.requests], kind="stable").tolist():
        replica.submit(request)
    return replica


def main() -> None:
    """Print microseconds for each advance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    trace = read_trace(shipped_trace_path("chat-2000"), limit=options.requests)
    instance = make_instance(trace, Serving())
    whole = simulate_fast(instance, make_policy("vllm"))
    end_ns = int(whole.finish_ns.max())
    advance_often(submitted(instance).kernel, 0, 1, 1)
    alone = min(cpu_s(lambda: simulate_fast(instance, make_policy("vllm"))) for _ in range(3))
    replica = submitted(instance)
    kernel = replica.kernel
    busy = cpu_s(lambda: advance_often(kernel, 0, end_ns // ADVANCES + 1, ADVANCES))
    idle = cpu_s(lambda: advance_often(kernel, end_ns, 1000, ADVANCES))
    finish_ns = replica.finish_run().finish_ns
    assert np.array_equal(finish_ns, whole.finish_ns), "another schedule than that of one piece"
    replica = submitted(instance)
    times = np.linspace(0, end_ns, 20_000).astype(int).tolist()
    python = cpu_s(lambda: [replica.advance(time_ns) for time_ns in times])
    print(f"{len(instance.requests)} requests, {whole.num_batches} batches, one piece {alone:.3f} s")
    print(f"compiled, busy {busy / ADVANCES * 1e6:.3f} us an advance, the batches included; idle "
          f"{idle / ADVANCES * 1e6:.3f} us; from Python {python / len(times) * 1e6:.2f} us")  # fmt: skip


if __name__ == "__main__":
    main()
