"""What is measured: shapes of shards, grids and their order, rows and the folder that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.models import load_model, model_names
from cspsched.costs.parallelism import Parallelism
from cspsched.costs.rows import COLUMNS, OPERATORS, read_rows
from cspsched.errors import InputError, UsageError
from cspsched.profiler.backends import Features, attention_backend, operator_backends
from cspsched.profiler.grids import Tier, grid_names, load_grid, plan_points
from cspsched.profiler.operators import COLLECTIVES, operators_of, work_of
from cspsched.profiler.points import Chunk, Point, attention_pairs, tokens_chunk
from cspsched.profiler.rows import RowContext, make_row, point_key, row_keys, write_rows
from cspsched.profiler.shapes import rank_shape
from cspsched.profiler.store import ProfileFolder, read_meta
from cspsched.profiler.timing import summarise

TINY = load_model("tiny-llama")
PROFILED = [name for name in model_names() if not name.startswith(("gpt-oss", "deepseek"))]
"""Models with 16-bit weights and full attention."""
CPU = Features(
    device="cpu",
    varlen=False,
    paged=False,
    in_place=False,
    causal_by_window=True,
    grouped_mm=False,
    varlen_parameters=(),
)
GPU = Features(
    device="cuda",
    varlen=True,
    paged=True,
    in_place=True,
    causal_by_window=True,
    grouped_mm=True,
    varlen_parameters=("block_table", "seqused_k"),
)


def plan(grid="smoke", model=TINY, tensor_parallel=(1,), features=CPU, seed=0):
    """A plan of a shipped grid."""
    backends = operator_backends(model, features)
    return plan_points(load_grid(grid), model, tensor_parallel, backends, seed=seed)


def row(point, t_us=10.0, model=TINY):
    """Row of a point that took a made-up time."""
    context = RowContext(profile_id="p", model=model, page_size=256)
    sample = summarise(np.full(5, t_us))
    return make_row(point, rank_shape(model, point.tensor_parallel), context, sample, "none")


# Shapes


@pytest.mark.parametrize("name", PROFILED)
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_shards_have_the_weights_that_the_capacity_planner_counts(name, tensor_parallel):
    """Matrix products of a layer and the head hold exactly the weights that a rank is planned to hold."""
    model = load_model(name)
    if model.num_heads % tensor_parallel:
        pytest.skip(f"{model.num_heads} heads cannot be shared by {tensor_parallel}")
    shape = rank_shape(model, tensor_parallel)
    counts = model.weights_per_rank(Parallelism(tensor=tensor_parallel))
    layer = shape.hidden * (shape.qkv_size + shape.q_size)
    layer += (shape.qkv_size if shape.qkv_bias else 0) + (2 * shape.head_dim if shape.qk_norm else 0)

    assert shape.num_layers * layer == counts.attention
    assert model.tied_embeddings or shape.vocabulary * shape.hidden == counts.head


def test_a_layer_of_all_models_caches_what_the_facts_say():
    """KV bytes of a token in all layers: 2 x layers x KV heads x head_dim x bytes, on one rank."""
    for model in map(load_model, PROFILED):
        shape = rank_shape(model)
        assert shape.num_layers * shape.kv_bytes_per_token == model.kv_bytes_per_token()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.1-8b-fp8", "fewer than 16 bits"),
        ("gpt-oss-20b", "fewer than 16 bits"),
        ("deepseek-v3-bf16", "latent attention or shared experts"),
    ],
)
def test_what_is_not_measured_is_refused(name, words):
    """Formats of weights have kernels of their own."""
    with pytest.raises(UsageError, match=words):
        rank_shape(load_model(name))


def test_layers_that_are_not_measured_are_refused():
    """A window changes what attention reads."""
    with pytest.raises(UsageError, match="sliding windows"):
        rank_shape(replace(TINY, sliding_window=128, num_sliding_layers=1))


def test_heads_that_cannot_be_shared_out_are_refused():
    """Eight heads over three ranks is an error that names both."""
    with pytest.raises(
        UsageError, match=r"parallelism 3 does not divide the 8 attention heads of tiny-llama"
    ):
        rank_shape(TINY, 3)


# Operators


@pytest.mark.parametrize("name", model_names())
def test_every_operator_is_known_to_the_fit(name):
    """What is measured can be fitted: every operator has its calls per layer and per batch."""
    names = {operator.name for operator in (*operators_of(load_model(name)), *COLLECTIVES)}

    assert names <= set(OPERATORS)


def test_work_of_a_step_is_two_operations_a_weight_and_token():
    """Matrix products of all operators come to 2 x weights of layers and head x tokens."""
    model = load_model("llama-3.1-8b")
    shape, counts = rank_shape(model), model.weights_per_rank()
    products = ("qkv_proj", "o_proj", "gate_up", "down")
    layer = sum(work_of(Point(name, 1, "eager", tokens_chunk(7)), shape).flops for name in products)
    head = work_of(Point("lm_head", 1, "eager", tokens_chunk(7)), shape).flops

    assert shape.num_layers * layer == 2 * 7 * (counts.attention + counts.mlp)
    assert head == 2 * 7 * counts.head


def test_attention_reads_the_cache_once():
    """A decode of n entries moves (n + 1) KV entries, its query and its output."""
    shape = rank_shape(TINY)
    work = work_of(Point("attn_decode", 1, "sdpa_loop", (Chunk(1, 99),)), shape)

    assert work.num_bytes == 100 * shape.kv_bytes_per_token + 2 * shape.q_size * 4
    assert work.flops == 4 * shape.q_size * 100


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_attention_pairs_telescope(cuts):
    """However a prompt is cut into chunks, the pairs add up to those of the whole prompt."""
    ends = np.cumsum(cuts)
    chunks = [Chunk(int(c), int(end - c)) for c, end in zip(cuts, ends, strict=True)]

    assert attention_pairs(chunks) == attention_pairs([Chunk(int(ends[-1]), 0)])


# Grids


@pytest.mark.parametrize("grid", grid_names())
def test_every_shipped_grid_covers_every_operator(grid):
    """No operator of any model is left without points, and no point is planned twice."""
    for model in (TINY, load_model("qwen3-30b-a3b")):
        points = [planned.point for planned in plan(grid, model)]

        assert {point.operator for point in points} == {operator.name for operator in operators_of(model)}
        assert len(set(points)) == len(points)


@pytest.mark.parametrize("grid", grid_names())
def test_coarse_points_come_first_and_show_every_operator(grid):
    """A run that is cut after the coarse tier has tokens, heads, prefills and decodes."""
    planned = plan(grid, tensor_parallel=(1, 2))
    tiers = [tier for tier, _ in planned]
    coarse = {point.operator for tier, point in planned if tier is Tier.COARSE}

    assert tiers == sorted(tiers)
    assert {operator.name for operator in operators_of(TINY)} - coarse == {"attn_mixed"}


def test_gpu_grid_is_the_one_of_the_specification():
    """44 token counts, on both sides of tile edges; decodes of up to 2 M entries; 120 mixed draws."""
    points = [planned.point for planned in plan("gpu", load_model("llama-3.1-8b"), features=GPU)]
    tokens = {point.num_tokens for point in points if point.operator == "down"}
    decodes = [point for point in points if point.operator == "attn_decode"]

    assert 40 <= len(tokens) <= 44
    assert {255 + 1, 257, 4096, 4097, 16384} <= tokens
    assert max(sum(chunk.context for chunk in point.chunks) for point in decodes) == 2 * 2**20
    assert sum(point.is_ragged for point in decodes) == 40
    assert 100 <= sum(point.operator == "attn_mixed" for point in points) <= 120


def test_same_seed_same_plan_and_another_seed_another_order():
    """The order is random and repeatable; a run that is resumed finds the same points."""
    assert plan(seed=3) == plan(seed=3)
    assert [p.point for p in plan(seed=3)] != [p.point for p in plan(seed=4)]
    assert {p.point for p in plan(seed=3)} <= {p.point for p in plan(seed=3, tensor_parallel=(1, 2))}


def test_dense_kernels_are_measured_on_fresh_prompts_of_one_length_only():
    """The dense back ends cannot do contexts or ragged batches, so that they are never asked to."""
    dense = [
        planned.point.chunks
        for planned in plan("gpu", load_model("llama-3.1-8b"), features=GPU)
        if planned.point.backend in ("sdpa_flash", "sdpa_cudnn")
    ]

    assert dense
    assert all(len(set(chunks)) == 1 and chunks[0].context == 0 for chunks in dense)


def test_active_experts_are_never_more_than_tokens_can_reach():
    """A token reaches as many experts as it is routed to; all of them come into the grid."""
    model = load_model("qwen3-30b-a3b")
    points = [p.point for p in plan("gpu", model, features=GPU) if p.point.operator == "experts"]

    assert all(8 <= point.active_experts <= min(128, 8 * point.num_tokens) for point in points)
    assert max(point.active_experts for point in points) == 128


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ragged = 1", "ragged = -1", r"prefill.ragged is -1, expected a whole number of at least 0"),
        ("draws = 1", "", r"mixed: draws missing"),
        ("[mixed]", "[mixed]\nspeed = 1", r"mixed: unknown key 'speed'"),
        ("coarse = [1, 16]", "coarse = 16", r"tokens.coarse is 16, expected a list of whole numbers"),
    ],
)
def test_a_wrong_grid_file_is_refused_with_its_place(tmp_path, old, new, message):
    """The sentence names the file, the section and the key."""
    from cspsched.resources import data_root

    text = (data_root() / "profiling/grids/smoke.toml").read_text(encoding="utf-8")
    path = tmp_path / "grid.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")

    with pytest.raises(InputError, match=message):
        load_grid(str(path))


# Back ends


@pytest.mark.parametrize(
    ("paged", "in_place", "varlen", "backend"),
    [
        (True, True, True, "varlen_paged"),
        (False, True, True, "flash_in_place"),
        (False, False, True, "varlen"),
        (False, False, False, "sdpa_loop"),
    ],
)
def test_attention_falls_back_along_what_torch_offers(paged, in_place, varlen, backend):
    """Pages, entries where they are, entries that are gathered, one call a sequence."""
    features = replace(GPU, varlen=varlen, in_place=in_place, paged=paged)

    assert backend == attention_backend(features)
    assert backend == operator_backends(TINY, features)["attn_decode"][0]


# Rows


def test_rows_have_the_columns_that_fits_read():
    """Columns and their order are those of `cspsched.costs.rows`."""
    assert tuple(row(Point("down", 1, "eager", tokens_chunk(4)))) == COLUMNS


def test_ragged_rows_carry_their_batch():
    """A ragged batch has no single chunk or context; its sequences are in batch_spec."""
    chunks = (Chunk(16, 0), Chunk(1, 30), Chunk(1, 50))
    ragged = row(Point("attn_mixed", 1, "sdpa_loop", chunks))

    assert (ragged["chunk"], ragged["kv"], ragged["n_seq"], ragged["kv_total"]) == (-1, -1, 3, 80)
    assert json.loads(ragged["batch_spec"]) == {"chunks": [[16, 0], [1, 30], [1, 50]]}


def test_every_point_has_its_own_key():
    """Keys tell all points of a plan apart, and a written row has the key of its point."""
    points = [planned.point for planned in plan("cpu", tensor_parallel=(1, 2))]
    keys = [point_key(point, TINY.name) for point in points]

    assert len(set(keys)) == len(points)


def test_keys_survive_the_file(tmp_path):
    """A row that is read back has the key of its point: resuming never measures twice."""
    points = [planned.point for planned in plan("smoke")]
    write_rows([row(point) for point in points], tmp_path / "rows.parquet")

    assert row_keys(read_rows(tmp_path / "rows.parquet")) == {point_key(p, TINY.name) for p in points}


# The folder


def test_parts_are_readable_before_they_are_merged(tmp_path):
    """Rows of a killed run are there to be read, and for the run that goes on."""
    points = [planned.point for planned in plan("smoke")]
    folder = ProfileFolder(tmp_path, resume=False)
    folder.append([row(point) for point in points[:5]], interval=0)
    folder.append([row(point) for point in points[5:9]], interval=1)

    assert len(read_rows(tmp_path)) == 9
    again = ProfileFolder(tmp_path, resume=True)
    assert row_keys(again.rows()) == {point_key(point, TINY.name) for point in points[:9]}


def test_merged_rows_are_there_once(tmp_path):
    """Merging leaves one table with a digest; parts of a kill in between do not double rows."""
    points = [planned.point for planned in plan("smoke")][:6]
    folder = ProfileFolder(tmp_path, resume=False)
    folder.append([row(point) for point in points], interval=0)
    part = next(tmp_path.glob("part-*"))
    kept = part.read_bytes()
    folder.finish({"model": TINY.name})
    part.write_bytes(kept)
    ProfileFolder(tmp_path, resume=True).finish({"model": TINY.name})

    assert [path.name for path in tmp_path.glob("*.parquet")] == ["profile.parquet"]
    assert 6 == len(read_rows(tmp_path / "profile.parquet")) == read_meta(tmp_path)["num_rows"]


def test_drift_flags_the_rows_of_its_interval_only(tmp_path):
    """Rows between two good sentinels keep their word."""
    points = [planned.point for planned in plan("smoke")]
    folder = ProfileFolder(tmp_path, resume=False)
    for interval in (0, 1, 2):
        folder.append([row(points[interval])], interval=interval)
    folder.mark_noisy(1)

    noisy = dict(zip(folder.rows()["op"], folder.rows()["noisy"], strict=True))
    assert [noisy[points[k].operator] for k in (0, 1, 2)] == [0, 1, 0]


def test_a_folder_with_a_profile_is_not_overwritten(tmp_path):
    """Without --resume a second run stops before it measures."""
    ProfileFolder(tmp_path, resume=False).append([row(Point("down", 1, "eager", tokens_chunk(4)))], 0)

    with pytest.raises(InputError, match="holds a profile already; go on with --resume"):
        ProfileFolder(tmp_path, resume=False)


def test_a_foreign_table_in_the_folder_is_refused(tmp_path):
    """A Parquet file with other columns is named and left alone."""
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "profile.parquet")

    with pytest.raises(InputError, match=r"profile.parquet has not the columns of a profile"):
        ProfileFolder(tmp_path, resume=True).rows()


def test_provenance_of_another_schema_is_refused(tmp_path):
    """An unknown schema is refused with a sentence."""
    (tmp_path / "meta.json").write_text('{"schema": "other/1"}')

    with pytest.raises(InputError, match=r"schema is 'other/1', this version of cspsched reads"):
        read_meta(tmp_path)
