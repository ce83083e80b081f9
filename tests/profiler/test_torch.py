"""What is timed computes what it should: attention, experts and the decoder against slow, obvious twins."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from cspsched.costs.models import Moe, load_model
from cspsched.costs.rows import read_rows
from cspsched.errors import InputError, LimitError, UsageError
from cspsched.profiler import layers
from cspsched.profiler.attention import PAGE_TOKENS, cache_slots, plan_attention
from cspsched.profiler.backends import (
    Features,
    attention_backend,
    default_device,
    operator_backends,
    require_torch,
)
from cspsched.profiler.collectives import measure_collectives
from cspsched.profiler.compositions import Composition, Regime
from cspsched.profiler.decoder import Decoder
from cspsched.profiler.grids import load_grid, plan_points
from cspsched.profiler.points import Chunk
from cspsched.profiler.probe import working_attention
from cspsched.profiler.runner import RunSettings, run_profile
from cspsched.profiler.shapes import rank_shape
from cspsched.profiler.store import read_meta
from cspsched.profiler.workbench import Workbench

torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'cspsched[gpu]'")

TINY = replace(
    load_model("tiny-llama"), name="tinier", num_layers=2, hidden_size=64, head_dim=16, intermediate_size=96,
    vocab_size=128,
)  # fmt: skip
MOE = replace(
    TINY, name="tinier-moe", qkv_bias=True, qk_norm=True, tied_embeddings=True,
    moe=Moe(num_experts=6, experts_per_token=2, expert_intermediate_size=32),
)  # fmt: skip
PAGED = Features(
    device="cpu", varlen=True, paged=True, in_place=True, causal_by_window=True, grouped_mm=False,
    varlen_parameters=("enable_gqa", "seqused_k", "block_table"),
)  # fmt: skip
OLD = replace(PAGED, paged=False, in_place=False, causal_by_window=False, varlen_parameters=("is_causal",))
RAGGED = (Chunk(5, 0), Chunk(1, 300), Chunk(40, 256), Chunk(1, 0), Chunk(7, 511))


def naive_attention(q, k, v, context):
    """Softmax over what a query may see, one query and one head at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        for head in range(q.shape[1]):
            keys, values = (x[: context + t + 1, head // group].double() for x in (k, v))
            scores = keys @ q[t, head].double() / q.shape[2] ** 0.5
            out[t, head] = torch.softmax(scores, 0) @ values
    return out


def twin_of_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, seqused_k=None, block_table=None, **causal):
    """varlen_attn as its documentation and its kernel have it, with pages or with packed keys and values."""
    masks = ({"window_size": (-1, 0)}, {"is_causal": True}) if max_q > 1 else ({},)
    assert {name: value for name, value in causal.items() if name != "enable_gqa"} in masks
    assert cu_k.dtype == cu_q.dtype == torch.int32
    assert len(cu_k) == len(cu_q)
    starts, outputs = cu_q.tolist(), []
    assert max_q == max(b - a for a, b in itertools.pairwise(starts))
    for row, (first, last) in enumerate(itertools.pairwise(starts)):
        if block_table is not None:
            pages = block_table[row].long()
            keys, values = (x[pages].flatten(0, 1)[: seqused_k[row]] for x in (k, v))
        else:
            keys, values = (x[cu_k[row] : cu_k[row + 1]] for x in (k, v))
        assert len(keys) <= max_k
        outputs.append(naive_attention(q[first:last], keys, values, len(keys) - (last - first)))
    return torch.cat(outputs)


def twin_of_flash(q, k, v, cu_q, cu_k, max_q, max_k, dropout, is_causal, debug, *, seqused_k):
    """The operator beneath, as its kernel has it: room from cu_k on, of which so many entries are used."""
    assert (dropout, is_causal, debug) == (0.0, max_q > 1, False)
    assert cu_k.dtype == seqused_k.dtype == torch.int32
    assert len(cu_k) == len(cu_q)
    starts, outputs = cu_q.tolist(), []
    for row, (first, last) in enumerate(itertools.pairwise(starts)):
        room = slice(int(cu_k[row]), int(cu_k[row]) + int(seqused_k[row]))
        assert seqused_k[row] <= min(max_k, cu_k[row + 1] - cu_k[row])
        outputs.append(naive_attention(q[first:last], k[room], v[room], int(seqused_k[row]) - (last - first)))
    return torch.cat(outputs), None


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """Kernels of a GPU, slow and obvious."""
    monkeypatch.setattr("cspsched.profiler.attention.varlen_kernel", lambda: twin_of_varlen)
    monkeypatch.setattr("cspsched.profiler.attention.flash_kernel", lambda torch: twin_of_flash)


def whole_sequences(chunks):
    """The same sequences as if all their tokens were processed at once."""
    return tuple(Chunk(chunk.tokens + chunk.context, 0) for chunk in chunks)


@pytest.mark.parametrize(
    ("backend", "features"),
    [("sdpa_loop", PAGED), ("varlen_paged", PAGED), ("flash_in_place", PAGED), ("varlen", OLD)],
)
@pytest.mark.parametrize("first_slot", [0, 2 * PAGE_TOKENS])
def test_attention_over_a_cache_is_that_of_the_bare_sequences(backend, features, first_slot):
    """Ragged chunks with contexts, wherever their entries lie: slots, pages and masks fit together."""
    torch.manual_seed(1)
    q_heads, kv_heads, size = 4, 2, 8
    plans = []
    for chunks in (whole_sequences(RAGGED), RAGGED):
        torch.manual_seed(7)  # the same pages for both
        plans.append(plan_attention(torch, backend, chunks, "cpu", features, first_slot))
    everything, plan = plans
    total = sum(chunk.tokens for chunk in whole_sequences(RAGGED))
    k, v = (torch.randn(total, kv_heads, size) for _ in range(2))
    cache = tuple(torch.randn(first_slot + cache_slots(RAGGED), kv_heads, size) for _ in range(2))
    layers.write_kv(cache, everything.slots, k, v)
    q = torch.randn(sum(chunk.tokens for chunk in RAGGED), q_heads, size)

    found, row, end = plan(q, cache), 0, 0
    for chunk in RAGGED:
        start, end = end, end + chunk.context + chunk.tokens
        expected = naive_attention(q[row : row + chunk.tokens], k[start:end], v[start:end], chunk.context)
        assert torch.allclose(found[row : row + chunk.tokens].double(), expected, atol=1e-5)
        row += chunk.tokens


def test_decodes_alone_ask_for_no_mask(monkeypatch):
    """A single query sees everything; told so, the kernel reads the entries of a group of heads once."""
    asked = []
    monkeypatch.setattr(
        "cspsched.profiler.attention.varlen_kernel",
        lambda: lambda q, *_, **options: asked.append(options) or q,
    )
    q, cache = torch.randn(2, 4, 8), tuple(torch.randn(4 * PAGE_TOKENS, 2, 8) for _ in range(2))
    for features in (PAGED, OLD):
        plan_attention(torch, "varlen_paged", (Chunk(1, 300), Chunk(1, 5)), "cpu", features)(q, cache)

    assert [set(options) for options in asked] == [
        {"enable_gqa", "seqused_k", "block_table"}, {"seqused_k", "block_table"}
    ]  # fmt: skip


def refusing(*_, **options):
    """A build without pages."""
    if "block_table" in options:
        raise RuntimeError("no pages in this build\nsecond line")
    return twin_of_varlen(*_, **options).to(torch.bfloat16)


def wrong(*_, **options):
    """A kernel that forgets the mask."""
    return 1.1 * twin_of_varlen(*_, **options).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("kernel", "refused", "attention"),
    [
        (lambda *a, **o: twin_of_varlen(*a, **o).to(torch.bfloat16), (), "varlen_paged"),
        (refusing, ("varlen_paged: no pages in this build",), "flash_in_place"),
        (wrong, ("varlen_paged: outputs differ by", "varlen: outputs differ by"), "flash_in_place"),
    ],
)
def test_attention_is_tried_before_it_is_measured(kernel, refused, attention, monkeypatch):
    """What raises or answers wrongly on a small batch is not used, and the profile says why."""
    monkeypatch.setattr("cspsched.profiler.attention.varlen_kernel", lambda: kernel)
    found = working_attention(torch, PAGED)

    assert attention_backend(found) == attention
    assert len(found.refused) == len(refused)
    assert all(why.startswith(start) for why, start in zip(found.refused, refused, strict=True))
    assert found.to_json()["refused"] == list(found.refused)


def test_without_any_kernel_sequences_go_one_by_one(monkeypatch):
    """Everything that torch names may fail; a plain call a sequence is always there."""
    for name in ("varlen_kernel", "flash_kernel"):
        monkeypatch.setattr(f"cspsched.profiler.attention.{name}", lambda *_: 1 / 0)
    found = working_attention(torch, PAGED)

    assert attention_backend(found) == "sdpa_loop"
    assert [why.partition(":")[0] for why in found.refused] == ["varlen_paged", "flash_in_place", "varlen"]


@pytest.mark.parametrize("backend", ["sdpa_loop", "varlen_paged", "flash_in_place", "varlen"])
def test_new_tokens_have_slots_of_their_own(backend):
    """No two tokens of a batch are written to the same place, and all lie in the pages counted."""
    slots = plan_attention(torch, backend, RAGGED, "cpu", PAGED, 0).slots

    assert len(slots) == len(set(slots.tolist())) == sum(chunk.tokens for chunk in RAGGED)
    assert 0 <= min(slots) <= max(slots) < cache_slots(RAGGED)


def test_experts_are_a_weighted_sum_over_the_chosen():
    """Token by token and expert by expert gives the same as the sorted groups."""
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(9, 8), torch.randn(5, 12, 8), torch.randn(5, 8, 6)
    share, chosen = layers.route(torch, torch.randn(9, 5), 2)
    expected = torch.zeros(9, 8)
    for token in range(9):
        for weight, expert in zip(share[token], chosen[token], strict=True):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            expected[token] += weight * (down[expert] @ (torch.nn.functional.silu(gate) * up))

    found = layers.apply_experts(torch, x, (share, chosen), (gate_up, down), grouped=False)
    assert torch.allclose(found, expected, atol=1e-4)


def test_grouped_experts_are_the_same(monkeypatch):
    """The path for GPUs sorts and cuts in the same way; its kernel is stood in for by its documentation."""

    def grouped_mm(rows, weights, offs):
        parts = rows.tensor_split(offs[:-1].tolist())
        return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])

    monkeypatch.setattr(torch, "_grouped_mm", grouped_mm)
    torch.manual_seed(0)
    x, weights = torch.randn(9, 8), (torch.randn(5, 12, 8), torch.randn(5, 8, 6))
    routed = layers.route(torch, torch.randn(9, 5), 2)
    one, other = (layers.apply_experts(torch, x, routed, weights, grouped=g) for g in (False, True))

    assert torch.allclose(one, other, atol=1e-4)


def naive_tokens(decoder, model, tokens):
    """Greedy token after each token of a sequence: no cache, whole sequence at once."""
    shape = rank_shape(model)
    linear, x = torch.nn.functional.linear, decoder.embedding[tokens]
    tables = layers.rope_tables(torch, torch.arange(len(tokens)), shape.head_dim, x.dtype)
    for weights in decoder.layers:
        normed = torch.nn.functional.rms_norm(x, (shape.hidden,), weights.input_norm, 1e-5)
        qkv = linear(normed, weights.qkv, weights.qkv_bias).unflatten(-1, (-1, shape.head_dim))
        q, k, v = qkv.split((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)
        if weights.head_norms is not None:
            q, k = (torch.nn.functional.rms_norm(y, (shape.head_dim,), None, 1e-5) for y in (q, k))
        q, k = (layers.rope(torch, y, *tables) for y in (q, k))
        x = x + linear(naive_attention(q, k, v, 0).to(x.dtype).flatten(1), weights.out)
        normed = torch.nn.functional.rms_norm(x, (shape.hidden,), weights.post_norm, 1e-5)
        if weights.router is None:
            gate, up = linear(normed, weights.gate_up).chunk(2, -1)
            x = x + linear(torch.nn.functional.silu(gate) * up, weights.down)
        else:
            routed = layers.route(torch, linear(normed, weights.router), shape.experts.experts_per_token)
            pair = (weights.gate_up, weights.down)
            x = x + layers.apply_experts(torch, normed, routed, pair, grouped=False)
    return linear(torch.nn.functional.rms_norm(x, (shape.hidden,), None, 1e-5), decoder.head).argmax(-1)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("model", [TINY, MOE], ids=lambda model: model.name)
def test_decoder_generates_what_a_decoder_without_a_cache_does(model, unified):
    """Prompt in two chunks, then decodes, beside another request: the same tokens as from the whole text."""
    decoder = Decoder(Workbench(model, "cpu", seed=0), kv_tokens=2 * PAGE_TOKENS, unified=unified)
    torch.manual_seed(3)
    first, other = (torch.randint(model.vocab_size, (12,)) for _ in range(2))
    expected = [naive_tokens(decoder, model, text).tolist() for text in (first, other)]

    def run(prefills, decodes, tokens):
        composition = Composition(Regime.MIXED, prefills, decodes, len(prefills) + len(decodes))
        batch = decoder.batch(composition)
        assert batch.tokens.shape == tokens.shape
        return decoder.forward(batch._replace(tokens=tokens)).tolist()

    # The first request holds the first page in every step, the other one the second.
    assert run((Chunk(5, 0), Chunk(9, 0)), (), torch.cat([first[:5], other[:9]])) == [
        expected[0][4], expected[1][8],
    ]  # fmt: skip
    assert run((Chunk(4, 5),), (Chunk(1, 9),), torch.cat([first[5:9], other[9:10]])) == [
        expected[0][8], expected[1][9],
    ]  # fmt: skip
    for n in (9, 10):
        tokens = torch.stack([first[n], other[n + 1]])
        assert run((), (Chunk(1, n), Chunk(1, n + 1)), tokens) == [expected[0][n], expected[1][n + 1]]


def test_only_generating_rows_reach_the_head():
    """A chunk that does not end its prompt gives no token."""
    decoder = Decoder(Workbench(TINY, "cpu", seed=0), kv_tokens=4 * PAGE_TOKENS)
    decodes = (Chunk(1, 3), Chunk(1, 4))

    assert len(decoder.step(Composition(Regime.MIXED, (Chunk(8, 0),), decodes, 2))()) == 2
    assert len(decoder.step(Composition(Regime.PREFILL, (Chunk(8, 0),), (), 0))()) == 0


# Runs


def settings(folder, model=TINY, **changes):
    """A run of the smoke grid."""
    return RunSettings(
        **{
            "model": model, "tensor_parallel": (1,), "device": "cpu", "grid": load_grid("smoke"),
            "output": folder, "seed": 0, "repeats": 5, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("model", [TINY, MOE], ids=lambda model: model.name)
def test_a_run_measures_every_point_of_its_plan(tmp_path, model):
    """Rows of all operators, read by what cost models are fitted with, and where they come from."""
    outcome = run_profile(settings(tmp_path, model, tensor_parallel=(1, 2)), lambda progress: None)
    rows, meta = read_rows(tmp_path / "profile.parquet"), read_meta(tmp_path)
    backends = operator_backends(model, Workbench(model, "cpu", seed=0).features)

    assert len(rows) == outcome.num_measured == outcome.num_planned
    assert (outcome.num_left, outcome.failed) == (0, {})
    assert outcome.notes == ("no collectives measured for 2 ranks: 0 GPUs here",)
    assert {"all_reduce", "send_recv"}.isdisjoint(rows["op"])
    assert set(rows["op"]) == set(backends)
    assert (meta["num_rows"], meta["model"]) == (len(rows), model.name)
    assert meta["runs"][0]["grid_sha256"] == load_grid("smoke").digest
    assert {"torch", "os", "host_cpu", "device_name"} <= set(meta["machine"])
    assert len(meta["sentinel"]) >= 2
    assert not any("uuid" in key for key in meta["machine"]["gpu"])


def test_an_interrupted_run_keeps_its_rows_and_is_resumed(tmp_path):
    """Ctrl-C after 20 rows leaves 20; the next run measures the others only and ends with all."""

    def interrupt(progress):
        if progress.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_profile(settings(tmp_path), interrupt)
    before = read_rows(tmp_path)
    outcome = run_profile(settings(tmp_path, resume=True), lambda progress: None)
    after = read_rows(tmp_path / "profile.parquet")

    assert 20 == len(before) == outcome.num_before
    assert len(after) == outcome.num_planned == 20 + outcome.num_measured
    assert after.iloc[:20]["t_us"].tolist() == before["t_us"].tolist()
    assert [run["num_measured"] for run in read_meta(tmp_path)["runs"]] == [20, len(after) - 20]


def test_a_run_out_of_time_has_the_coarse_points(tmp_path):
    """The clock strikes in the fine tier: all coarse points are there, the rest is left and said so."""
    now = iter(range(10**6))
    plan = plan_points(
        load_grid("smoke"),
        TINY,
        (1,),
        operator_backends(TINY, Workbench(TINY, "cpu", seed=0).features),
        seed=0,
    )
    num_coarse = sum(planned.tier == 0 for planned in plan)
    # A tick each time that the clock is asked: three or so a point.
    outcome = run_profile(
        settings(tmp_path, time_budget_s=4.0 * num_coarse), lambda p: None, lambda: next(now)
    )
    rows = read_rows(tmp_path)

    assert num_coarse <= outcome.num_measured < len(plan)
    assert outcome.num_left == len(plan) - outcome.num_measured
    assert {point.operator for _, point in plan} - set(rows["op"]) <= {"attn_mixed"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("no memory left\nsecond line"), "no memory left"),
        (TypeError("varlen_attn() got an unexpected keyword"), "varlen_attn() got an unexpected keyword"),
        (FileNotFoundError(), "FileNotFoundError"),
    ],
)
def test_a_point_that_torch_cannot_run_is_named_and_skipped(error, reason, tmp_path, monkeypatch):
    """Whatever one operator raises costs its rows and no others."""
    calls = Workbench.calls

    def failing(bench, point):
        if point.operator == "down":
            raise error
        return calls(bench, point)

    monkeypatch.setattr(Workbench, "calls", failing)
    outcome = run_profile(settings(tmp_path), lambda progress: None)

    assert outcome.failed == {"down tp=1 eager": reason}
    assert 0 < outcome.num_measured < outcome.num_planned
    assert "down" not in set(read_rows(tmp_path)["op"])
    assert read_meta(tmp_path)["failed"] == outcome.failed


def test_a_point_that_breaks_the_device_is_left_out_when_the_run_goes_on(tmp_path, monkeypatch):
    """After an illegal access nothing works in the process; the next one measures all but that point."""
    calls, broken = Workbench.calls, []

    def failing(bench, point):
        if point.operator == "down" and point.num_tokens == 1:
            broken.append(point)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return calls(bench, point)

    def randn(bench, *size):
        if broken and size == (1,):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return torch.randn(size)

    monkeypatch.setattr(Workbench, "calls", failing)
    monkeypatch.setattr(Workbench, "randn", randn)
    with pytest.raises(
        LimitError, match=r"the device no longer answers .*illegal memory.*run the command again"
    ):
        run_profile(settings(tmp_path), lambda progress: None)
    num_before = len(read_rows(tmp_path))
    broken.clear()
    outcome = run_profile(replace(settings(tmp_path), resume=True), lambda progress: None)

    assert broken == []
    assert outcome.num_measured == outcome.num_planned - num_before - 1
    assert {"down"} < set(read_rows(tmp_path)["op"])


def test_a_profile_of_another_machine_is_not_resumed(tmp_path):
    """Rows of two devices never meet in one folder."""
    run_profile(settings(tmp_path, time_budget_s=0.0), lambda progress: None)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["machine"]["device_name"] = "another"
    (tmp_path / "meta.json").write_text(json.dumps(meta))

    with pytest.raises(InputError, match=r"was measured with device_name 'another', this is"):
        run_profile(settings(tmp_path, resume=True), lambda progress: None)


def test_a_profile_of_another_model_is_not_resumed(tmp_path):
    """Rows of two models never meet in one folder."""
    run_profile(settings(tmp_path, time_budget_s=0.0), lambda progress: None)

    with pytest.raises(InputError, match="is a profile of tinier, not of tinier-moe"):
        run_profile(settings(tmp_path, MOE, resume=True), lambda progress: None)


def test_collectives_are_measured_between_processes():
    """Two processes over gloo: every collective at every size, with the bytes of the message."""
    measured = measure_collectives(2, "gloo", [4, 64], rank_shape(TINY, 2), repeats=3)

    assert [(point.operator, point.num_tokens) for point, _ in measured] == [
        (name, tokens)
        for name in ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
        for tokens in (4, 64)
    ]
    assert all(sample.min_us > 0 and np.isfinite(sample.median_us) for _, sample in measured)
    assert {(point.backend, point.tensor_parallel) for point, _ in measured} == {("gloo", 2)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said():
    """Without a GPU the default is the CPU, and asking for one is a usage error."""
    assert default_device() == "cpu"
    with pytest.raises(UsageError, match="finds no CUDA device here; give --device cpu"):
        require_torch("cuda")


def test_a_missing_torch_is_said(monkeypatch):
    """The error names the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "torch", None)

    with pytest.raises(UsageError, match=r"profiling needs torch, which is not installed: pip install"):
        require_torch("cpu")
