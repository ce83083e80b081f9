"""Single rules of vLLM V1 and Sarathi, at the edge and one step beyond."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction

import pytest

from cspsched.policies.base import make_policy
from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Switches
from cspsched.simulate import LivelockError, PolicyError, simulate
from tests.support.policy_runs import batches, evictions, instance_of, run


def infermax_70b_linear() -> CostModel:
    """The published coefficients in milliseconds per layer, times 80 layers."""

    def ns(text: str) -> Fraction:
        return Fraction(text) * 80 * 1_000_000

    return CostModel(
        name="infermax-70b-linear",
        step=ns("0.159"),
        prefill_batch=ns("0.2112"),
        decode_batch=ns("0.081"),
        prefill_request=ns("9.03e-4"),
        decode_request=ns("3.92e-4"),
        tokens=PiecewiseLinear.linear(ns("0.002")),
        prefill_context=PiecewiseLinear.linear(ns("3.805e-7")),
        decode_context=PiecewiseLinear.linear(ns("1.222e-6")),
    )


def test_vllm_preempts_the_newest_twice_in_example_e5() -> None:
    """E5: three requests (2, 4) on M = 9 take 6 batches and 2 evictions."""
    instance = instance_of(
        (2, 4), (2, 4), (2, 4), kv_blocks=9, max_batch_tokens=16, cost=infermax_70b_linear()
    )
    simulation = run("vllm", instance)

    assert simulation.schedule.num_batches == 6
    assert evictions(simulation) == [(2, 2), (3, 1)]


@pytest.mark.parametrize("text", ["vllm", "sarathi:chunk=100"])
@pytest.mark.parametrize(("prompt", "output", "budget"), [(10, 3, 4), (8, 1, 4), (1, 5, 1), (9, 2, 9)])
def test_a_lone_request_takes_ceil_prompt_over_budget_and_a_batch_a_token(
    text: str, prompt: int, output: int, budget: int
) -> None:
    """E1: ceil(I/C) + O - 1 batches, I + O - 1 tokens, peak I + O - 1."""
    simulation = run(text, instance_of((prompt, output), max_batch_tokens=budget))

    assert simulation.schedule.num_batches == -(-prompt // budget) + output - 1
    assert int(simulation.schedule.tokens.sum()) == prompt + output - 1
    assert int(simulation.schedule.kv_tokens.max()) == prompt + output - 1


def test_vllm_runs_decodes_before_new_prefills_within_the_budget() -> None:
    """The running request first, the waiting one gets what is left of C = 4."""
    simulation = run("vllm", instance_of((2, 4), (9, 1, 1), max_batch_tokens=4))

    assert batches(simulation) == [[(0, 2)], [(0, 1), (1, 3)], [(0, 1), (1, 3)], [(0, 1), (1, 3)]]


@pytest.mark.parametrize(("threshold", "first"), [(0, [(0, 8)]), (3, [(0, 3), (1, 3)]), (8, [(0, 8)])])
def test_vllm_cuts_long_prefills_to_the_threshold(threshold: int, first: list[tuple[int, int]]) -> None:
    """With a budget of 8 and two requests of 8 tokens."""
    text = f"vllm:long_prefill_token_threshold={threshold}"
    simulation = run(text, instance_of((8, 1), (8, 1), max_batch_tokens=8))

    assert batches(simulation)[0][: len(first)] == first


def test_vllm_does_not_cut_the_prefill_of_a_lone_request() -> None:
    """The threshold is for the sake of others."""
    simulation = run("vllm:long_prefill_token_threshold=3", instance_of((8, 1)))

    assert batches(simulation) == [[(0, 8)]]


def test_vllm_without_chunking_waits_for_a_budget_that_holds_the_prompt() -> None:
    """The second prompt of 5 does not fit beside the first in C = 8."""
    text = "vllm:enable_chunked_prefill=false"
    simulation = run(text, instance_of((5, 1), (5, 1), max_batch_tokens=8))

    assert batches(simulation) == [[(0, 5)], [(1, 5)]]


def test_vllm_chunks_as_the_instance_allows() -> None:
    """By default the instance's switch decides."""
    switches = Switches(chunked_prefill=False)
    simulation = run("vllm", instance_of((5, 1), (5, 1), max_batch_tokens=8, switches=switches))

    assert batches(simulation) == [[(0, 5)], [(1, 5)]]


def test_vllm_without_chunking_is_stuck_on_a_refill_beyond_the_budget() -> None:
    """Like the real engine, which refuses such a budget; here the error says who waits."""
    instance = instance_of((2, 5), (2, 5), kv_blocks=9, max_batch_tokens=4)
    with pytest.raises(PolicyError, match=r"policy vllm:enable_chunked_prefill=false schedules nothing"):
        simulate(instance, make_policy("vllm:enable_chunked_prefill=false"))


@pytest.mark.parametrize(("reserve", "second"), [("true", []), ("false", [(1, 3)])])
def test_vllm_admits_only_prompts_that_fit_as_a_whole(
    reserve: str, second: Sequence[tuple[int, int]]
) -> None:
    """5 of 9 blocks are taken; the prompt of 6 does not fit, its first chunk of 3 does."""
    text = f"vllm:scheduler_reserve_full_isl={reserve}"
    simulation = run(text, instance_of((5, 1), (6, 1), kv_blocks=9, max_batch_tokens=8))

    assert batches(simulation)[0] == [(0, 5), *second]


@pytest.mark.parametrize(("watermark", "admitted"), [(0.0, 2), (0.1, 2), (0.19, 1)])
def test_vllm_keeps_the_watermark_free_while_others_run(watermark: float, admitted: int) -> None:
    """int(0.1 * 11) = 1 block is left by 5 + 4 of 10, int(0.19 * 11) = 2 are not."""
    simulation = run(f"vllm:watermark={watermark}", instance_of((5, 1), (4, 1), kv_blocks=10))

    assert len(batches(simulation)[0]) == admitted


def test_vllm_waives_the_watermark_for_the_first_request() -> None:
    """No request runs, so a prompt may take the whole device."""
    simulation = run("vllm:watermark=0.5", instance_of((10, 1), kv_blocks=10))

    assert simulation.held_blocks.tolist() == [10]


@pytest.mark.parametrize(("setting", "limit", "most"), [(2, 5, 2), (5, 2, 2), (9, 3, 3)])
def test_vllm_obeys_the_tighter_of_setting_and_instance(setting: int, limit: int, most: int) -> None:
    """For the requests that run at a time, and for the tokens in a batch."""
    rows = [(1, 3)] * 5
    by_requests = run(f"vllm:max_num_seqs={setting}", instance_of(*rows, max_batch_requests=limit))
    by_tokens = run(f"vllm:max_num_batched_tokens={setting}", instance_of(*rows, max_batch_tokens=limit))

    assert max(map(len, batches(by_requests))) == most
    assert max(map(len, batches(by_tokens))) == most


def test_vllm_admits_nobody_in_a_step_with_a_preemption() -> None:
    """The victim frees 4 blocks, and the waiting request of 1 token still has to wait a batch."""
    instance = instance_of((4, 4), (4, 4), (1, 1, 1), kv_blocks=9, max_batch_requests=2)
    simulation = run("vllm", instance)

    assert evictions(simulation)[0] == (1, 1)
    assert batches(simulation)[1] == [(0, 1)]
    assert batches(simulation)[2][0] == (0, 1)


def test_vllm_puts_a_preempted_request_before_the_waiting_ones() -> None:
    """The victim, admitted before, is refilled before the third request starts."""
    simulation = run("vllm", instance_of((3, 4), (3, 4), (3, 1), kv_blocks=7))
    order = [request for batch in batches(simulation) for request, _ in batch]

    assert evictions(simulation)[0] == (1, 1)
    assert order.index(2) > max(k for k, request in enumerate(order[:-1]) if request == 0)


def test_vllm_is_strict_at_the_head_of_the_queue() -> None:
    """A prompt that does not fit holds back one that would."""
    simulation = run("vllm", instance_of((5, 2), (6, 1), (1, 1), kv_blocks=10))

    assert [len(batch) for batch in batches(simulation)] == [1, 1, 2]


def test_vllm_priority_takes_a_victim_out_of_the_batch_again() -> None:
    """r0 is first in the batch and the least important; r1 needs its block."""
    rows = [(3, 4, 0, 2), (3, 4, 1, 1)]
    simulation = run("vllm:policy=priority", instance_of(*rows, kv_blocks=8, max_batch_tokens=4))
    j, request = evictions(simulation)[0]

    assert request == 0
    assert [entry[0] for entry in batches(simulation)[j]] == [1]


def test_vllm_priority_serves_equals_by_arrival_then_name() -> None:
    """(priority, arrival, name)."""
    rows = [(1, 1, 0, 1), (1, 1, 0, 0), (1, 1, 0, 0)]
    simulation = run("vllm:policy=priority", instance_of(*rows, max_batch_requests=1))

    assert simulation.schedule.request.tolist() == [1, 2, 0]


def test_vllm_priority_without_reservation_can_evict_in_a_circle() -> None:
    """Two equals refill at one token a batch, each evicting the other: an error, not an endless loop."""
    rows = [(1, 1), (1, 4), (1, 4)]
    instance = instance_of(*rows, kv_blocks=4, max_batch_tokens=2, max_batch_requests=2)
    text = "vllm:policy=priority,long_prefill_token_threshold=1,scheduler_reserve_full_isl=false"
    with pytest.raises(LivelockError, match="evicts in a circle: 201 evictions since the last generated"):
        simulate(instance, make_policy(text))


def test_sarathi_logs_prefills_before_decodes() -> None:
    """The decode takes its token of the chunk first, and stands behind the prefill."""
    simulation = run("sarathi:chunk=4", instance_of((2, 3), (6, 1, 1)))

    assert batches(simulation) == [[(0, 2)], [(1, 3), (0, 1)], [(1, 3), (0, 1)]]


def test_sarathi_allocates_the_whole_prompt_at_once() -> None:
    """10 tokens in blocks of 4 hold 3 blocks from the first chunk on; decodes take more when they must."""
    simulation = run("sarathi:chunk=4", instance_of((10, 4), block_tokens=4))

    assert simulation.held_blocks.tolist() == [3, 3, 3, 3, 3, 4]


def test_sarathi_preempts_while_no_block_is_free_even_if_none_is_needed() -> None:
    """Two requests fill 2 blocks of 4 tokens; the later one is evicted though both have room."""
    simulation = run("sarathi", instance_of((2, 2), (2, 2), kv_blocks=2, block_tokens=4))

    assert evictions(simulation) == [(1, 1)]
    assert batches(simulation)[1] == [(0, 1)]


def test_sarathi_never_evicts_the_earliest_arrival() -> None:
    """The latest goes first; later victims are among the rest."""
    rows = [(4, 9), (3, 9, 1), (2, 9, 2)]
    victims = [request for _, request in evictions(run("sarathi", instance_of(*rows, kv_blocks=14)))]

    assert victims[0] == 2
    assert 0 not in victims


def test_sarathi_finishes_a_request_that_fills_the_device() -> None:
    """Alone it evicts itself before every decode, and each refill yields a token."""
    simulation = run("sarathi", instance_of((3, 2), kv_blocks=1, block_tokens=4))

    assert evictions(simulation) == [(1, 0)]
    assert batches(simulation) == [[(0, 3)], [(0, 4)]]


@pytest.mark.parametrize(("watermark", "admitted"), [(0.1, 2), (0.2, 1)])
def test_sarathi_keeps_the_watermark_free(watermark: float, admitted: int) -> None:
    """5 + 4 of 10 blocks leave one."""
    simulation = run(f"sarathi:watermark={watermark}", instance_of((5, 1), (4, 1), kv_blocks=10))

    assert len(batches(simulation)[0]) == admitted


def test_sarathi_waives_the_watermark_while_nothing_runs() -> None:
    """A prompt that fits only below the watermark is served once the device is empty."""
    simulation = run("sarathi:watermark=0.2", instance_of((3, 2), (10, 1), kv_blocks=10))

    assert batches(simulation) == [[(0, 3)], [(0, 1)], [(1, 10)]]


@pytest.mark.parametrize(("setting", "limit", "most"), [(2, 5, 2), (5, 2, 2), (9, 3, 3)])
def test_sarathi_obeys_the_tighter_of_setting_and_instance(setting: int, limit: int, most: int) -> None:
    """For the requests that run at a time, and for the chunk."""
    rows = [(1, 3)] * 5
    by_requests = run(f"sarathi:max_num_seqs={setting}", instance_of(*rows, max_batch_requests=limit))
    by_tokens = run(f"sarathi:chunk={setting}", instance_of(*rows, max_batch_tokens=limit))

    assert max(map(len, batches(by_requests))) == most
    assert max(map(len, batches(by_tokens))) == most


def test_importing_policies_loads_no_heavy_package() -> None:
    """Nor does simulating: solver, compiler and plots stay out."""
    heavy = ("numba", "ortools", "sklearn", "matplotlib", "pandas", "torch")
    code = (
        "import sys, cspsched.simulate, cspsched.policies.base as base; "
        "[base.make_policy(name) for name in base.BUILT_IN]; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert output.stdout.strip() == "[]"
