"""Tables of a run: one row a request, one row an iteration, the same numbers in both formats."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given

from cspsched.problem.schedule import Schedule
from cspsched.report.run import Run
from cspsched.report.run_tables import TableFormat, iteration_table, request_table, write_run_tables
from tests.support.command_line import invoke
from tests.support.instances import four_mixed, instance_of
from tests.support.places import DOCS
from tests.support.runs import preempted_run, run_of, simulated, swapped_run
from tests.support.strategies import check, check_briefly, feasible_runs, make_instance

FORMATS_PAGE = DOCS / "formats.md"


@pytest.fixture
def preempted() -> Run:
    return preempted_run()


@pytest.fixture
def swapped() -> Run:
    return swapped_run()


def rows(table: pa.Table) -> dict[str, dict[str, object]]:
    return {row["request_id"]: row for row in table.to_pylist()}


def column(run: Run, name: str) -> list[int]:
    return iteration_table(run)[name].to_pylist()


def test_times_of_a_request(preempted):
    """r0 arrives at 0 and has tokens at 20, 70, 80; r1 arrives at 15, runs from 20, tokens at 30 and 60."""
    table = rows(request_table(preempted))

    assert table["r0"] | {"num_preemptions": 2, "recomputed_tokens": 3 + 2} == table["r0"]
    assert table["r1"] | {
        "status": "finished", "arrival_ns": 15, "scheduled_ns": 20, "first_token_ns": 30, "finish_ns": 60,
        "prompt_tokens": 2, "output_tokens": 2, "queueing_ns": 5, "ttft_ns": 15, "tpot_ns": 30.0,
        "latency_ns": 45, "itl_p50_ns": 30.0, "itl_p99_ns": 30.0, "itl_max_ns": 30,
        "num_preemptions": 0, "recomputed_tokens": 0, "swapped_tokens": 0, "cached_tokens": 0,
    } == table["r1"]  # fmt: skip
    # Gaps of r0: 50 and 10.
    assert (table["r0"]["itl_p50_ns"], table["r0"]["itl_p90_ns"]) == (30.0, 46.0)
    assert table["r0"]["itl_max_ns"] == 50


def test_rows_of_iterations(preempted):
    """Composition, KV entries and preemptions of each batch, derived by hand."""
    assert column(preempted, "start_ns") == [0, 10, 20, 40, 50, 60, 70]
    assert column(preempted, "batch_tokens") == [2, 1, 2, 2, 1, 4, 1]
    assert column(preempted, "prefill_tokens") == [2, 1, 2, 2, 0, 4, 0]
    assert column(preempted, "prefill_context_tokens") == [0, 2, 0, 0, 0, 0, 0]
    assert column(preempted, "decode_context_tokens") == [0, 0, 0, 0, 2, 0, 4]
    assert column(preempted, "generated_tokens") == [0, 1, 1, 0, 1, 1, 1]
    assert column(preempted, "kv_tokens") == [2, 3, 2, 4, 3, 4, 5]
    assert column(preempted, "num_running") == [1, 1, 1, 2, 1, 1, 1]
    assert column(preempted, "num_preemptions") == [0, 0, 1, 0, 1, 0, 0]


def test_swap_is_counted_apart_from_recomputation(swapped):
    """Two entries go to host memory and come back; nothing is recomputed."""
    table = rows(request_table(swapped))["r0"]

    assert (table["swapped_tokens"], table["recomputed_tokens"], table["num_preemptions"]) == (2, 0, 1)
    assert column(swapped, "kv_tokens") == [2, 1, 2, 3, 4]
    assert column(swapped, "num_running") == [1, 1, 1, 1, 1]
    assert column(swapped, "host_kv_blocks") == [0, 2, 2, 0, 0]
    assert column(swapped, "moved_kv_blocks") == [0, 2, 0, 2, 0]


def test_cached_tokens_of_a_prefix_are_counted():
    """r1 starts with two tokens that the prefix cache holds: they are on the device, and not processed."""
    instance = make_instance((3, 1), (3, 1))
    schedule = Schedule.from_batches([[(0, 3)], [(1, 1)]], [[], []], [0, 1], [1, 2])
    hits = {"hit_batch": np.array([1]), "hit_request": np.array([1]), "hit_tokens": np.array([2])}
    run = run_of(instance, replace(schedule, kv_tokens=np.array([3, 3]), **hits))

    assert request_table(run)["cached_tokens"].to_pylist() == [0, 2]
    assert column(run, "kv_tokens") == [3, 3]
    assert column(run, "num_running") == [1, 1]


def test_one_output_token_has_neither_gaps_nor_tpot():
    """What is not known is null, not 0; also for the last request of the table."""
    instance = make_instance((1, 1), (1, 3), (1, 1))
    batches = [[(0, 1), (1, 1)], [(1, 1)], [(1, 1)], [(2, 1)]]
    schedule = Schedule.from_batches(batches, [[]] * 4, [0, 10, 20, 30], [10, 20, 30, 40])
    table = request_table(run_of(instance, schedule))

    for name in ("tpot_ns", "itl_p50_ns", "itl_p90_ns", "itl_p99_ns", "itl_max_ns"):
        assert table[name].to_pylist() == [None, 10, None]


@given(feasible_runs())
@check
def test_rows_of_requests_agree_with_numpy(drawn):
    """Percentiles of the gaps are numpy's, request by request, and the times are those of the metrics."""
    run = run_of(*drawn)
    metrics, table = run.metrics, rows(request_table(run))
    ends = np.cumsum(metrics.output_tokens)
    for i, row in enumerate(table.values()):
        gaps = np.diff(metrics.token_ns[ends[i] - metrics.output_tokens[i] : ends[i]])
        mine = run.history.schedule.request == i
        first = run.history.schedule.batch_of_entry[mine][0]

        assert row["scheduled_ns"] == run.history.schedule.start_ns[first]
        assert row["finish_ns"] - row["arrival_ns"] == metrics.latency_ns[i] == row["latency_ns"]
        assert row["scheduled_ns"] - row["arrival_ns"] == row["queueing_ns"] >= 0
        assert row["itl_max_ns"] == (gaps.max() if len(gaps) else None)
        for percentile in (50, 90, 99):
            value = row[f"itl_p{percentile}_ns"]
            assert value == (pytest.approx(np.percentile(gaps, percentile)) if len(gaps) else None)


@given(feasible_runs())
@check
def test_rows_of_iterations_agree_with_a_walk(drawn):
    """KV entries and running requests follow a plain walk over batches; the sums are those of the metrics."""
    run = run_of(*drawn)
    schedule, requests = run.history.schedule, run.history.instance.requests
    left = [request.output_tokens for request in requests]
    held: dict[int, int] = {}
    on_host: dict[int, int] = {}
    table = iteration_table(run)
    for j, row in enumerate(table.to_pylist()):
        for i in schedule.evicted_request[schedule.evicted_batch == j].tolist():
            on_host[i] = held.pop(i)
        for i in schedule.restored_request[schedule.restored_batch == j].tolist():
            held[i] = on_host.pop(i)
        for e in range(schedule.first_entry[j], schedule.first_entry[j + 1]):
            held[int(schedule.request[e])] = int(run.history.kv_after[e])
            left[schedule.request[e]] -= int(run.history.generates[e])
        assert (row["kv_tokens"], row["num_running"]) == (sum(held.values()), len(held))
        held = {i: tokens for i, tokens in held.items() if left[i]}
    preemptions = request_table(run)["num_preemptions"].to_pylist()

    assert sum(preemptions) == schedule.num_preemptions == sum(table["num_preemptions"].to_pylist())
    assert sum(request_table(run)["recomputed_tokens"].to_pylist()) == run.metrics.recomputed_tokens


@pytest.mark.parametrize("policy", ["vllm", "vllm-v0", "sarathi", "sglang", "fastserve", "mc-sf"])
def test_everybody_who_has_arrived_waits_or_runs_or_has_finished(policy):
    """Running, derived from the schedule, and waiting, noted by the engine, are all that are not finished."""
    instance = instance_of([(4, 4), (2, 8, 3), (6, 3, 10**8), (1, 6, 10**8)], kv_blocks=14)
    run = simulated(instance, policy)
    finish = np.sort(run.metrics.arrival_ns + run.metrics.latency_ns)
    start = run.history.schedule.start_ns
    arrived = np.searchsorted(np.sort(run.metrics.arrival_ns), start, side="right")
    finished = np.searchsorted(finish, start, side="right")

    assert (run.num_running + run.num_waiting).tolist() == (arrived - finished).tolist()
    assert (run.held_blocks >= run.kv_tokens).all()


def rejecting_run() -> Run:
    """r1 is longer than the KV cache."""
    instance = instance_of([(4, 4), (90, 8, 5)], kv_blocks=16)
    served, rejections = instance.split_rejected()
    return replace(simulated(served, "vllm"), rejections=rejections)


def test_rejected_requests_have_a_row_without_times():
    """They are told apart by their status; what never happened is null."""
    table = rows(request_table(rejecting_run()))

    assert [row["status"] for row in table.values()] == ["finished", "rejected"]
    rejected = {name: value for name, value in table["r1"].items() if value is not None}
    assert rejected == {
        "request_id": "r1", "status": "rejected", "arrival_ns": 5, "prompt_tokens": 90, "output_tokens": 8
    }  # fmt: skip


@pytest.mark.parametrize("table_format", TableFormat)
def test_files_hold_the_tables(tmp_path, table_format):
    """Both formats give the tables back, nulls included; run.json says what they are of."""
    run = rejecting_run()
    written = write_run_tables(run, tmp_path / "new", table_format)
    summary = json.loads((tmp_path / "new" / "run.json").read_text())
    read = pa.csv.read_csv if table_format is TableFormat.CSV else pa.parquet.read_table

    assert [path.name for path in written] == [
        f"requests.{table_format}", f"iterations.{table_format}", "run.json"
    ]  # fmt: skip
    for table, path in zip((request_table(run), iteration_table(run)), written, strict=False):
        assert read(path).to_pylist() == table.to_pylist()
    assert summary["fingerprint"] == run.history.instance.fingerprint()
    assert summary["metrics"] == run.metrics.to_json()
    assert [table["num_rows"] for table in summary["tables"]] == [2, run.history.schedule.num_batches]
    assert len(summary["rejected"]) == 1


def test_parquet_states_what_it_is_of(tmp_path):
    """Schema, policy, fingerprint and versions are in the metadata of each file."""
    run = simulated(four_mixed(), "vllm")
    for path in write_run_tables(run, tmp_path)[:2]:
        facts = pa.parquet.read_schema(path).metadata

        assert facts[b"schema"] == f"cspsched/{path.stem}/1".encode()
        assert facts[b"fingerprint"].decode() == run.history.instance.fingerprint()
        assert facts[b"policy"] == b"vllm"
        assert "cspsched" in json.loads(facts[b"versions"])


def test_pandas_reads_the_csv(tmp_path):
    """The header is one plain line, and an empty cell is a missing value."""
    write_run_tables(rejecting_run(), tmp_path, TableFormat.CSV)
    frame = pd.read_csv(tmp_path / "requests.csv")

    assert frame.columns[0] == "request_id"
    assert frame["ttft_ns"].isna().tolist() == [False, True]


@given(feasible_runs())
@check_briefly
def test_columns_of_a_table_are_the_same_for_every_run(drawn):
    """Names and types do not depend on what happened, so tables of runs can be put together."""
    run, other = run_of(*drawn), rejecting_run()

    assert request_table(run).schema.equals(request_table(other).schema)
    assert iteration_table(run).schema.equals(iteration_table(other).schema)


def test_every_column_and_field_is_documented(tmp_path):
    """The sections of the formats page name every column of the tables and every field of run.json."""
    run = simulated(four_mixed(), "vllm")
    write_run_tables(run, tmp_path)
    sections = re.split(r"^### ", FORMATS_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = {match[0]: section for section in sections if (match := re.findall(r"cspsched/[a-z]+/1", section))}
    names = {
        "cspsched/requests/1": request_table(run).column_names,
        "cspsched/iterations/1": iteration_table(run).column_names,
        "cspsched/run/1": json.loads((tmp_path / "run.json").read_text()),
    }

    for schema, columns in names.items():
        assert [name for name in columns if f"`{name}`" not in text[schema]] == []


def test_command_writes_tables(capsys, tmp_path):
    """`simulate --out` leaves the tables; Parquet unless CSV is asked for."""
    outcome = invoke(capsys, "simulate", "tiny-12", "--json", "--out", tmp_path / "run")
    invoke(capsys, "simulate", "tiny-12", "--out", tmp_path / "run", "--table-format", "csv")
    metrics = json.loads(outcome.out)
    requests = pa.parquet.read_table(tmp_path / "run" / "requests.parquet")

    assert outcome.code == 0
    assert f"wrote requests.parquet, iterations.parquet, run.json to {tmp_path / 'run'}" in outcome.err
    assert requests.num_rows == metrics["num_requests"]
    assert np.mean(requests["ttft_ns"].to_numpy()) / 1e9 == pytest.approx(metrics["ttft_s"]["mean"])
    assert len(pd.read_csv(tmp_path / "run" / "iterations.csv")) == metrics["num_batches"]


def test_command_refuses_a_format_without_a_folder(capsys):
    """`--table-format` without `--out` would do nothing: wrong usage, found before the trace is read."""
    outcome = invoke(capsys, "simulate", "missing.csv", "--table-format", "csv")

    assert outcome.code == 2
    assert "give --out too" in outcome.err


def test_command_refuses_a_folder_that_cannot_be_written_before_it_runs(capsys, tmp_path):
    """A file where the folder would have to be is found before the trace is read."""
    (tmp_path / "file").write_text("")
    outcome = invoke(capsys, "simulate", "missing.csv", "--out", tmp_path / "file" / "run")

    assert outcome.code == 1
    assert "cannot be written" in outcome.err
