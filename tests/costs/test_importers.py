"""Importers: other projects' tables become rows; foreign and corrupt files are refused by file and line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cspsched.costs.devices import load_device
from cspsched.costs.estimator import fit_profile
from cspsched.costs.estimator.features import share_of_layers
from cspsched.costs.importers import aiconfigurator, collectives
from cspsched.costs.importers.aiconfigurator import (
    AicTables,
    elementwise_rows,
    gemm_shapes,
)
from cspsched.costs.importers.attention_heads import attention_of_heads
from cspsched.costs.importers.gemm_grid import GemmGrid
from cspsched.costs.importers.llmservingsim import import_llmservingsim
from cspsched.costs.importers.source import Source
from cspsched.costs.importers.vidur import import_vidur
from cspsched.costs.models import load_model
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.rows import COLUMNS, OPERATORS, make_rows, read_rows, write_rows
from cspsched.errors import InputError
from tests.support.places import DATA

TABLES = DATA / "profiles"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="needs the public tables of ../shared/data")
MODEL = load_model("llama-3.1-8b")
MLP = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "num_tokens": 64, "num_tensor_parallel_workers": 2,
       "time_stats.mlp_act.median": 0.25, "time_stats.mlp_act.min": 0.2}  # fmt: skip
ATTENTION = {
    "n_q_head": 32, "n_kv_head": 8, "is_prefill": True, "prefill_chunk_size": 64, "kv_cache_size": 128,
    "batch_size": 1, "num_tensor_parallel_workers": 1, "time_stats.attn_prefill.median": 0.5,
    "time_stats.attn_prefill.min": 0.4, "time_stats.attn_decode.median": 0.1,
    "time_stats.attn_decode.min": 0.1,
}  # fmt: skip
NETWORK = {"collective": "all_reduce", "num_workers": 2, "devices_per_node": 2, "size": 4096,
           "time_stats.all_reduce.median": 0.03, "time_stats.all_reduce.min": 0.02}  # fmt: skip
GEMM = {"device": "GPU", "m": 1, "n": 256, "k": 256, "latency": 0.01}
CONTEXT = {"device": "GPU", "batch_size": 2, "isl": 64, "step": 0, "num_heads": 32, "num_key_value_heads": 8,
           "latency": 0.05}  # fmt: skip
NCCL = {"device": "GPU", "op_name": "all_reduce", "nccl_dtype": "half", "num_gpus": 2, "message_size": 512,
        "latency": 0.01}  # fmt: skip


def table(folder: Path, name: str, *rows: dict) -> Path:
    """A CSV file of some rows."""
    path = folder / name
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return path


# Rows


def test_rows_survive_both_formats(tmp_path):
    """Rows are read as they were written, from CSV, from Parquet and from a folder of parts."""
    rows = make_rows({"op": "down", "num_tokens": [1, 2], "t_us": [3.5, 4.0], "tp": 1})
    for suffix in (".csv", ".parquet"):
        write_rows(rows, tmp_path / f"part{suffix}")

    for path in (tmp_path / "part.csv", tmp_path / "part.parquet"):
        assert list(COLUMNS) == list(read_rows(path))
        assert read_rows(path)["t_us"].tolist() == [3.5, 4.0]
    assert len(read_rows(tmp_path)) == 4


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"op": "gemm", "t_us": 1}], r"rows.csv line 2: unknown operator 'gemm'; known: embed"),
        (
            [{"op": "down", "t_us": 1}, {"op": "down", "t_us": 0}],
            r"line 3: t_us is 0.0, expected a time above 0",
        ),
        ([{"op": "down", "t_us": -2.5}], r"line 2: t_us is -2.5, expected a time above 0"),
        (
            [{"op": "down", "t_us": None}, {"op": "down", "t_us": 1}],
            r"line 2: t_us is nan, expected a number",
        ),
        ([{"op": "down", "t_us": "fast"}], r"line 2: t_us is 'fast', expected a number"),
        ([{"op": "down", "t_us": "inf"}], r"line 2: t_us is .*inf.*, expected a number"),
        ([{"op": "down", "t_us": 1, "num_tokens": -3}], r"line 2: num_tokens is -3.0, expected at least 0"),
        (
            [{"op": "down", "t_us": 1, "batch_spec": "{]"}],
            r"line 2: batch_spec is '{\]', expected JSON such as",
        ),
        ([{"op": "down", "t_us": 1, "batch_spec": '{"chunks": [[0, 5]]}'}], r"line 2: batch_spec is"),
        ([{"op": "down", "t_us": 1, "batch_spec": '{"active_experts": "all"}'}], r"line 2: batch_spec is"),
        ([{"op": "down", "t_us": 1, "batch_spec": '{"chunk": [[1, 5]]}'}], r"line 2: batch_spec is"),
        ([{"op": "down", "t_us": 1, "t_p90_us": 0}], r"line 2: t_p90_us is 0.0, expected a time above 0"),
        (
            [{"op": "down", "num_tokens": n, "t_us": t} for n, t in ((1, 50.0), (2, 0.051), (4, 53.0))],
            r"line 3: down takes 0.051 us, and 50 us at the next smaller point .*; are the times in",
        ),
        ([{"layer": "down", "time_us": 1}], r"column 'op' is missing, so these are no rows of a profile"),
    ],
)
def test_bad_rows_are_refused(tmp_path, rows, complaint):
    """Every refusal names the file and the line."""
    with pytest.raises(InputError, match=complaint):
        read_rows(table(tmp_path, "rows.csv", *rows))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.parquet", b"PAR1 and then nothing", r"rows.parquet: no Parquet table can be read"),
        ("rows.csv", b"", r"rows.csv: no CSV table can be read"),
        ("rows.csv", b"op,t_us\n", r"rows.csv: the table has no rows"),
        ("rows.csv", b'op,t_us\n"down,1\n', r"rows.csv: no CSV table can be read"),
        ("rows.csv", b"\xff\xfe\x00\x01", r"rows.csv: no CSV table can be read"),
    ],
)
def test_corrupt_files_are_refused(tmp_path, name, content, complaint):
    """A file that is cut off or no table at all is answered with its name."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=complaint):
        read_rows(tmp_path / name)


def test_missing_files_and_odd_endings_are_refused(tmp_path):
    """A path to nothing, an empty folder, and an ending that is neither format."""
    with pytest.raises(InputError, match=r"rows.csv is no file"):
        read_rows(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"holds no .parquet and no .csv file"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match=r"expected a name that ends so"):
        write_rows(make_rows({"op": ["down"], "t_us": 1.0}), tmp_path / "rows.txt")


# Vidur


def test_vidur_tables_become_rows(tmp_path):
    """Milliseconds become microseconds, Vidur's names ours, and only collectives inside a node are taken."""
    decode = ATTENTION | {"is_prefill": False, "batch_size": 4, "prefill_chunk_size": 0}
    paths = [
        table(tmp_path, "mlp.csv", MLP),
        table(tmp_path, "attention.csv", ATTENTION, decode),
        table(tmp_path, "all_reduce.csv", NETWORK, NETWORK | {"devices_per_node": 1}),
    ]
    rows = import_vidur(paths, MODEL).set_index("op")

    assert rows.loc["silu_mul", ["t_us", "t_min_us", "num_tokens", "tp"]].tolist() == [250, 200, 64, 2]
    assert rows.loc["attn_prefill", ["t_us", "chunk", "kv", "n_seq"]].tolist() == [500, 64, 128, 1]
    assert rows.loc["attn_decode", ["t_us", "kv", "n_seq", "kv_total"]].tolist() == [100, 128, 4, 512]
    assert rows.loc["all_reduce", ["t_us", "bytes", "tp"]].tolist() == [30, 4096, 2]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (MLP | {"n_embd": 8192}, r"vidur.csv line 2: n_embd is 8192, llama-3.1-8b has 4096"),
        (MLP | {"time_stats.softmax.median": 1.0}, r"vidur.csv: unknown operator 'softmax'; known: emb, "),
        (MLP | {"time_stats.mlp_act.median": 0.0}, r"vidur.csv line 2: time_stats.mlp_act.median is 0.0"),
        (MLP | {"num_tokens": 1.5}, r"vidur.csv line 2: num_tokens is 1.5, expected a whole number"),
        (ATTENTION | {"batch_size": 2}, r"batch_size of a prefill is 2, expected 1"),
        (NETWORK | {"collective": "broadcast"}, r"line 2: unknown collective 'broadcast'; known: all_reduce"),
        (
            NETWORK | {"devices_per_node": 1, "time_stats.all_reduce.median": "x"},
            r"line 2: .* expected a number",
        ),
        (NETWORK | {"devices_per_node": 1}, r"no row has all of its workers on one node"),
        (
            {"layer": "act_fn", "tokens": 1, "time_us": 2},
            r"no table of Vidur has these columns: layer, tokens",
        ),
    ],
)
def test_foreign_vidur_tables_are_refused(tmp_path, row, complaint):
    """Another model, an unknown operator, a time of zero, another project."""
    with pytest.raises(InputError, match=complaint):
        import_vidur([table(tmp_path, "vidur.csv", row)], MODEL)


# LLMServingSim


def test_llmservingsim_tables_become_rows(tmp_path):
    """Layers, heads, attention alone and mixed, skewed decodes (a third of the sum of three), experts."""
    attention = {"kv_prefill": 16, "kv_decode": 100, "time_us": 7.0}
    skew = {"regime": "pure", "n": 3, "nb": 1, "pc": 0, "kp": 0, "kvs": 10, "kv_big": 50, "t_skew_us": 30.0}
    paths = [
        table(tmp_path, "dense.csv", {"layer": "act_fn", "tokens": 8, "time_us": 2.5}),
        table(tmp_path, "seq.csv", {"layer": "sampler", "sequences": 4, "time_us": 25.0}),
        table(tmp_path, "attention.csv", *(attention | {"prefill_chunk": c, "n_decode": n}
                                           for c, n in ((32, 0), (0, 2), (32, 2)))),
        table(tmp_path, "skew.csv", skew),
        table(tmp_path, "moe.csv", {"tokens": 2, "activated_experts": 16, "time_us": 135.0}),
    ]  # fmt: skip
    rows = import_llmservingsim(paths, load_model("qwen3-30b-a3b"))
    of = {op: part.iloc[0] for op, part in rows.groupby("op")}

    assert of["silu_mul"][["num_tokens", "t_us"]].tolist() == [8, 2.5]
    assert of["sampler"]["num_tokens"] == 4
    assert of["attn_prefill"][["chunk", "kv", "n_seq"]].tolist() == [32, 16, 1]
    assert of["attn_decode"][["n_seq", "kv_total"]].tolist() == [2, 200]
    assert of["attn_mixed"][["chunk", "kv", "n_seq", "kv_total"]].tolist() == [32, 16, 2, 200]
    assert rows["t_us"].tolist()[-2:] == [10.0, 135.0]
    assert json.loads(rows["batch_spec"].iloc[-2]) == {"chunks": [[1, 50], [1, 10], [1, 10]]}
    assert json.loads(of["experts"]["batch_spec"]) == {"active_experts": 16}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"layer": "softmax", "tokens": 1, "time_us": 1.0},
            r"line 2: unknown operator 'softmax'; known: embed",
        ),
        (
            {"layer": "act_fn", "tokens": 1, "time_us": -1.0},
            r"line 2: time_us is -1.0, expected a time above 0",
        ),
        (
            {"layer": "act_fn", "tokens": 1, "time_ms": 1.0},
            r"column 'time_us' is missing; found layer, tokens",
        ),
        (MLP, r"no table of LLMServingSim has these columns"),
    ],
)
def test_foreign_llmservingsim_tables_are_refused(tmp_path, row, complaint):
    """Unknown layers, negative times, times in another unit, another project."""
    with pytest.raises(InputError, match=complaint):
        import_llmservingsim([table(tmp_path, "lss.csv", row)], MODEL)


# aiconfigurator


def made_up_gemm_ms(m, n, k):
    """A launch, and compute or memory, whichever is slower."""
    return 0.003 + np.maximum(2e-12 * m * n * k, 4e-10 * n * k)


def gemm_source(tmp_path, *, without=()) -> Source:
    """A GEMM grid of the made-up device, some shapes left out."""
    sides = (256, 512, 1024, 2048, 4096, 8192)
    grid = [(m, n, k) for m in (1, 16, 64, 256, 1024, 4096) for n in sides for k in sides]
    rows = [
        GEMM | {"m": m, "n": n, "k": k, "latency": made_up_gemm_ms(m, n, k)}
        for m, n, k in grid if (n, k) not in without
    ]  # fmt: skip
    return Source.read(table(tmp_path, "gemm.csv", *rows))


def test_measured_shapes_stay_as_they_are(tmp_path):
    """A shape of the grid is looked up."""
    m, times_us, how = GemmGrid(gemm_source(tmp_path)).times_us(1024, 512)

    assert how == "measured"
    assert times_us == pytest.approx(1000 * made_up_gemm_ms(m, 1024, 512))


def test_missing_shapes_lie_between_others(tmp_path):
    """A shape that the grid lacks comes within 10 % of the truth on average."""
    m, times_us, how = GemmGrid(gemm_source(tmp_path, without={(1024, 2048)})).times_us(1024, 2048)

    assert how == "between shapes"
    assert m.tolist() == [1, 16, 64, 256, 1024, 4096]
    assert np.abs(times_us / (1000 * made_up_gemm_ms(m, 1024, 2048)) - 1).mean() < 0.1


def test_wide_shapes_are_scaled_and_deep_ones_refused(tmp_path):
    """Beyond the largest n a time is proportional to n, below the least it is the least one's; no other k."""
    grid = GemmGrid(gemm_source(tmp_path))
    m, times_us, how = grid.times_us(16_384, 512)

    assert times_us == pytest.approx(2 * 1000 * made_up_gemm_ms(m, 8192, 512))
    assert how.startswith("scaled from n = 8192")
    narrow, times_us, how = grid.times_us(8, 512)
    assert times_us == pytest.approx(1000 * made_up_gemm_ms(narrow, 256, 512))
    assert how == "as n = 256, measured"
    for n, k in ((512, 16_384), (512, 128)):
        with pytest.raises(InputError, match="the GEMM table covers k from 256 to 8192"):
            grid.times_us(n, k)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_shapes_of_a_rank_hold_its_weights(ranks):
    """The GEMMs of all layers and the head hold exactly the weights of a rank."""
    weights = MODEL.weights_per_rank(Parallelism(tensor=ranks))
    head, *_ = [n * k for op, (n, k) in gemm_shapes(MODEL, ranks).items() if op == "lm_head"]
    layer = sum(n * k for op, (n, k) in gemm_shapes(MODEL, ranks).items() if op != "lm_head")

    assert MODEL.num_layers * layer == weights.attention + weights.mlp
    assert head == weights.head


def test_query_heads_between_measured_ones_are_interpolated(tmp_path):
    """28 query heads over 4 KV heads lie between 16 and 32 at as many KV heads."""
    rows = [CONTEXT | {"num_heads": q, "num_key_value_heads": 4, "latency": 0.01 * q} for q in (16, 32)]
    rows.append(CONTEXT | {"latency": 9.0})
    found, how = attention_of_heads(Source.read(table(tmp_path, "c.csv", *rows)), "isl", 28, 4, 128)

    assert found["t_us"].tolist() == pytest.approx([280.0])
    assert how == "between 16 and 32 query heads"
    with pytest.raises(InputError, match="no attention of 64 query heads over 4 KV heads"):
        attention_of_heads(Source.read(tmp_path / "c.csv"), "isl", 64, 4, 128)


def test_elementwise_rows_have_a_floor_and_a_slope():
    """Norms take a launch for one token and their bytes at 80 % of the bandwidth for many."""
    device = load_device("h100")
    rows = elementwise_rows(MODEL, device, 1, np.array([1, 1_000_000]))
    first, many = rows[rows["op"] == "rmsnorm"]["t_us"]

    assert first == aiconfigurator.LAUNCH_US["rmsnorm"]
    assert many == pytest.approx(1e12 * 4 * 4096 * 2 / (0.8 * device.memory_bandwidth_bytes_per_s))
    assert set(rows["backend"]) == {"derived"}


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ([GEMM, CONTEXT | {"device": "other"}], r"1.csv is of GPU, other, expected one device"),
        ([GEMM, GEMM], r"1.csv and .*0.csv are both gemm tables, expected one"),
        ([MLP], r"no table of aiconfigurator has these columns"),
        ([GEMM | {"gemm_dtype": "fp8"}], r"no rows of gemm_dtype bfloat16; there are fp8"),
        ([GEMM | {"latency": 0.0}], r"latency is 0.0, expected a time above 0"),
        (
            [GEMM, CONTEXT | {"num_heads": 7, "latency": -1.0}],
            r"1.csv line 2: latency is -1.0, expected a time",
        ),
        (
            [GEMM, CONTEXT | {"num_heads": 7, "isl": 2.5}],
            r"1.csv line 2: isl is 2.5, expected a whole number",
        ),
        ([NCCL | {"nccl_dtype": "int8", "latency": "x"}], r"0.csv line 2: latency is 'x', expected a number"),
        (
            [NCCL | {"op_name": "gossip"}],
            r"line 2: unknown collective 'gossip'; known: all_reduce, all_gather",
        ),
        ([CONTEXT], r"no gemm table among"),
        ([GEMM | {"n": 65_536, "k": 32}, CONTEXT], r"the GEMM table covers k from 32 to 32"),
    ],
)
def test_foreign_aiconfigurator_tables_are_refused(tmp_path, tables, complaint):
    """Several devices, a table twice, other projects, other precisions, missing tables and shapes."""
    paths = [table(tmp_path, f"{at}.csv", row) for at, row in enumerate(tables)]

    with pytest.raises(InputError, match=complaint):
        AicTables.read(paths).rows(MODEL, load_device("h100"))


@pytest.mark.parametrize("kind", ["gemm", "context", "generation", "nccl"])
def test_one_row_in_seconds_is_told_among_milliseconds(tmp_path, kind):
    """Rows of shapes that the model does not have are looked at, too."""
    size, row = {
        "gemm": ("m", GEMM), "context": ("isl", CONTEXT), "generation": ("step", CONTEXT | {"step": 1}),
        "nccl": ("message_size", NCCL),
    }[kind]  # fmt: skip
    rows = [row | {size: 2**k, "latency": 0.01 * 2**k} for k in range(1, 8)]
    AicTables.read([table(tmp_path, "right.csv", *rows)])
    rows[3]["latency"] *= 1000

    with pytest.raises(InputError, match=r"wrong.csv line 5: .* takes 160000 us, and .*; are the times in"):
        AicTables.read([table(tmp_path, "wrong.csv", *rows)])


def test_units_are_compared_where_other_counts_are_missing(tmp_path):
    """Attention has no bytes: its points have sizes all the same, ragged ones, too."""
    equal = [{"op": "attn_decode", "n_seq": 1, "kv_total": 2**k, "t_us": 8.0 * 2**k} for k in range(6)]
    ragged = [
        {"op": "attn_decode", "n_seq": 2, "kv_total": -1, "t_us": 2.0**k,
         "batch_spec": json.dumps({"chunks": [[1, 2**k], [1, 2**k]]})}
        for k in range(1, 12)
    ]  # fmt: skip
    for rows in (equal, ragged):
        read_rows(table(tmp_path, "right.csv", *rows))
        rows[-2]["t_us"] *= 1000
        with pytest.raises(InputError, match=r"wrong.csv line .*; are the times in different units"):
            read_rows(table(tmp_path, "wrong.csv", *rows))


def test_installed_tables_are_found(tmp_path, monkeypatch):
    """The newest version of a table of an installed package is taken; an unknown system names the known."""
    package = tmp_path / aiconfigurator.PACKAGE
    for version in ("0.9.0", "0.24.0"):
        folder = package / "systems/data/h200_sxm/gemm/vllm" / version
        folder.mkdir(parents=True)
        (folder / "gemm_perf.parquet").touch()
    (package / "__init__.py").touch()
    with monkeypatch.context() as without:
        without.setattr(aiconfigurator, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"pip install 'cspsched\[aic\]'"):
            aiconfigurator.installed_tables("h200_sxm")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = aiconfigurator.installed_tables("h200_sxm")

    assert found.parent.name == "0.24.0"
    with pytest.raises(InputError, match="no system 'h201'; known: h200_sxm"):
        aiconfigurator.installed_tables("h201")


# Collectives and heads of aiconfigurator


CUSTOM = {"device": "GPU", "op_name": "all_reduce", "kernel_source": collectives.CUSTOM_KERNEL,
          "allreduce_dtype": "bfloat16", "num_gpus": 2}  # fmt: skip
GENERATION = {"device": "GPU", "num_heads": 8, "num_key_value_heads": 2, "step": 64}


def test_the_all_reduce_is_the_engines_own_up_to_its_limit(tmp_path):
    """Sizes are elements of two bytes: vLLM's kernel up to 8 MiB, as in a CUDA graph, and NCCL beyond."""
    sizes = [2**10, 2**22, 2**23]
    custom = [CUSTOM | {"message_size": size, "latency": 0.005 * k} for k, size in enumerate(sizes, 1)]
    eager = [row | {"kernel_source": "vLLM_custom_eager", "latency": 0.02} for row in custom]
    nccl = [NCCL | {"message_size": size, "latency": 0.05 + 0.01 * k} for k, size in enumerate(sizes)]
    paths = [table(tmp_path, "custom.csv", *custom, *eager), table(tmp_path, "nccl.csv", *nccl)]
    rows = AicTables.read(paths).collectives(load_device("h100"), 2)

    assert rows[["bytes", "t_us", "kernel_impl"]].to_numpy().tolist() == [
        [2**11, 5.0, "vLLM custom all-reduce in a CUDA graph"],
        [2**23, 10.0, "vLLM custom all-reduce in a CUDA graph"],
        [2**24, 70.0, "NCCL"],
    ]
    with pytest.raises(InputError, match="no all-reduce over 4 ranks"):
        AicTables.read(paths).collectives(load_device("h100"), 4)


def test_heads_that_were_not_measured_come_from_fewer_kv_heads(tmp_path):
    """Decodes: as many KV heads in all, of more requests; prefills: as many query heads. It says so."""
    decodes = [GENERATION | {"batch_size": n, "isl": 1, "latency": 0.01 * n} for n in (1, 2, 4, 8)]
    prompts = [GENERATION | {"batch_size": n, "isl": 16, "step": 0, "latency": 0.1 * n} for n in (1, 2)]
    decode = Source.read(table(tmp_path, "decode.csv", *decodes))
    prompt = Source.read(table(tmp_path, "prompt.csv", *(row | {"num_heads": 32} for row in prompts)))

    found, how = attention_of_heads(decode, "step", 32, 8, 128)
    assert how == "from 8 query heads over 2 KV heads"
    assert found[["batch_size", "t_us"]].to_numpy().tolist() == [[1, 40.0], [2, 80.0]]
    found, how = attention_of_heads(prompt, "isl", 32, 8, 128)
    assert how == "from 32 query heads over 2 KV heads"
    assert found[["batch_size", "t_us"]].to_numpy().tolist() == [[1, 100.0], [2, 200.0]]
    with pytest.raises(InputError, match="no attention of 12 query heads over 3 KV heads"):
        attention_of_heads(decode, "step", 12, 3, 128)


def mla_rows():
    """Tables of the whole block of latent attention, 16 heads."""
    row = {"device": "GPU", "mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "gemm_type": "fp8_block",
           "num_heads": 16, "batch_size": 1}  # fmt: skip
    return {
        "mla_context": [row | {"isl": x, "step": 0, "latency": 0.1 + x / 1e4} for x in (64, 256, 1024)],
        "mla_generation": [row | {"isl": 1, "step": x, "latency": 0.1 + x / 1e6} for x in (64, 512, 4096)],
    }


def test_latent_attention_is_the_measured_block(tmp_path):
    """Rows of its heads on a rank; matrix products outside it: dense layers, shared experts and head."""
    model = load_model("deepseek-v3")
    of_rank = gemm_shapes(model, 8)
    for kind, rows in mla_rows().items():
        table(tmp_path, f"{kind}.csv", *rows)
    tables = AicTables.read([tmp_path / f"{kind}.csv" for kind in mla_rows()])
    attention = tables.attention(model, 8)

    assert set(of_rank) == {"gate_up", "down", "router", "shared_gate_up", "shared_down", "lm_head"}
    assert of_rank["shared_gate_up"] == (2 * 2048 // 8, 7168)
    assert of_rank["gate_up"] == (2 * 18432 // 8, 7168)
    assert attention["kernel_impl"].unique().tolist() == ["measured with its projections"]
    decodes = attention[attention["op"] == "attn_decode"]
    assert decodes["t_us"].tolist() == pytest.approx([100 + x / 1e3 for x in (64, 512, 4096)])
    with pytest.raises(InputError, match="has no attention of 32 heads"):
        tables.attention(model, 4)
    other = replace(model, mla=replace(model.mla, kv_lora_rank=256))
    with pytest.raises(InputError, match="only that of deepseek-v3 with weights in bf16, fp8"):
        tables.attention(other, 8)


def test_operators_count_in_the_layers_that_have_them():
    """Three of 61 layers have an MLP; experts, router and shared experts are in the others."""
    model = load_model("deepseek-v3")

    assert share_of_layers("gate_up", model) == pytest.approx(3 / 61)
    assert share_of_layers("experts", model) == share_of_layers("shared_down", model) == 58 / 61
    assert share_of_layers("rmsnorm", model) == 1
    assert share_of_layers("gate_up", load_model("llama-3.1-8b")) == 1


# The public tables


@needs_tables
@pytest.mark.parametrize("ranks", [1, 2])
def test_public_tables_make_a_cost_model(ranks):
    """Public H200 tables of five kinds give rows of known operators that a cost model can be fitted to."""
    tables = AicTables.read(sorted(TABLES.glob("prof_aic_h200_*")))
    rows = tables.rows(load_model("qwen3-30b-a3b"), load_device("h200"), Parallelism(tensor=ranks))
    fitted = fit_profile(rows, load_model("qwen3-30b-a3b"), ranks)

    assert set(rows["op"]) <= set(OPERATORS)
    assert {"experts", "router", "qk_norm"} <= set(rows["op"])
    assert ("all_reduce" in set(rows["op"])) == (ranks > 1)
    assert fitted.domain.largest["tokens"] >= 16_384


@needs_tables
def test_groups_bring_their_tokens_together():
    """Experts see the tokens of both groups; dispatch and combine are the collectives over them."""
    tables = AicTables.read(sorted(TABLES.glob("prof_aic_h200_*")))
    model, device = load_model("qwen3-30b-a3b"), load_device("h200")
    alone, together = (
        tables.rows(model, device, Parallelism(data=data, has_expert_parallel=True)) for data in (1, 2)
    )
    (gathered,) = (part for op, part in together.groupby("op") if op == "dispatch")
    network = tables.collectives(load_device("h100"), 2)
    sizes = network[network["op"] == "all_gather"].sort_values("bytes")

    assert {"dispatch", "combine"} == set(together["op"]) - set(alone["op"])
    assert "all_reduce" not in set(together["op"])
    tokens = together[together["op"] == "experts"]["num_tokens"].max()
    assert 2 * tokens == alone[alone["op"] == "experts"]["num_tokens"].max()
    expected = np.interp(2 * gathered["num_tokens"] * 2 * model.hidden_size, sizes["bytes"], sizes["t_us"])
    assert gathered["t_us"].to_numpy() == pytest.approx(expected)


@needs_tables
@pytest.mark.parametrize("gpu", ["RTXPRO6000", "RTX4090"])
def test_skewed_decodes_are_three_forwards(gpu):
    """At equal lengths the skew table is three times the attention table (what the importer divides by)."""
    attention = pd.read_csv(TABLES / f"prof_llmservingsim_{gpu}_llama8b_attention.csv")
    skew = pd.read_csv(TABLES / f"prof_llmservingsim_{gpu}_llama8b_skew.csv")
    pure = attention[(attention["prefill_chunk"] == 0) & (attention["n_decode"] == 64)]
    rows = skew[(skew["regime"] == "pure") & (skew["n"] == 64) & (skew["kv_mean"] >= 512)]
    ratios = rows["t_mean_us"] / np.interp(rows["kv_mean"], pure["kv_decode"], pure["time_us"])

    assert ratios.median() == pytest.approx(3.0, abs=0.05)


@needs_tables
def test_a_batch_of_prefills_is_not_one_long_prefill():
    """Vidur's stand-in of length sqrt(sum p^2) is at least 10 % too fast on H200 from 1024 tokens on."""
    source = Source.read(next(TABLES.glob("prof_aic_h200_*context*")))
    grid, _ = attention_of_heads(source, "isl", 32, 8, 128)
    single = grid[grid["batch_size"] == 1].sort_values("isl")
    batches = grid[(grid["batch_size"] > 1) & (grid["isl"] >= 1024)]
    equivalent = batches["isl"] * np.sqrt(batches["batch_size"])
    inside = equivalent <= single["isl"].max()
    claimed = np.interp(equivalent[inside], single["isl"], single["t_us"])

    assert (claimed / batches["t_us"][inside] - 1).mean() < -0.1


@needs_tables
def test_decode_time_hangs_on_the_total_and_on_the_number():
    """At 131,072 entries decodes of 1024 to 65,536 are within 7 % of each other; those of 64 take 3 times."""
    source = Source.read(next(TABLES.glob("prof_aic_h200_*generation*")))
    grid, _ = attention_of_heads(source, "step", 32, 8, 128)
    total = grid[grid["batch_size"] * (grid["step"] + 1) == 131_072].set_index("step")["t_us"]
    long = total[(total.index >= 1023) & (total.index <= 65_535)]

    assert long.max() / long.min() < 1.14
    assert total[63] > 3 * long.mean() * 0.95
