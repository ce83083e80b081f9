"""Batch times composed from Vidur's tables, against the formula written out with dictionaries."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.costs.vidur_tables import VidurModel, VidurTables
from cspsched.errors import InputError
from tests.support.tight_instances import check

NAMES = (
    "attn_pre_proj", "attn_post_proj", "attn_rope", "attn_kv_cache_save", "input_layernorm", "mlp_up_proj",
    "mlp_down_proj", "mlp_act", "post_attention_layernorm", "add", "all_reduce", "send_recv",
)  # fmt: skip
LONGEST = 128
MODEL = VidurModel(num_layers=6)


def make_tables(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random milliseconds for up to 128 tokens, 8 decodes and 320 tokens of KV."""
    random = np.random.default_rng(seed)
    tables: dict[str, np.ndarray[Any, Any]] = {}
    for name in NAMES:
        tables[name] = random.random(LONGEST)
        tables[f"{name}__num_tokens"] = np.arange(1, LONGEST + 1)
    kv = np.arange(0, 384, 64)
    tables |= {"attn_decode": random.random((8, 6)), "attn_decode__batch": np.arange(1, 9)}
    tables |= {"attn_prefill": random.random((6, LONGEST)), "attn_prefill__chunk": np.arange(1, LONGEST + 1)}
    return tables | {"attn_decode__kv": kv, "attn_prefill__kv": kv}


def written_out(
    tables: dict[str, np.ndarray[Any, Any]],
    model: VidurModel,
    prefills: list[tuple[int, int]],
    decodes: list[int],
) -> list[float]:
    """Section 3.1 of the notes on Vidur, term by term."""
    by_tokens = {name: dict(zip(range(1, LONGEST + 1), tables[name].tolist(), strict=True)) for name in NAMES}
    total = sum(tokens for tokens, _ in prefills) + len(decodes)
    rounded = math.ceil(total / 8) * 8
    reduce = 0.0
    if model.tensor_parallel > 1:
        reduce = (
            by_tokens["all_reduce"][rounded] + model.launch_ms + model.skew_ms * model.tensor_parallel**1.25
        )
    decode = prefill = 0.0
    if decodes:
        mean = int(sum(decodes) / len(decodes))
        decode = tables["attn_decode"][len(decodes) - 1, math.ceil(mean / 64)]
        decode *= 1 + model.decode_overhead if model.is_gqa and len(decodes) > 1 else 1
    if prefills:
        kv = sum(math.ceil(before / 64) * 64 for _, before in prefills)
        chunk = round(math.sqrt(sum(tokens**2 for tokens, _ in prefills)))
        prefill = tables["attn_prefill"][kv // 64, chunk - 1]
        prefill *= 1 + model.prefill_overhead if model.is_gqa and len(prefills) > 1 else 1
    attention = sum(by_tokens[name][rounded] for name in ("attn_pre_proj", "attn_post_proj", "attn_rope"))
    attention += by_tokens["attn_kv_cache_save"][total] + decode + prefill
    attention += by_tokens["input_layernorm"][rounded] + reduce
    mlp = sum(by_tokens[name][rounded] for name in ("mlp_up_proj", "mlp_down_proj", "mlp_act"))
    mlp += (by_tokens["post_attention_layernorm"][rounded] if model.has_post_norm else 0) + reduce
    block = attention + mlp + by_tokens["add"][rounded]
    stage = block * model.num_layers / model.pipeline_stages
    sending = stage + by_tokens["send_recv"][rounded]
    return [*[sending * 1e-3] * (model.pipeline_stages - 1), stage * 1e-3]


models = st.builds(
    VidurModel,
    num_layers=st.integers(1, 8),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    pipeline_stages=st.integers(1, 3),
    is_gqa=st.booleans(),
    has_post_norm=st.booleans(),
    skew_ms=st.sampled_from([0.0, 0.01]),
)


@check
@given(
    model=models,
    prefills=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 130)), max_size=2),
    decodes=st.lists(st.integers(1, 320), max_size=8),
    seed=st.integers(0, 3),
)
def test_batch_times_are_those_of_the_formula(
    model: VidurModel, prefills: list[tuple[int, int]], decodes: list[int], seed: int
) -> None:
    """To rounding errors, on every stage."""
    if not prefills and not decodes:
        decodes = [1]
    tables = make_tables(seed)
    times_s = VidurTables(tables, model, "here").stage_times_s(prefills, decodes)

    assert times_s == pytest.approx(written_out(tables, model, prefills, decodes), rel=1e-13)


@pytest.mark.parametrize(
    ("prefills", "decodes", "message"),
    [
        ([(128, 0), (1, 0)], [], "129 tokens, the tables end at 128 tokens"),
        ([], [1] * 9, "9 decodes of 64 tokens, the tables end at 8 decodes of 320 tokens"),
        ([], [321], "1 decodes of 384 tokens"),
        ([(1, 200), (1, 65)], [], "a prefill of 1 tokens after 384, the tables end at 128 tokens after 320"),
    ],
)
def test_a_batch_beyond_the_tables_is_an_error(
    prefills: list[tuple[int, int]], decodes: list[int], message: str
) -> None:
    """Vidur dies of a KeyError; one less is fine."""
    tables = VidurTables(make_tables(0), MODEL, "here")
    assert tables.stage_times_s([(128, 0)], []) > [0]
    assert tables.stage_times_s([], [320] * 8) > [0]
    with pytest.raises(InputError, match=f"here: a batch counts as {message}"):
        tables.stage_times_s(prefills, decodes)


def test_only_what_is_needed_has_to_be_there() -> None:
    """The all-reduce with tensor parallelism, sending with stages, the second norm if there is one."""
    optional = {"all_reduce", "send_recv", "post_attention_layernorm"}
    tables = {name: table for name, table in make_tables(0).items() if name.split("__")[0] not in optional}
    lean = replace(MODEL, has_post_norm=False)
    VidurTables(tables, lean, "here")
    for model in (MODEL, replace(lean, tensor_parallel=2), replace(lean, pipeline_stages=2)):
        with pytest.raises(InputError, match=r"here: table .* is missing"):
            VidurTables(tables, model, "here")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attn_rope", np.full(LONGEST, -1.0), "times that are negative"),
        ("attn_rope", np.full(LONGEST, np.nan), "or no numbers"),
        ("attn_rope", np.ones((2, 2)), "is 2-dimensional float64"),
        ("attn_rope", np.array(["a"]), "is 1-dimensional <U1"),
        ("attn_rope__num_tokens", np.arange(LONGEST), r"attn_rope__num_tokens must be 1, 2, \.\.\."),
        ("attn_decode__kv", np.arange(6), r"attn_decode__kv must be 0, 64, \.\.\."),
    ],
)
def test_malformed_tables_are_refused(name: str, value: np.ndarray[Any, Any], message: str) -> None:
    """Look-ups go by position, so the keys have to be what is expected."""
    with pytest.raises(InputError, match=message):
        VidurTables(make_tables(0) | {name: value}, MODEL, "here")


def test_tables_are_read_from_a_file(tmp_path: Path) -> None:
    """The same times as from memory."""
    np.savez(tmp_path / "tables.npz", **make_tables(1))
    read = VidurTables.read(tmp_path / "tables.npz", MODEL)

    assert read.stage_times_s([(5, 0)], [3]) == VidurTables(make_tables(1), MODEL, "").stage_times_s(
        [(5, 0)], [3]
    )


class Trap:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("kind", ["missing", "text", "array", "pickle"])
def test_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    """And nothing is unpickled."""
    path = tmp_path / "tables.npz"
    if kind == "text":
        path.write_text("no tables")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "pickle":
        np.savez(path, attn_rope=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="no tables can be read"):
        VidurTables.read(path, MODEL)
