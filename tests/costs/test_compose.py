"""Cost models composed on demand: from tables of a made-up package, kept in a cache, and found again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from cspsched.costs import compose
from cspsched.costs.compose import compose_cost, default_cost
from cspsched.costs.devices import load_device
from cspsched.costs.facts import fact_path
from cspsched.costs.importers import aiconfigurator, collectives
from cspsched.costs.importers.aiconfigurator import AicTables, gemm_shapes
from cspsched.costs.models import MODEL_FOLDER, load_model
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.presets import describe_cost, load_cost
from cspsched.errors import InputError, UsageError
from cspsched.problem.cost import BatchFeatures
from tests.support.command_line import invoke

MODEL = load_model("tiny-llama")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MADE_UP = {"device": "GPU", "framework": "made up"}


def tables(ranks: int) -> dict[str, list[dict]]:
    """Rows of each table: times grow with the work, so that a fit meets them."""
    shapes = set(gemm_shapes(MODEL, 1).values()) | set(gemm_shapes(MODEL, ranks).values())
    heads = [(MODEL.num_heads // n, MODEL.kv_heads_per_rank(n)) for n in (1, ranks)]
    attention = [
        MADE_UP | {"batch_size": n, "num_heads": q, "num_key_value_heads": kv, "head_dim": MODEL.head_dim}
        for n in (1, 4, 16)
        for q, kv in heads
    ]
    lengths = (64, 256, 1024, 4096)
    return {
        "gemm": [
            MADE_UP | {"m": m, "n": n, "k": k, "latency": 0.004 + 1e-9 * m * n * k / 1e3}
            for n, k in shapes
            for m in TOKENS
        ],
        "context": [
            row | {"isl": x, "step": 0, "latency": 0.005 + 1e-8 * row["batch_size"] * x * x}
            for row in attention
            for x in lengths
        ],
        "generation": [
            row | {"isl": 1, "step": x, "latency": 0.003 + 1e-7 * row["batch_size"] * x}
            for row in attention
            for x in lengths
        ],
        "custom": [
            MADE_UP
            | {"op_name": "all_reduce", "kernel_source": collectives.CUSTOM_KERNEL, "num_gpus": ranks}
            | {"allreduce_dtype": "bfloat16", "message_size": 2**k, "latency": 0.004 + 1e-9 * 2**k}
            for k in range(8, 23)
        ],
    }


def decodes(num: int) -> BatchFeatures[int]:
    """So many decodes of 100 tokens each."""
    return BatchFeatures(
        tokens=num,
        prefill_attention=0,
        prefill_tokens=0,
        prefill_context=0,
        decode_context=100 * num,
        num_generating=num,
        num_prefills=0,
        num_decodes=num,
    )


@pytest.fixture(autouse=True)
def _installed(tmp_path, monkeypatch):
    """A package with tables of one system, and a cache of its own."""
    package = tmp_path / "site" / aiconfigurator.PACKAGE
    for kind, rows in tables(2).items():
        pattern = aiconfigurator.TABLES[kind].replace("*", "1.0.0")
        path = package / "systems/data/h100_sxm" / f"{pattern}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(path)
    (package / "__init__.py").touch()
    # Another test may have imported the real package.
    monkeypatch.delitem(sys.modules, aiconfigurator.PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_composed_cost_model_says_where_it_comes_from(ranks):
    """Model, device, degree, origin of every operator, and errors; more work takes more time."""
    file = compose_cost(MODEL, load_device("h100"), Parallelism(tensor=ranks))
    info, cost = describe_cost(file), load_cost(file)
    small, large = (decodes(num) for num in (1, 100))

    assert (info.model, info.device, info.parallelism) == (MODEL.name, "h100", Parallelism(tensor=ranks))
    assert "measured: " in info.source
    assert ("vLLM custom all-reduce in a CUDA graph: all_reduce" in info.source) == (ranks > 1)
    assert set(info.fit_error) >= {"tokens", "prefill_attention", "decode_attention"}
    assert 0 < cost.batch_time_ns(small) < cost.batch_time_ns(large)


LINKED = """
title = "a GPU"
source = "made up"
architecture = "none"
memory_bytes = 80_000_000_000
memory_bandwidth_bytes_per_s = 3e12
peak_flops_fp16 = 1e15
operator_tables = "h100_sxm"
[link]
bandwidth_bytes_per_s = 1e9
latency_ns = 5000
"""


def test_a_device_of_the_users_names_its_link(tmp_path, capsys):
    """Two all-reduces a layer by formula: 2 steps of the latency and half of the bytes each."""
    (tmp_path / "mine.toml").write_text(LINKED)
    arguments = ("--model", MODEL.name, "--device", tmp_path / "mine.toml", "--tensor-parallel", "2")
    outcome = invoke(capsys, "costs", "compose", *arguments, "--output", tmp_path / "cost.toml")
    alone = load_cost(compose_cost(MODEL, load_device(str(tmp_path / "mine.toml"))))
    network = AicTables({}).collectives(load_device(str(tmp_path / "mine.toml")), 2)
    reduces = network[network["op"] == "all_reduce"].set_index("bytes")["t_us"]

    assert outcome.code == 0
    assert "formula, 1 GB/s and 5 us: all_reduce" in describe_cost(tmp_path / "cost.toml").source
    assert reduces[2**20] == pytest.approx(2 * (5 + 2**19 / 1e3))
    assert set(network["op"]) == {"all_reduce", "all_gather", "reduce_scatter"}
    assert load_cost(tmp_path / "cost.toml").batch_time_ns(decodes(1)) > alone.batch_time_ns(decodes(1))


def test_a_stage_has_its_layers_and_sends(tmp_path, capsys):
    """Half of the layers, one message and the head; no command takes it for a whole model."""
    (tmp_path / "mine.toml").write_text(LINKED)
    device = load_device(str(tmp_path / "mine.toml"))
    whole = load_cost(compose_cost(MODEL, device)).batch_time_ns(decodes(200))
    file = compose_cost(MODEL, device, Parallelism(pipeline=2))
    stage = load_cost(file).batch_time_ns(decodes(200))
    outcome = invoke(capsys, "simulate", "tiny-12", "--cost", file)

    message = 5_000 + 200 * MODEL.dtype_bytes * MODEL.hidden_size  # a byte takes a nanosecond

    assert whole / 2 < stage - message < 3 * whole / 4
    assert outcome.code == 2
    assert "is of one of 2 pipeline stages" in outcome.err
    with pytest.raises(InputError, match="no nccl table among"):
        compose_cost(MODEL, load_device("h100"), Parallelism(pipeline=2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("memory_bandwidth_bytes_per_s = 3e12", "memory_bandwidth_bytes_per_s missing"),
        ("latency_ns = 5000", "link: latency_ns missing"),
    ],
)
def test_a_device_without_its_bandwidth_is_refused(tmp_path, capsys, wrong, message):
    """One line with the file and the key."""
    (tmp_path / "mine.toml").write_text(LINKED.replace(wrong, ""))
    outcome = invoke(capsys, "costs", "compose", "--device", tmp_path / "mine.toml")

    assert outcome.code == 1
    assert f"mine.toml: {message}" in outcome.err


def test_what_was_composed_is_found_again(monkeypatch):
    """The second call reads no table; other facts or tables make another file."""
    first = compose_cost(MODEL, load_device("h100"))
    with monkeypatch.context() as patched:
        patched.setattr(compose, "composed_text", lambda *_: pytest.fail("composed again"))
        assert compose_cost(MODEL, load_device("h100")) == first

    assert compose_cost(MODEL, load_device("h100"), Parallelism(tensor=2)) != first
    (table,) = first.parents[4].glob("site/*/systems/data/h100_sxm/gemm/vllm/*/*.parquet")
    frame = pd.read_parquet(table)
    pd.concat([frame, frame.assign(latency=frame["latency"] * 2)]).to_parquet(table)
    assert compose_cost(MODEL, load_device("h100")) != first


def test_every_command_composes_what_does_not_ship(capsys):
    """A model and a device are enough; the report says which cost model it took, with its errors."""
    arguments = ("tiny-12", "--limit", "3", "--model", MODEL.name, "--time-limit", "0s", "--json")
    facts = json.loads(invoke(capsys, "compare", *arguments).out)["provenance"]

    assert facts["cost"] == f"h100-{MODEL.name}"
    assert "tokens" in facts["cost_error"]


def test_the_command_writes_a_file(tmp_path, capsys):
    """`costs compose --output` leaves a cost file that every command takes."""
    outcome = invoke(capsys, "costs", "compose", "--model", MODEL.name, "--output", tmp_path / "cost.toml")
    named = invoke(capsys, "costs", tmp_path / "cost.toml")

    assert outcome.code == named.code == 0
    assert named.out == outcome.out
    assert load_cost(tmp_path / "cost.toml").name == f"h100-{MODEL.name}"


def test_a_composed_file_serves_the_model_that_it_was_composed_for(tmp_path, capsys):
    """Also a model that does not ship: its file goes with it, and the cost file names no other."""
    path = tmp_path / "mine.toml"
    path.write_text(fact_path("model", MODEL_FOLDER, MODEL.name).read_text())
    cost = tmp_path / "cost.toml"
    invoke(capsys, "costs", "compose", "--model", path, "--output", cost)
    arguments = ("tiny-12", "--limit", "2", "--model", path, "--device", "h100", "--cost", cost)
    outcome = invoke(capsys, "simulate", *arguments)

    assert (outcome.code, outcome.err) == (0, "")


def test_what_cannot_be_composed_is_told():
    """A device without tables, an extra that is missing, heads that cannot be shared: each in a sentence."""
    with pytest.raises(InputError, match="no operator tables of v100; there are some of a100-80"):
        compose_cost(MODEL, load_device("v100"))
    with pytest.raises(InputError, match="no system 'h200_sxm'; known: h100_sxm"):
        compose_cost(MODEL, load_device("h200"))
    with pytest.raises(InputError, match="tensor_parallel is 3, expected a divisor"):
        compose_cost(MODEL, load_device("h100"), Parallelism(tensor=3))
    with pytest.raises(UsageError, match="None can be composed: no operator tables of v100"):
        default_cost(MODEL, "v100")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    """The message says which variable moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        compose_cost(MODEL, load_device("h100"))


def test_the_cache_is_the_users(monkeypatch):
    """Without the variable it lies in the home folder."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compose.cache_folder() == Path.home() / ".cache" / "cspsched" / "costs"
