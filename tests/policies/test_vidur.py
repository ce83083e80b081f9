"""Vidur's policies rule by rule, its recorded runs replayed, its memory planner."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspsched.costs.vidur_memory import VidurReplica, plan_vidur_memory
from cspsched.costs.vidur_tables import VidurTables
from cspsched.errors import InputError, UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Instance, Switches
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.vidur import VidurReplay, make_setup, replay_vidur_case
from cspsched.recording.vidur_case import VidurCase, find_vidur_cases
from cspsched.recording.vidur_machine import FS_PER_S
from cspsched.recording.vidur_replicas import Replicas
from cspsched.referee.rules import find_violations
from cspsched.serving import Serving, make_instance
from cspsched.simulate import PolicyError, simulate
from cspsched.trace.read import read_trace
from tests.support.places import DATA, DOCS
from tests.support.policy_runs import batches, evictions, instance_of, run

RUNS = DATA / "vidur_reference"
CASES = (
    "l2-70b_a100_tp2_vllm_n128_q2_splitwise_conv_memtight",
    "l2-7b_a100_tp1_orca_n128_q4_splitwise_conv_max1024_cap4",
    "l2-7b_a100_tp1_pp2_sarathi_n128_q8_splitwise_conv",
    "l2-7b_a100_tp1_sarathi_n128_q4_splitwise_conv",
    "l2-7b_a100_tp1_sarathi_n64_offline_blocks256",
    "l2-7b_a100_tp1_vllm_n128_q4_splitwise_conv",
    "l2-7b_a100_tp1_vllm_n12_offline_blocks96",
    "l2-7b_a100_tp1_x3_rr_sarathi_n300_q12_splitwise_conv",
)
NAMES = ("vidur-vllm", "vidur-sarathi", "vidur-orca", "vidur-faster-transformer", "vidur-lightllm")

needs_runs = pytest.mark.skipif(not RUNS.is_dir(), reason="the recorded runs of Vidur are not here")


def with_model_len(instance: Instance, max_model_len: int) -> Instance:
    return replace(instance, limits=replace(instance.limits, max_model_len=max_model_len))


# Recorded runs.


@needs_runs
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("emulate_bugs", [True, False], ids=["bugs", "fixed"])
def test_a_recorded_run_is_equal(name: str, emulate_bugs: bool) -> None:  # noqa: FBT001
    """Every batch and request, times within 1e-9 s; none of these runs met a defect that changes it."""
    replay = replay_vidur_case(RUNS / name, emulate_bugs=emulate_bugs)
    summary = json.loads((RUNS / name / "summary.json").read_text())

    assert replay.difference is None
    assert replay.is_equal
    assert replay.time_error_s < 1e-11
    assert replay.num_batches == summary["batches"]
    assert replay.num_restarts == summary["restarts"]
    assert replay.num_requests == summary["requests"]


@needs_runs
def test_the_recorded_runs_are_these() -> None:
    """Eight, and no ninth that is not replayed."""
    assert tuple(path.name for path in find_vidur_cases(RUNS)) == CASES


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """Two requests on a device where every table says 1 ms: 22 ms a batch of two layers."""
    scheduler = {"name": "sarathi", "batch_size_cap": 8, "block_size": 16, "num_blocks": 20}
    scheduler |= {"watermark_blocks_fraction": 0.01, "chunk_size": 16}
    model = {"num_layers": 2, "num_q_heads": 2, "num_kv_heads": 2, "embedding_dim": 64}
    model |= {"mlp_hidden_dim": 128, "use_gated_mlp": True, "post_attn_norm": True}
    replica = {"model_config": model, "device_config": {"total_memory_gb": 1}, "memory_margin_fraction": 0.1}
    replica |= {"tensor_parallel_size": 1, "num_pipeline_stages": 1}
    predictor = {"attention_decode_batching_overhead_fraction": 0.1, "nccl_cpu_launch_overhead_ms": 0.02}
    predictor |= {"attention_prefill_batching_overhead_fraction": 0.1, "kv_cache_prediction_granularity": 64}
    predictor |= {"nccl_cpu_skew_overhead_per_device_ms": 0.0, "skip_cpu_overhead_modeling": True}
    cluster = {"num_replicas": 1, "global_scheduler_config": {"name": "round_robin"}}
    cluster |= {"replica_config": replica, "replica_scheduler_config": scheduler}
    config = {"time_limit": 0, "cluster_config": cluster, "execution_time_predictor_config": predictor}
    config["request_generator_config"] = {"max_tokens": 64}
    folder = tmp_path / "small_tp1_run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "requests.csv").write_text(
        "request_id,arrived_at,num_prefill_tokens,num_decode_tokens,scheduled_at,prefill_completed_at,"
        "completed_at,execution_time,preempted_time,num_restarts\n"
        "0,0.5,8,2,0.5,0.522,0.544,0.044,0.0,0\n"
        "1,0.51,17,1,0.522,0.566,0.566,0.044,0.0,0\n"
    )
    (folder / "batches.csv").write_text(
        "batch_id,replica_id,scheduled_at,completed_at,batch_size,num_tokens,num_prefill_tokens,request_tokens\n"
        "0,0,0.5,0.522,1,8,8,0:8\n1,0,0.522,0.544,2,16,15,0:1 1:15\n2,0,0.544,0.566,1,2,2,1:2\n"
    )
    names = ("attn_pre_proj", "attn_post_proj", "attn_rope", "input_layernorm", "mlp_up_proj", "mlp_act")
    names += ("mlp_down_proj", "add", "post_attention_layernorm")
    tables: dict[str, Any] = {name: np.ones(64) for name in names}
    tables["attn_kv_cache_save"] = np.zeros(64)
    tables |= {f"{name}__num_tokens": np.arange(1, 65) for name in tuple(tables)}
    tables |= {"attn_prefill": np.full((3, 64), 2.0), "attn_prefill__kv": np.arange(0, 192, 64)}
    tables |= {"attn_prefill__chunk": np.arange(1, 65), "attn_decode__kv": np.arange(0, 192, 64)}
    tables |= {"attn_decode": np.full((8, 3), 2.0), "attn_decode__batch": np.arange(1, 9)}
    # Attention of prefill and decode are added up: the hybrid batch would take 26 ms with 2 ms for both.
    tables["attn_decode"][0] = 0.0
    (tmp_path / "cost_tables").mkdir()
    np.savez(tmp_path / "cost_tables" / "small_tp1.npz", **tables)
    return folder


def test_a_run_by_hand_is_equal(small_run: Path) -> None:
    """9 operators and 2 ms of prefill attention, 2 layers; the decode of batch 1 costs nothing more."""
    replay = replay_vidur_case(small_run)

    assert replay == VidurReplay(
        case="small_tp1_run",
        policy="vidur-sarathi:batch_size_cap=8,emulate_bugs=true,chunk_size=16",
        num_replicas=1,
        num_batches=3,
        num_requests=2,
        num_restarts=0,
        time_error_s=0.0,
        difference=None,
    )
    assert replay.to_json()["difference"] is None


def edit(path: Path, row: int, column: str, value: str) -> None:
    """Another value in a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("file", "row", "column", "value", "where", "fields"),
    [
        ("batches.csv", 1, "request_tokens", "1:15 0:1", "batch 1 of replica 0", ("entries",)),
        ("batches.csv", 1, "num_prefill_tokens", "16", "batch 1 of replica 0", ("prefill_tokens",)),
        ("batches.csv", 2, "completed_at", "0.566000002", "batch 2 of replica 0", ("completed_fs",)),
        ("requests.csv", 1, "num_restarts", "1", "request 1", ("num_restarts",)),
        ("requests.csv", 0, "prefill_completed_at", "0.544", "request 0", ("prefill_completed_fs",)),
    ],
)
def test_a_difference_is_found_and_told(
    small_run: Path, file: str, row: int, column: str, value: str, where: str, fields: tuple[str, ...]
) -> None:
    """Where it is, what it is in, and both sides."""
    edit(small_run / file, row, column, value)
    difference = replay_vidur_case(small_run).difference

    assert difference is not None
    assert (difference.where, difference.fields) == (where, fields)
    assert difference.recorded != difference.simulated
    assert replay_vidur_case(small_run).to_json()["difference"]["where"] == where


def test_times_within_the_tolerance_are_equal(small_run: Path) -> None:
    """1e-9 s, and the largest difference is reported."""
    edit(small_run / "batches.csv", 2, "completed_at", "0.566000001")
    replay = replay_vidur_case(small_run)

    assert replay.is_equal
    assert replay.time_error_s == pytest.approx(1e-9)


def test_a_batch_too_few_is_a_difference(small_run: Path) -> None:
    """The recording ends before the simulation."""
    text = (small_run / "batches.csv").read_text().rpartition("2,0,")[0]
    (small_run / "batches.csv").write_text(text)
    difference = replay_vidur_case(small_run).difference

    assert difference is not None
    assert (difference.where, difference.fields) == ("batch 2 of replica 0", ("end",))
    assert difference.recorded is None
    assert "1:2" in (difference.simulated or "")


def configure(folder: Path, path: str, value: object) -> None:
    """Another value in config.json."""
    config = json.loads((folder / "config.json").read_text())
    *parents, key = path.split(".")
    table = config
    for name in parents:
        table = table[name]
    table[key] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("time_limit", 5, NotSimulatedError, "time_limit=5"),
        ("cluster_config.replica_scheduler_config.name", "lightllm", NotSimulatedError, "'lightllm'"),
        ("execution_time_predictor_config.skip_cpu_overhead_modeling", False, NotSimulatedError, "only True"),
        (
            "cluster_config.replica_scheduler_config.num_blocks",
            1,
            NotSimulatedError,
            "request '1' alone needs",
        ),
        (
            "cluster_config.num_replicas",
            "two",
            InputError,
            "num_replicas is 'two', expected a value of type int",
        ),
        ("cluster_config.num_replicas", 0, InputError, "num_replicas is 0, expected at least 1"),
        ("cluster_config.replica_config", [], InputError, "num_layers is None"),
    ],
)
def test_what_cannot_be_replayed_is_told(
    small_run: Path, path: str, value: object, error: type[Exception], message: str
) -> None:
    """A setting that is not simulated is no input error."""
    configure(small_run, path, value)
    with pytest.raises(error, match=message):
        replay_vidur_case(small_run)


def test_replicas_take_turns_and_are_not_chosen_at_random(small_run: Path) -> None:
    """With two replicas the second request has one of its own; the random router has no seed."""
    configure(small_run, "cluster_config.num_replicas", 2)
    difference = replay_vidur_case(small_run).difference
    assert difference is not None
    assert difference.where == "batch 1 of replica 0"
    configure(small_run, "cluster_config.global_scheduler_config.name", "random")
    with pytest.raises(NotSimulatedError, match="replicas routed by 'random'"):
        replay_vidur_case(small_run)


def test_lor_counts_only_the_queue_with_the_bug(small_run: Path) -> None:
    """r1 arrives while r0 runs and none waits: the bug takes replica 0, the rule takes replica 1."""
    configure(small_run, "cluster_config.num_replicas", 2)
    configure(small_run, "cluster_config.global_scheduler_config.name", "lor")
    assert replay_vidur_case(small_run).is_equal
    difference = replay_vidur_case(small_run, emulate_bugs=False).difference

    assert difference is not None
    assert (difference.where, difference.simulated) == (
        "batch 1 of replica 0",
        "0:1, prefill_tokens 0, scheduled 0.522000000000 s, completed 0.540000000000 s",
    )


@needs_runs
def test_lor_gives_the_shares_that_were_published() -> None:
    """The 300 requests of the round-robin run: 147, 111 and 42; p50 of latency 5.06 s, p99 22.0 s."""
    case = VidurCase.read(RUNS / CASES[-1])
    policy, limits = make_setup(case.config, emulate_bugs=True)
    tables = VidurTables.read(case.tables, case.config.model())
    replicas = Replicas(count=3, policy=policy, limits=limits, tables=tables, emulate_bugs=True)
    runs = replicas.run_least_outstanding(case.requests)
    latencies_s = [
        ((noted.completed_fs or 0) - request.arrival_ns) / FS_PER_S
        for replica in runs
        for request, noted in zip(replica.requests, replica.noted, strict=True)
    ]

    assert [len(replica.requests) for replica in runs] == [147, 111, 42]
    assert np.percentile(latencies_s, [50, 99]) == pytest.approx([5.06, 22.0], abs=0.05)


def test_without_tables_a_run_cannot_be_replayed(small_run: Path) -> None:
    """They are found by their name, or named."""
    tables = small_run.parent / "cost_tables" / "small_tp1.npz"
    other = shutil.move(tables, small_run.parent / "other.npz")
    with pytest.raises(InputError, match="after which small_tp1_run is named"):
        replay_vidur_case(small_run)

    assert replay_vidur_case(small_run, tables=Path(other)).is_equal


# The memory planner.

LLAMA_7B = VidurReplica(
    num_layers=32, num_q_heads=32, num_kv_heads=32, embedding_dim=4096, mlp_hidden_dim=11008
)
CODE_LLAMA_34B = VidurReplica(
    num_layers=48, num_q_heads=64, num_kv_heads=8, embedding_dim=8192, mlp_hidden_dim=22016
)
LLAMA_70B = VidurReplica(
    num_layers=80, num_q_heads=64, num_kv_heads=8, embedding_dim=8192, mlp_hidden_dim=28672
)


@pytest.mark.parametrize(
    ("replica", "max_tokens", "batch", "slots", "blocks"),
    [
        (LLAMA_7B, 4096, 29, 29, 7424),
        (LLAMA_7B, 1024, 119, 119, 7616),
        (replace(LLAMA_7B, num_pipeline_stages=2), 4096, 32, 64, 16384),
        (replace(CODE_LLAMA_34B, tensor_parallel_size=2), 4096, 109, 109, 27904),
        (replace(LLAMA_70B, tensor_parallel_size=2), 4096, 13, 13, 3328),
    ],
)
def test_the_planner_gives_what_was_recorded(
    replica: VidurReplica, max_tokens: int, batch: int, slots: int, blocks: int
) -> None:
    """Requests in a batch, requests in all, blocks of 16 tokens, on 80 GB."""
    memory = plan_vidur_memory(replica, max_tokens=max_tokens)

    assert (memory.max_batch_size, memory.request_slots, memory.num_blocks) == (batch, slots, blocks)


def test_a_model_that_leaves_no_room_is_refused() -> None:
    """70B on one device."""
    with pytest.raises(InputError, match="no request of 4096 tokens fits"):
        plan_vidur_memory(LLAMA_70B, max_tokens=4096)


# Policies, rule by rule.


@pytest.mark.parametrize(("budget", "first"), [(9, [(0, 5)]), (10, [(0, 5), (1, 2)])])
def test_vllm_pads_the_batch_to_its_longest_prompt(budget: int, first: list[tuple[int, int]]) -> None:
    """5 + 2 tokens count as 2 x 5."""
    simulation = run(f"vidur-vllm:max_tokens_in_batch={budget}", instance_of((5, 1), (2, 1)))

    assert batches(simulation)[0] == first


def test_vllm_lets_a_prompt_beyond_its_budget_go_alone() -> None:
    """With the bug it blocks the queue for ever."""
    instance = instance_of((2, 1), (5, 1), (2, 1))

    assert batches(run("vidur-vllm:max_tokens_in_batch=4", instance)) == [[(0, 2)], [(1, 5)], [(2, 2)]]
    with pytest.raises(PolicyError, match="schedules nothing although nothing more can arrive: 2 requests"):
        simulate(instance, make_policy("vidur-vllm:max_tokens_in_batch=4,emulate_bugs=true"))


def test_vllm_cuts_a_prompt_beyond_the_instances_budget() -> None:
    """If chunks are allowed; the pieces go alone, too."""
    instance = instance_of((7, 1), (1, 1), max_batch_tokens=5)
    simulation = run("vidur-vllm", instance)

    assert batches(simulation) == [[(0, 5)], [(0, 2), (1, 1)]]
    with pytest.raises(InputError, match="chunked prefill is off"):
        simulate(replace(instance, switches=Switches(chunked_prefill=False)), make_policy("vidur-vllm"))


def test_vllm_preempts_who_arrived_last() -> None:
    """Prompts in batches of their own; when blocks are short r1 goes, and is refilled with its token."""
    simulation = run("vidur-vllm:watermark_blocks_fraction=0", instance_of((3, 4), (3, 4), kv_blocks=7))

    assert batches(simulation)[:5] == [[(0, 3), (1, 3)], [(0, 1)], [(0, 1)], [(0, 1)], [(1, 4)]]
    assert evictions(simulation) == [(1, 1)]


def test_sarathi_puts_decodes_first_and_bounds_only_prefills() -> None:
    """Two decodes leave 1 of 3 tokens for the prompt; three decodes leave it nothing, and all of them run."""
    simulation = run("vidur-sarathi:chunk_size=3", instance_of((1, 9), (1, 9), (4, 1, 1)))
    assert batches(simulation)[:3] == [
        [(0, 1), (1, 1)],
        [(0, 1), (1, 1), (2, 1)],
        [(0, 1), (1, 1), (2, 1)],
    ]
    simulation = run("vidur-sarathi:chunk_size=2", instance_of((1, 5), (1, 5), (4, 1, 1)))
    assert batches(simulation)[1] == [(0, 1), (1, 1)]


def test_sarathi_takes_the_blocks_of_a_whole_prompt_at_its_first_chunk() -> None:
    """9 of 10 blocks with the first 4 tokens, so that r1 has to wait."""
    simulation = run("vidur-sarathi:chunk_size=4", instance_of((9, 1), (2, 1), kv_blocks=10))

    assert simulation.held_blocks.tolist()[0] == 9
    assert batches(simulation) == [[(0, 4)], [(0, 4)], [(0, 1)], [(1, 2)]]


@pytest.mark.parametrize(
    ("bugs", "refill"), [(False, [4, 4]), (True, [2, 1, 1, 1, 1, 1, 1])], ids=["fixed", "bug"]
)
def test_sarathi_forgets_the_rest_of_a_prompt_with_the_bug(bugs: bool, refill: list[int]) -> None:  # noqa: FBT001
    """r1 is preempted with 2 of 8 prompt tokens: it refills 2, and the other 6 follow one by one."""
    rows = (2, 4), (8, 1)
    text = f"vidur-sarathi:chunk_size=4,watermark_blocks_fraction=0,emulate_bugs={bugs}"
    simulation = run(text, instance_of(*rows, kv_blocks=10))
    sizes = [tokens for batch in batches(simulation) for request, tokens in batch if request == 1]

    assert evictions(simulation) == [(1, 1)]
    assert sizes == [2, *refill]


def test_orca_puts_running_requests_first_and_reserves_the_longest_length() -> None:
    """Two requests of at most 5 tokens fit 10 blocks; r2 waits for the first to finish."""
    instance = with_model_len(instance_of((3, 2), (3, 3), (2, 2), kv_blocks=10), 5)
    simulation = run("vidur-orca", instance)

    assert batches(simulation)[:3] == [[(0, 3), (1, 3)], [(0, 1), (1, 1)], [(1, 1), (2, 2)]]


def test_orca_and_faster_transformer_take_as_many_as_have_room() -> None:
    """Of 10 blocks three requests of 3 tokens, in halves for two stages one, and never more than the cap."""
    limits = with_model_len(instance_of((1, 1), kv_blocks=10), 3).limits
    for name in ("vidur-orca", "vidur-faster-transformer"):
        for text, most in (
            ("", 3),
            ("num_pipeline_stages=2", 1),
            ("batch_size_cap=2", 2),
            ("max_batch_size=1", 1),
        ):
            assert make_policy(f"{name}:{text}").settings.batch_requests(limits) == most


@pytest.mark.parametrize(("bugs", "second"), [(False, [(2, 1), (3, 1)]), (True, [(2, 1)])])
def test_faster_transformer_loses_blocks_with_the_bug(bugs: bool, second: list[tuple[int, int]]) -> None:  # noqa: FBT001
    """r0 finishes before its batch: its 3 of 6 blocks do not come back, and r3 has to wait."""
    instance = with_model_len(instance_of((1, 1), (1, 2), (1, 2), (1, 1), kv_blocks=6), 3)
    simulation = run(f"vidur-faster-transformer:emulate_bugs={bugs}", instance)

    assert batches(simulation)[:3] == [[(0, 1), (1, 1)], [(1, 1)], second]


def test_lightllm_tries_to_prefill_after_ten_decodes() -> None:
    """r1 arrives during the first decode and is admitted after the tenth."""
    simulation = run("vidur-lightllm", instance_of((2, 20), (3, 2, 1)))

    assert [j for j, batch in enumerate(batches(simulation)) if (1, 3) in batch] == [11]


@pytest.mark.parametrize("name", ["vidur-vllm", "vidur-sarathi"])
def test_micro_batches_share_the_cap(name: str) -> None:
    """With two batches in flight each has half of the four requests, and they take turns."""
    text = f"{name}:num_pipeline_stages=2,batch_size_cap=4"
    simulation = run(text, instance_of(*[(2, 3)] * 4))

    assert [{request for request, _ in batch} for batch in batches(simulation)] == [{0, 1}, {2, 3}] * 3


def test_a_second_batch_is_formed_when_a_request_arrives() -> None:
    """While the first of two stages is busy with the only request."""
    simulation = run("vidur-sarathi:num_pipeline_stages=2", instance_of((2, 3), (2, 1, 1), cost=SLOW))

    assert simulation.decided_ns.tolist()[:3] == [0, 1, 10]
    assert batches(simulation)[:2] == [[(0, 2)], [(1, 2)]]


SLOW = replace(instance_of((1, 1)).cost, step=10)


@pytest.mark.parametrize("name", NAMES)
def test_settings_out_of_range_are_refused(name: str) -> None:
    """The name of the policy and of the setting are told."""
    with pytest.raises(UsageError, match=f"policy '{name}': batch_size_cap is 0, expected at least 1"):
        make_policy(f"{name}:batch_size_cap=0")


TIGHT = Serving(kv_tokens=24_000, max_model_len=12_000)
"""Not even two of the longest requests fit."""


@pytest.mark.skipif(not DATA.is_dir(), reason="the public traces are not here")
@pytest.mark.parametrize("trace", ["azure2023_conv", "azure2023_code"])
@pytest.mark.parametrize("name", NAMES)
def test_public_traces_are_served(name: str, trace: str) -> None:
    """With default settings, and the referee has no objection."""
    whole = read_trace(DATA / "traces" / f"{trace}.csv")
    instance = make_instance(replace(whole, requests=whole.requests[:400]), TIGHT).split_rejected()[0]

    assert find_violations(instance, simulate(instance, make_policy(name)).schedule) == []


@needs_runs
@pytest.mark.parametrize("name", CASES)
def test_the_page_tells_what_is_measured(name: str) -> None:
    """Batches, restarts, and a difference in time of the size that is stated."""
    page = (DOCS / "vidur.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
    num_batches, restarts, error = (cell.strip() for cell in row.split("|")[2:5])
    replay = replay_vidur_case(RUNS / name)

    assert (num_batches, restarts) == (f"{replay.num_batches:,}", str(replay.num_restarts))
    assert float(error.removesuffix(" s")) == pytest.approx(replay.time_error_s, rel=0.5)


def test_the_example_of_the_page_runs(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a folder with one run."""
    page = (DOCS / "vidur.md").read_text(encoding="utf-8")
    (small_run.parent / "vidur_runs").symlink_to(small_run.parent)
    monkeypatch.chdir(small_run.parent)
    exec(page.partition("```python\n")[2].partition("```")[0], {})

    assert capsys.readouterr().out == "small_tp1_run equal 0.0e+00 s\n"
