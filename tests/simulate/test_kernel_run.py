"""What a kernel run says beside the schedule, its errors, and the front door."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from cspsched.compiled.jit import compiled
from cspsched.errors import InputError, UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.cost import BatchFeatures, CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance
from cspsched.referee.metrics import measure
from cspsched.simulate import LivelockError, PolicyError, simulate
from cspsched.simulate.aggregated.loops import run_vllm
from cspsched.simulate.aggregated.state import Aggregated, Batch
from cspsched.simulate.kernel import KernelRun, Rules, Workload, layout, run_workload, simulate_fast
from cspsched.simulate.kernel.cost import flatten_cost, flatten_exactly
from cspsched.simulate.kernel.failures import failure
from cspsched.simulate.kernel.logs import Logs
from cspsched.simulate.kernel.memory import new_kernel
from cspsched.simulate.kernel.records import PolicyState
from cspsched.simulate.kernel.rules import Order, Reserve
from tests.support.kernel_cases import BY_REQUEST, SETTINGS, digest, draw_case
from tests.support.scripted import LastFirst
from tests.support.strategies import EVERY_TERM, UNIT, make_instance

VLLM = make_policy("vllm")


def rules_of(**values: Any) -> Rules:
    """Rules of small numbers, for what is made before they are run."""
    limits = ("kv_blocks", "block_tokens", "max_tokens", "max_running", "batch_tokens", "most_holders")
    return Rules(**(dict.fromkeys(limits, 9) | {"run": run_vllm, "own": Aggregated()} | values))


@cache
def random_runs() -> list[tuple[Instance, KernelRun]]:
    """A few finished runs of every policy, made for the first test that looks at them."""
    cases = [draw_case(name, seed) for name in SETTINGS | BY_REQUEST for seed in range(12)]
    runs = []
    for instance, policy in filter(None, cases):
        try:
            runs.append((instance, simulate_fast(instance, policy, plain=True)))
        except PolicyError:
            continue
    return runs


def test_the_random_runs_are_worth_looking_at() -> None:
    """There are enough of them, and preemptions in several."""
    assert len(random_runs()) > 200
    assert sum(bool(run.num_preemptions.any()) for _, run in random_runs()) > 10


def test_times_of_requests_are_those_of_the_metrics() -> None:
    """First token and last token per request, as measured on the schedule entry by entry."""
    for instance, run in random_runs():
        metrics = measure(instance, run.to_simulation().schedule)

        assert (run.first_token_ns - metrics.arrival_ns).tolist() == metrics.ttft_ns.tolist()
        assert (run.finish_ns - metrics.arrival_ns).tolist() == metrics.latency_ns.tolist()


def test_a_request_is_scheduled_when_its_first_batch_starts() -> None:
    """Also if that admission was lost to preemption later."""
    for _, run in random_runs():
        schedule = run.to_simulation().schedule
        starts = schedule.start_ns[schedule.batch_of_entry]
        requests, first_entries = np.unique(schedule.request, return_index=True)

        assert run.scheduled_ns[requests].tolist() == starts[first_entries].tolist()


def test_preemptions_are_counted_per_request() -> None:
    """How often each was evicted, and the KV entries that it lost."""
    for instance, run in random_runs():
        history = measure(instance, run.to_simulation().schedule).history
        evicted, count = history.schedule.evicted_request, len(instance.requests)

        assert run.num_preemptions.tolist() == np.bincount(evicted, minlength=count).tolist()
        lost = np.bincount(evicted, weights=history.kv_lost, minlength=count)
        assert run.recomputed_tokens.tolist() == lost.tolist()


def test_gaps_between_tokens_come_out_weighted() -> None:
    """The pooled ITL gaps of all requests, without a list of all tokens."""
    for instance, run in random_runs():
        gaps, times = run.itl_gaps()
        metrics = measure(instance, run.to_simulation().schedule)

        assert np.sort(np.repeat(gaps, times)).tolist() == np.sort(metrics.itl_ns).tolist()


def test_batches_count_what_is_in_them_and_who_runs() -> None:
    """Prefills, decodes and prefill tokens; running = arrived - finished - waiting, as known then."""
    for instance, run in random_runs():
        features = measure(instance, run.to_simulation().schedule).history.features
        counts, decided_ns = run.batch_counts, run.decided_ns
        arrived = np.searchsorted(np.sort(run.workload.arrival_ns), decided_ns, side="right")
        finished = np.searchsorted(np.sort(run.finish_ns), decided_ns, side="right")

        assert counts[:, 0].tolist() == features.num_prefills.tolist()
        assert counts[:, 1].tolist() == features.num_decodes.tolist()
        assert counts[:, 2].tolist() == features.prefill_tokens.tolist()
        assert counts[:, 5].tolist() == (arrived - finished - counts[:, 4]).tolist()


COLUMNS = Workload(
    arrival_ns=np.zeros(3, dtype=np.int64),
    prompt_tokens=np.array([5, 3, 8], dtype=np.int32),
    output_tokens=np.array([9, 4, 2], dtype=np.int32),
)


def test_columns_without_requests_give_the_same_run() -> None:
    """A workload of arrays needs no instance beside the rules and the cost."""
    instance = make_instance((5, 9), (3, 4), (8, 2), kv_blocks=14, cost=EVERY_TERM)
    rules = VLLM.kernel_rules(instance)
    run = run_workload(COLUMNS, rules, EVERY_TERM, label="vllm")

    assert digest(run.to_simulation()) == digest(simulate(instance, VLLM, "plain"))


@pytest.mark.parametrize(
    ("column", "value"), [("arrival_ns", -1), ("prompt_tokens", 0), ("output_tokens", 0)]
)
def test_a_workload_refuses_nonsense(column: str, value: int) -> None:
    """Times before 0 and requests without tokens are named."""
    ones = {name: np.ones(2, dtype=np.int64) for name in ("arrival_ns", "prompt_tokens", "output_tokens")}
    ones[column] = np.array([1, value])

    with pytest.raises(InputError, match=f"{column} goes from {value} to 1, expected"):
        Workload(**ones)


def test_a_workload_refuses_columns_of_different_length() -> None:
    """All columns are of the same requests."""
    with pytest.raises(InputError, match="output_tokens has the shape"):
        Workload(arrival_ns=np.ones(2), prompt_tokens=np.ones(2), output_tokens=np.ones(3))


def test_ranks_of_the_queue() -> None:
    """Priority goes before arrival and arrival before name; equals in both are equally important."""
    workload = Workload(
        arrival_ns=np.array([5, 0, 5, 5]),
        prompt_tokens=np.array([4, 3, 2, 1], dtype=np.int32),
        output_tokens=np.array([1, 2, 2, 9], dtype=np.int32),
        priority=np.array([1, 2, 1, 0]),
        names=["d", "a", "b", "c"],
    )
    rules = rules_of()

    assert workload.queue_order(rules).tolist() == [1, 0, 2, 3]
    assert workload.queue_order(replace(rules, order=Order.PRIORITY)).tolist() == [3, 2, 0, 1]
    assert workload.importance().tolist() == [1, 2, 1, 0]
    assert workload.queue_order(replace(rules, order=Order.OUTPUT)).tolist() == [0, 1, 2, 3]
    assert workload.queue_order(replace(rules, order=Order.VOLUME)).tolist() == [0, 2, 1, 3]


def test_evictions_without_end_are_a_livelock() -> None:
    """More than a hundred fruitless evictions per request there: no policy that the kernel knows does so."""
    instance = make_instance((4, 60))
    rules = VLLM.kernel_rules(instance)
    kernel = new_kernel(Workload.from_instance(instance), rules, flatten_cost(UNIT, rules, 63))
    assert compiled(run_vllm)(kernel) == layout.LOG_FULL
    kernel.now.num_fruitless = 101
    kernel = Logs().grow(kernel)

    assert compiled(run_vllm)(kernel) == layout.LIVELOCK
    error = failure(layout.LIVELOCK, kernel, rules, "vllm", str)
    assert isinstance(error, LivelockError)
    assert "evicts in a circle: 101 evictions since the last generated token" in str(error)


def test_nothing_scheduled_for_ever_is_the_same_error() -> None:
    """A refill beyond the budget, with chunks off: plain and compiled it is said how many wait."""
    instance = make_instance((4, 9), (4, 9), kv_blocks=16, max_batch_tokens=5, chunked_prefill=False)
    errors = []
    for engine in ("plain", "compiled"):
        with pytest.raises(PolicyError, match="nothing although nothing more can arrive") as caught:
            simulate(instance, VLLM, engine)
        errors.append(str(caught.value))

    assert errors[0] == errors[1]


def test_a_refused_prompt_is_named() -> None:
    """The request's own name stands in the error, plain and compiled."""
    instance = make_instance((40, 2), max_batch_tokens=50)
    policy = make_policy("vllm-v0:max_num_batched_tokens=20")

    for engine in ("plain", "compiled"):
        with pytest.raises(PolicyError, match="request 'r0' has 40 tokens to prefill"):
            simulate(instance, policy, engine)


def test_a_request_that_fits_nowhere_is_refused() -> None:
    """Plain and compiled; columns, too."""
    instance = make_instance((40, 20), (1, 1), kv_blocks=30)

    for plain in (True, False):
        with pytest.raises(InputError, match="remove such requests first"):
            simulate_fast(instance, VLLM, plain=plain)
    with pytest.raises(InputError, match="needs 59 tokens of KV cache"):
        run_workload(Workload.from_instance(instance), VLLM.kernel_rules(instance), UNIT, label="vllm")


def test_a_policy_that_decides_step_by_step_is_not_compiled() -> None:
    """To be compiled is a promise; the front door without a name runs it plain, however long the trace is."""
    arrivals = [10 * index for index in range(5000)]
    instance = make_instance(*[(3, 1)] * 5000, arrivals_ns=arrivals)
    policy = LastFirst()

    with pytest.raises(
        UsageError, match="policy last-first:1 decides step by step in Python, which is not compiled"
    ):
        simulate(instance, policy, "compiled")
    assert simulate(instance, policy).schedule == simulate(instance, VLLM, "plain").schedule


def test_numbers_beyond_64_bits_are_left_to_plain_python() -> None:
    """A batch of more than 2^58 ns in one term is refused, not wrapped around."""
    instance = make_instance((4, 4), cost=CostModel(name="slow", step=Fraction(2**58)))

    with pytest.raises(UsageError, match="the numbers are too large for compiled code; run it plain"):
        simulate_fast(instance, VLLM)
    assert simulate(instance, VLLM).schedule.end_ns[-1] == 4 * 2**58


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_the_front_door_gives_what_plain_python_gives(engine: str) -> None:
    """On a trace large enough to be compiled without being asked."""
    arrivals = [40 * index for index in range(5000)]
    instance = make_instance(*[(3, 2)] * 5000, arrivals_ns=arrivals, kv_blocks=20, cost=EVERY_TERM)

    assert digest(simulate(instance, VLLM, engine)) == digest(simulate(instance, VLLM, "plain"))


def test_flat_costs_are_the_cost_model() -> None:
    """Constants rounded up, a row for each term, its knots as far as a batch can reach, the price of a swap.

    Plain Python has numbers of any size: there all knots are kept.
    """
    rules = rules_of(kv_blocks=8, block_tokens=1, max_tokens=3, max_running=2, batch_tokens=3, most_holders=2)
    rules = replace(rules, reserve=Reserve.CHUNK)
    cost = CostModel(
        name="two terms",
        step=Fraction(7, 2),
        tokens=PiecewiseLinear((0, 4, 90), (Fraction(1), Fraction(0), Fraction(5, 3))),
        decode_request=Fraction(1, 7),
        swap_block=Fraction(5, 6),
    )
    position = BatchFeatures._fields.index

    assert flatten_cost(cost, rules, largest_peak=8).tolist() == [
        [4, 0, 0, 3],
        [position("tokens"), 3, 3, 5],
        [position("num_decodes"), 7, 5, 6],
        [0, 0, 3, 0],
        [4, 12, 0, 0],
        [0, 0, 1, 0],
        [5, 6, 0, 0],
    ]
    assert flatten_exactly(cost).tolist()[1:6] == [
        [position("tokens"), 3, 3, 6],
        [position("num_decodes"), 7, 6, 7],
        [0, 0, 3, 0],
        [4, 12, 0, 0],
        [90, 12, 5, 0],
    ]


ELSEWHERE = {
    "run", "own", "order_columns", "ranks", "places", "by_priority", "stages", "keeps_notes", "ttft_limit_ns",
    "tpot_limit_ns", "entries", "cancel", "expected_tokens"}  # fmt: skip
"""What stands in the columns of requests, in the policy's own record, or in the schedule."""


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    "rules",
    [
        rules_of(
            kv_blocks=5, block_tokens=2, max_tokens=7, max_running=3, order=Order.PRIORITY,
            own=Aggregated(batch=Batch.TURNS, future_extra=9, waiting_ratio=0.3), ranks=True,
        ),
        rules_of(
            kv_blocks=5, block_tokens=2, max_tokens=7, max_running=3, batch_tokens=8, most_holders=4,
            own=PolicyState(asks=9), clients=True, keeps_notes=True, lockstep=False, stages=(4, 2),
        ),
    ],
    ids=["aggregated", "by request"],
)  # fmt: skip
def test_rules_are_in_the_state_by_their_names(rules: Rules, plain: bool) -> None:  # noqa: FBT001
    """Every field, and of the policy's own record whole numbers and floats alike."""
    kernel = new_kernel(COLUMNS, rules, flatten_cost(UNIT, rules, 8), plain=plain)
    names = {field.name for field in fields(rules)} - ELSEWHERE

    assert {name: getattr(kernel.now, name) for name in names} == {n: getattr(rules, n) for n in names}
    assert not any(hasattr(kernel.now, name) for name in ELSEWHERE)
    own = [field.name for field in fields(rules.own)]
    assert [getattr(kernel.own, name) for name in own] == [getattr(rules.own, name) for name in own]


def test_clients_are_numbered_by_their_first_arrival() -> None:
    """Whatever their numbers in the columns are."""
    workload = replace(COLUMNS, arrival_ns=np.array([9, 5, 7]), client=np.array([0, 7, 0], dtype=np.int32))

    assert workload.clients_by_arrival().tolist() == [1, 0, 1]


def test_policies_and_rules_load_no_compiler() -> None:
    """Numba is loaded by a run, not by a question whether the kernel knows a policy."""
    code = (
        "import sys; import cspsched.simulate.kernel; from cspsched.policies.base import make_policy; "
        "make_policy('vllm'); sys.exit('numba' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_small_run_loads_no_compiler() -> None:
    """Simulated, judged and measured in plain Python: numba alone takes longer to load."""
    code = (
        "import sys; from cspsched.cli import main; "
        "sys.argv = ['cspsched', 'simulate', 'tiny-12', '--policy', 'vllm', '--json']\n"
        "try: main()\nexcept SystemExit: pass\nsys.exit('numba' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert json.loads(done.stdout)["policy"] == "vllm"
    assert done.returncode == 0
