"""Measured runs are read as they are written, and refused in a sentence with file, line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.errors import InputError, UsageError
from cspsched.serving import Serving
from cspsched.studies.validation import read_runs
from cspsched.studies.validation.deployment import device_name, merged

STAGE = {
    "run": "a", "stage": "0", "model": "meta-llama/Llama-2-7b-hf", "device": "H100 SXM 80GB", "tp": "1",
    "max_num_seqs": "128", "max_num_batched_tokens": "2048", "rate_rps": "5", "duration_s": "600",
    "requests": "3000", "prompt_tokens_mean": "591.6", "prompt_tokens_min": "580", "prompt_tokens_max": "604",
    "output_tokens": "11", "latency_s_mean": "1.1", "latency_s_median": "1.0", "ttft_s_mean": "0.1",
}  # fmt: skip
REQUEST = {"prompt_tokens": 10, "output_tokens": 3, "arrival_s": 5.0, "ttft_s": 0.5, "latency_s": 2.5}


def stages(folder: Path, *rows: dict[str, str]) -> Path:
    """A CSV with these rows."""
    path = folder / "stages.csv"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def requests(folder: Path, *rows: dict[str, object]) -> Path:
    """JSON lines with these rows."""
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stage_is_read(tmp_path: Path) -> None:
    """Deployment in the engine's words, the load, what was measured, and the TPOT that follows from it."""
    (run,) = read_runs([stages(tmp_path, STAGE, {**STAGE, "stage": "1", "rate_rps": "10"})])

    assert run.name == "a"
    assert run.serving == Serving(
        model="meta-llama/Llama-2-7b-hf",
        device="h100",
        tensor_parallel=1,
        max_batch_requests=128,
        max_batch_tokens=2048,
    )
    assert [stage.load for stage in run.stages] == ["5/s", "10/s"]
    assert run.stages[0].measured["latency"] == {"mean": 1.1, "p50": 1.0}
    assert run.stages[0].measured["tpot"]["mean"] == pytest.approx(0.1)


def test_single_requests_are_read(tmp_path: Path) -> None:
    """In order of arrival, times since the first."""
    path = requests(tmp_path, {**REQUEST, "arrival_s": 6}, REQUEST)
    (run,) = read_runs([tmp_path])

    assert run.file == path
    assert [one.arrival_ns for one in run.requests] == [0, 10**9]
    assert run.times is not None
    assert run.times.figures()["tpot"]["mean"] == 1.0
    assert not run.has_two_clocks


def test_an_engine_with_a_clock_of_its_own_sets_the_clients(tmp_path: Path) -> None:
    """The quickest request is queued at once; TTFT counts from there."""
    times = {"input_toks": 3, "output_toks": 2, "arrival_time": 1e9, "queued_ts": 7.0, "first_token_ts": 8.0}
    (run,) = read_runs(
        [
            requests(
                tmp_path, {**times, "last_token_ts": 9.0}, {**times, "queued_ts": 7.5, "last_token_ts": 9.5}
            )
        ]
    )

    assert run.has_two_clocks
    assert run.times is not None
    assert run.times.figures()["ttft"]["mean"] == pytest.approx(1.0)


def test_a_description_goes_before_what_it_describes(tmp_path: Path) -> None:
    """Device, policy, frontend and peers of a TOML file; the rest is the CSV's."""
    stages(tmp_path, STAGE)
    path = tmp_path / "run.toml"
    path.write_text(
        'stages = "stages.csv"\nname = "mine"\ndevice = "h200"\npolicy = "sarathi"\nfrontend = "7ms"\n'
        "[peers.other]\nlatency_mean = -0.02\nttft_p99 = 0.1\n"
    )
    (run,) = read_runs([tmp_path])

    assert (run.name, run.policy, run.frontend) == ("mine", "sarathi", "7ms")
    assert (run.serving.device, run.serving.max_batch_tokens) == ("h200", 2048)
    assert run.peers == {"other": {"latency": {"mean": -0.02}, "ttft": {"p99": 0.1}}}


def test_a_peer_may_have_a_column(tmp_path: Path) -> None:
    """Its relative error of a stage."""
    (run,) = read_runs([stages(tmp_path, {**STAGE, "other:latency_mean": "-0.03"})])

    assert run.stages[0].peers == {"other": {"latency": {"mean": -0.03}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_rps": "fast"}, r"line 2: rate_rps is 'fast', expected a number of at least 0; correct it"),
        ({"rate_rps": "0"}, "line 2: rate_rps is 0, expected more"),
        ({"rate_rps": ""}, "line 2: expected one of rate_rps and concurrency"),
        ({"requests": "1.5"}, "line 2: requests is '1.5', expected a whole number of at least 1"),
        ({"output_tokens": ""}, "line 2: output_tokens is missing; fill it in"),
        ({"prompt_tokens_mean": "700"}, "_mean is 700, expected it between prompt_tokens_min 580"),
        ({"latency_s_mean": "", "latency_s_median": "", "ttft_s_mean": ""}, "line 2: no measured time"),
        ({"latency_s_mean": "nan"}, "line 2: latency_s_mean is 'nan', expected a number"),
        ({"duration_s": "", "requests": ""}, "line 2: requests is missing; give how many"),
        ({"tp": "0"}, "line 2: tp is '0', expected a number of at least 1"),
        ({"arrivals": "slow"}, "arrivals is 'slow', expected one of scaled, poisson, even"),
        ({"other:speed": "1"}, "'speed' is no metric with a statistic"),
    ],
)  # fmt: skip
def test_a_bad_stage_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    """With line, column, value and what to do."""
    with pytest.raises(InputError, match=message):
        read_runs([stages(tmp_path, {**STAGE, **change})])


def test_a_run_has_one_deployment(tmp_path: Path) -> None:
    """Rows of one name with another limit are refused."""
    with pytest.raises(InputError, match="line 3: run 'a' has another model, device or limit"):
        read_runs([stages(tmp_path, STAGE, {**STAGE, "tp": "2"})])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": "soon"}, "line 2: arrival_s is 'soon', expected a number"),
        ({"latency_s": 0.1}, "line 2: arrival 5.000000 s, first token 5.500000 s, last token 5.100000 s"),
        ({"output_tokens": 0}, "line 2: output_tokens is 0, expected a number of at least 1"),
        ({"prompt_tokens": True}, "line 2: prompt_tokens is True"),
    ],
)
def test_a_bad_request_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    """With line, column and value."""
    with pytest.raises(InputError, match=message):
        read_runs([requests(tmp_path, REQUEST, {**REQUEST, **change})])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """Nothing, an empty folder, another kind of file, no rows, no JSON, a description of nothing."""
    with pytest.raises(UsageError, match="no run is named"):
        read_runs([])
    with pytest.raises(InputError, match=r"holds no run\.toml, stages\.csv or requests\.jsonl"):
        read_runs([tmp_path])
    with pytest.raises(InputError, match=r"ends in \.csv"):
        read_runs([tmp_path / "run.txt"])
    (tmp_path / "a.csv").write_text("run,stage\n")
    with pytest.raises(InputError, match=r"a\.csv has no rows"):
        read_runs([tmp_path / "a.csv"])
    (tmp_path / "a.jsonl").write_text("{]\n")
    with pytest.raises(InputError, match="line 1: no valid JSON"):
        read_runs([tmp_path / "a.jsonl"])
    (tmp_path / "a.toml").write_text('model = "llama-2-7b"\n')
    with pytest.raises(InputError, match="expected one of stages and requests"):
        read_runs([tmp_path / "a.toml"])
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta\.json: no configuration of vLLM"):
        read_runs([requests(tmp_path, REQUEST)])


def meta(**engine: int) -> dict[str, object]:
    """Configuration of vLLM as LLMServingSim's benchmark writes it, as far as it is read."""
    return {
        "model": "meta-llama/Llama-3.1-8B",
        "engine_kwargs": {"tensor_parallel_size": 2, "max_model_len": 900, **engine},
        "kv_cache": {"num_gpu_blocks": 65, "block_size": 32, "enable_prefix_caching": False},
        "hardware": {"device_name": "NVIDIA RTX PRO 6000 Blackwell Server Edition"},
        "resolved_config": {
            "scheduler_config": {
                "max_num_seqs": 7, "max_num_batched_tokens": 70, "async_scheduling": True, "policy": "fcfs"
            }
        },
    }  # fmt: skip


def test_the_engines_configuration_is_the_deployment(tmp_path: Path) -> None:
    """Limits, switches, and the blocks without the null block."""
    (tmp_path / "meta.json").write_text(json.dumps(meta()))
    (run,) = read_runs([requests(tmp_path, REQUEST)])

    assert run.policy == "vllm:enable_prefix_caching=false,async_scheduling=true,policy=fcfs"
    assert (run.serving.device, run.serving.tensor_parallel) == ("rtx-pro-6000", 2)
    assert (run.serving.kv_blocks, run.serving.block_tokens) == (64, 32)
    assert (run.serving.max_batch_requests, run.serving.max_batch_tokens) == (7, 70)
    assert run.serving.max_model_len == 900


def test_groups_of_data_parallelism_are_read(tmp_path: Path) -> None:
    """And whether they hold whole experts; the engine tells the KV blocks of all of them."""
    (tmp_path / "meta.json").write_text(json.dumps(meta(data_parallel_size=2, enable_expert_parallel=True)))
    (run,) = read_runs([requests(tmp_path, REQUEST)])

    assert (run.serving.data_parallel, run.serving.expert_parallel) == (2, True)
    assert run.serving.kv_blocks == 65 // 2 - 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100 SXM 80GB", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("a100-80", "a100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("abacus", "abacus"),
    ],
)
def test_devices_are_known_by_their_words(text: str, name: str) -> None:
    """All words of the shipped name have to be there; else the text stays."""
    assert device_name(text) == name


def test_what_is_asked_goes_before_what_a_file_states() -> None:
    """Capacity is one question: tokens asked for replace blocks stated."""
    stated = Serving(model="llama-2-7b", kv_blocks=5, max_model_len=9)

    assert merged(Serving(), stated) == stated
    assert merged(Serving(kv_tokens=64, max_model_len=7), stated) == Serving(
        model="llama-2-7b", kv_tokens=64, max_model_len=7
    )
