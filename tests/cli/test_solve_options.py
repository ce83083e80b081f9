"""What `cspsched solve` offers around the search: warm starts, exports, repeatable runs, plain refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from ortools.sat import cp_model_pb2
from ortools.sat.python import cp_model

from cspsched.cli.console import LiveLine
from cspsched.cli.solve import solve_command
from cspsched.errors import InfeasibleError, InputError, UsageError
from cspsched.exact import export
from cspsched.exact.export import export_model
from cspsched.exact.model import exact_model
from cspsched.exact.watch import Progress, SearchLimits
from cspsched.problem.infeasibility import find_infeasibility
from cspsched.problem.instance import Instance, Switches
from cspsched.problem.objectives import Objective
from cspsched.problem.result import Result
from cspsched.referee.rules import find_violations
from cspsched.referee.timing import schedule_asap
from cspsched.studies.solving import read_warm_start, solve
from tests.oracles.exhaustive import exhaustive_optimum
from tests.support.command_line import invoke
from tests.support.instances import NO_PREEMPTION, instance_of, late_mixed, three_equal
from tests.support.pages import code_blocks, text_of, undocumented
from tests.support.strategies import check_briefly, instances, one_after_another

NO_SEARCH = SearchLimits(time_limit_s=0)
EXACT = SearchLimits(time_limit_s=60)
HEADER = "request_id,arrival_s,prompt_tokens,output_tokens\n"
EQUAL = f"{HEADER}a,0,2,4\nb,0,2,4\nc,0,2,4\n"
E2 = (
    *("equal.csv", "--cost", "infermax-70b-linear", "--kv-tokens", "9", "--block-tokens", "1"),
    *("--objective", "makespan"),
)


@pytest.fixture
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("equal.csv").write_text(EQUAL, encoding="utf-8")


def written(path: Path, data: dict) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


# Warm starts


@pytest.fixture(scope="module")
def optimal() -> Result:
    """E2, solved."""
    return solve(three_equal(), limits=EXACT).result


def test_warm_start_is_at_once_as_good_as_the_file(optimal, tmp_path):
    """Without any search or policy the result is the schedule of the file, and says where it comes from."""
    path = written(tmp_path / "best.json", optimal.to_json())
    start = read_warm_start(path, three_equal())
    cold = solve(three_equal(), limits=NO_SEARCH, heuristics=()).result
    warm = solve(three_equal(), limits=NO_SEARCH, heuristics=(), candidates=[start]).result

    assert cold.primal_ns > optimal.primal_ns == warm.primal_ns
    assert warm.found_by == "warm start"


def test_warm_start_may_be_a_bare_schedule(optimal, tmp_path):
    """A schedule without its instance is judged by the referee alone."""
    path = written(tmp_path / "bare.json", optimal.schedule.to_json())

    assert read_warm_start(path, three_equal())[1] == optimal.schedule


def test_warm_start_may_come_from_a_narrower_class(tmp_path):
    """A schedule found without preemption is one where preemption is allowed."""
    narrow = solve(three_equal(NO_PREEMPTION), limits=NO_SEARCH).result
    path = written(tmp_path / "narrow.json", narrow.to_json())

    assert read_warm_start(path, three_equal())[1] == narrow.schedule


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (three_equal(NO_PREEMPTION), r"breaks a rule of this instance \(preemption\): .* or leave"),
        (instance_of([(2, 4)] * 3, kv_blocks=8, max_batch_tokens=16), r"breaks a rule .*\(capacity\)"),
        (instance_of([(2, 4)] * 4, kv_blocks=9, max_batch_tokens=16), "of another instance .*sha256:"),
        (replace(three_equal(), cost=late_mixed().cost.__class__(name="x", step=1)), "cost model differ"),
    ],
    ids=["wider class", "less memory", "other requests", "other cost"],
)
def test_warm_start_that_does_not_fit_is_refused(other, message, optimal, tmp_path):
    """A schedule that breaks a rule here, or serves other requests, is refused with the reason."""
    path = written(tmp_path / "best.json", optimal.to_json())

    with pytest.raises(InputError, match=message):
        read_warm_start(path, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": None}, "holds no schedule to start from"),
        ({"schema": "cspsched/metrics/1"}, "schema is 'cspsched/metrics/1', expected 'cspsched/result/2'"),
        ({"fingerprint": "sha256:0"}, "the instance was changed after"),
    ],
)
def test_warm_start_from_a_wrong_file_is_refused(change, message, optimal, tmp_path):
    """No schedule, another kind of file, and an instance that was edited are told apart."""
    path = written(tmp_path / "wrong.json", optimal.to_json() | change)

    with pytest.raises(InputError, match=message):
        read_warm_start(path, three_equal())


def test_warm_start_with_cached_prefixes_is_refused(optimal, tmp_path):
    """The solver knows no prefix cache, so a schedule that lives on it is no start."""
    cached = replace(
        optimal.schedule, hit_batch=[0], hit_request=[0], hit_tokens=[1]
    )  # fmt: skip
    path = written(tmp_path / "cached.json", cached.to_json())

    with pytest.raises(InputError, match="uses the prefix cache"):
        read_warm_start(path, three_equal())


@pytest.mark.usefixtures("_scratch")
def test_warm_start_on_the_command_line(capsys):
    """The file of one run starts the next; that of another trace is one line and exit code 1."""
    invoke(capsys, "solve", *E2, "--out", "first")
    again = invoke(
        capsys, "solve", *E2, "--warm-start", "first/schedule.json", "--time-limit", "0s", "--json"
    )
    other = invoke(capsys, "solve", "tiny-12", "--warm-start", "first/schedule.json")

    assert (
        json.loads(again.out)["primal_ns"] == json.loads(Path("first/schedule.json").read_text())["primal_ns"]
    )
    assert other.code == 1
    assert other.err.startswith("error: first/schedule.json: is a schedule of another instance")


# Exported models


def optimum_of_file(path: Path) -> int:
    """What CP-SAT finds for a model file, binary or text."""
    proto = cp_model_pb2.CpModelProto()
    if path.suffix == ".pb":
        proto.ParseFromString(path.read_bytes())
    else:
        text_format.Parse(path.read_text(), proto)
    model = cp_model.CpModel()
    assert model.proto.parse_text_format(text_format.MessageToString(proto))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return round(solver.objective_value)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("name", ["model.pb", "model.txt"])
def test_exported_model_has_the_optimum_of_the_instance(objective, name, tmp_path):
    """Read back and solved by CP-SAT alone it gives what exhaustive search finds, arrivals included."""
    instance = instance_of([(2, 3), (1, 3, 10**8)], kv_blocks=5, max_batch_tokens=2)
    exported = export_model(instance, objective, tmp_path / name)

    assert optimum_of_file(tmp_path / name) == exhaustive_optimum(instance, objective)
    assert exported.size_bytes == (tmp_path / name).stat().st_size > 0


def test_exported_model_says_what_it_is(tmp_path):
    """Horizon, objective and size are in the sentence, in the file's name field, and in the JSON."""
    exported = export_model(three_equal(), Objective.LATENCY, tmp_path / "model.pb")
    proto = cp_model_pb2.CpModelProto.FromString((tmp_path / "model.pb").read_bytes())

    assert proto.name == f"cspsched latency in ns, 3 requests, {exported.num_batches} batches"
    assert (len(proto.variables), len(proto.constraints)) == (
        exported.num_variables,
        exported.num_constraints,
    )
    for part in ("latency in ns", "3 requests", f"horizon of {exported.num_batches} batches", "variables"):
        assert part in exported.sentence
    assert exported.to_json()["horizon_batches"] == exported.num_batches


def test_hint_of_an_exported_model_is_a_schedule(optimal, tmp_path):
    """The best known schedule is the hint: fixed to it, the model has its value."""
    start = ("known", optimal.schedule)
    export_model(three_equal(), Objective.MAKESPAN, tmp_path / "model.pb", candidates=[start])
    proto = cp_model_pb2.CpModelProto.FromString((tmp_path / "model.pb").read_bytes())
    model = cp_model.CpModel()
    model.proto.parse_text_format(text_format.MessageToString(proto))
    for index, value in zip(proto.solution_hint.vars, proto.solution_hint.values, strict=True):
        model.add(model.get_int_var_from_proto_index(index) == value)
    solver = cp_model.CpSolver()

    assert solver.solve(model) == cp_model.OPTIMAL
    assert round(solver.objective_value) == optimal.primal_ns


def test_export_refuses_what_would_help_nobody(monkeypatch, tmp_path):
    """Other endings, files that cannot be written, models too large and sums beyond 64 bits are refused."""
    with pytest.raises(InputError, match=r"name the model \*\.pb, \*\.txt, \*\.pbtxt"):
        export_model(three_equal(), Objective.MAKESPAN, tmp_path / "model.lp")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export_model(three_equal(), Objective.MAKESPAN, tmp_path / "file" / "model.pb")
    monkeypatch.setattr(exact_model, "WORST_SUM", 1)
    with pytest.raises(InputError, match="leave 64 bits"):
        export_model(three_equal(), Objective.MAKESPAN, tmp_path / "model.pb")
    monkeypatch.setattr(export, "MOST_CELLS", 3)
    with pytest.raises(InputError, match="cells, more than 3; keep fewer requests"):
        export_model(three_equal(), Objective.MAKESPAN, tmp_path / "model.pb")


# Repeatable runs


def test_deterministic_limit_repeats_to_the_byte(tmp_path):
    """Cut off amid both searches, on an instance without a quick proof, two runs write the same bytes."""
    crowded = instance_of(
        [(4, 9), (2, 8), (6, 7), (1, 6), (3, 9), (5, 8), (2, 9)], kv_blocks=22, max_batch_tokens=100
    )
    limits = SearchLimits(time_limit_s=0.4, num_workers=1, deterministic=True)
    first, second = (
        json.dumps(solve(crowded, Objective.LATENCY, limits=limits).result.to_json()) for _ in range(2)
    )

    assert json.loads(first)["status"] == "feasible"
    assert json.loads(first)["certificate"] == "state search"
    assert first == second


def test_deterministic_needs_one_worker():
    """Threads race, so more than one is refused instead of silently taken."""
    with pytest.raises(UsageError, match="deterministic with 2 workers, expected 1"):
        SearchLimits(deterministic=True)


@pytest.mark.usefixtures("_scratch")
def test_deterministic_on_the_command_line(capsys):
    """One worker without being asked; two are refused; two runs print and write the same bytes."""
    options = ("--deterministic", "--time-limit", "1s", "--json")
    first = invoke(capsys, "solve", *E2, *options, "--out", "first")
    second = invoke(capsys, "solve", *E2, *options, "--out", "second")
    refused = invoke(capsys, "solve", *E2, *options, "--workers", "2")

    assert first.out == second.out
    assert Path("first/schedule.json").read_bytes() == Path("second/schedule.json").read_bytes()
    assert json.loads(first.out)["provenance"]["parameters"]["num_workers"] == 1
    assert (refused.code, refused.out) == (2, "")


# Infeasibility in words


def one_after_another_is_feasible(instance: Instance) -> bool:
    """Whether the plainest schedule of all, judged by the referee, serves all requests."""
    batches = one_after_another(instance)
    return find_violations(instance, schedule_asap(instance, batches, [[] for _ in batches])) == []


def test_every_family_is_named_with_its_requests_and_its_remedy():
    """Too long, too large, too wide without chunks: who, by how much, and which option would help."""
    instance = instance_of(
        [(2, 2), (30, 1), (5, 30), (9, 2)], kv_blocks=12, max_batch_tokens=8,
        switches=Switches(chunked_prefill=False),
    )  # fmt: skip
    instance = replace(instance, limits=replace(instance.limits, max_model_len=32))
    trouble = find_infeasibility(instance)

    assert [family.family for family in trouble.families] == ["max_model_len", "memory", "no chunking"]
    assert [family.request_ids for family in trouble.families] == [("r2",), ("r1", "r2"), ("r1", "r3")]
    assert [family.needed for family in trouble.families] == [34, 34, 30]
    for part in (
        "max_model_len: request 'r2'",
        "--max-model-len 34",
        "--kv-blocks 34",
        "--max-batch-tokens 30",
    ):
        assert part in trouble.sentence


@check_briefly
@given(instances(), st.tuples(st.integers(1, 8), st.integers(1, 8), st.none() | st.integers(1, 12)))
def test_remedies_are_enough_and_none_is_too_much(instance, tight):
    """All remedies together make an instance feasible; with one token or block less it is not."""
    kv_blocks, budget, length = tight
    shrunk = {"kv_blocks": kv_blocks, "max_batch_tokens": budget, "max_model_len": length}
    instance = replace(instance, limits=replace(instance.limits, **shrunk))
    trouble = find_infeasibility(instance)
    if trouble is None:
        assert one_after_another_is_feasible(instance)
        return
    limits = {"max_model_len": "max_model_len", "memory": "kv_blocks", "no chunking": "max_batch_tokens"}
    needed = {limits[family.family]: family.needed for family in trouble.families}
    enough = replace(instance, limits=replace(instance.limits, **needed))

    assert len(trouble.reasons) == len(list(filter(None, map(instance.rejection_of, instance.requests))))
    assert find_infeasibility(enough) is None
    for name, limit in needed.items():
        assert find_infeasibility(replace(enough, limits=replace(enough.limits, **{name: limit - 1})))


@pytest.mark.parametrize("chunking", [True, False])
def test_the_arithmetic_agrees_with_exhaustive_search(chunking):
    """At the edge there is a schedule, one block or token below there is none."""
    switches = Switches(chunked_prefill=chunking, preemption="none")

    def made(kv_blocks: int, budget: int) -> Instance:
        return instance_of([(2, 2), (3, 2)], kv_blocks=kv_blocks, max_batch_tokens=budget, switches=switches)

    for kv_blocks, budget in ((4, 3), (3, 3), (4, 2)):
        instance = made(kv_blocks, budget)
        assert (find_infeasibility(instance) is None) == (exhaustive_optimum(instance) is not None)


def test_refusal_counts_and_says_what_to_do():
    """No request can be served: say that, and from which limit on all could."""
    none = instance_of([(9, 9), (9, 8)], kv_blocks=8)

    with pytest.raises(
        InfeasibleError, match=r"^no request can be served; the first: .* \(and 1 more\); .*--kv-blocks 17"
    ):
        solve(none, limits=NO_SEARCH)


@pytest.mark.usefixtures("_scratch")
def test_infeasibility_is_data_too(capsys):
    """With --json stdout has the families and the exit code is that of a proven infeasibility."""
    outcome = invoke(capsys, "solve", "equal.csv", "--kv-tokens", "4", "--block-tokens", "1", "--json")
    data = json.loads(outcome.out)

    assert outcome.code == 4
    assert data["schema"] == "cspsched/infeasible/1"
    assert data["families"] == [
        {
            "family": "memory",
            "request_ids": ["a", "b", "c"],
            "limit_blocks": 4,
            "needed_blocks": 5,
            "remedy": "--kv-blocks 5",
        }
    ]


# Ladder, relax and export on the command line


@pytest.mark.usefixtures("_scratch")
def test_ladder_prints_table_and_answer_and_writes_its_files(capsys):
    """One row a rung, the answer with its proof, and the files that are named on stderr."""
    outcome = invoke(capsys, "solve", *E2, "--ladder", "--out", "rungs")
    cells = [line.split("│")[1].strip() for line in outcome.out.splitlines() if line.startswith("│")]

    assert outcome.code == 0
    assert cells == [
        "reservation",
        "no preemption",
        "recompute",
        "recompute or swap",
        "without C",
        "without M",
    ]
    assert "Is preemption worth it here? Yes: it saves 22.99 %" in outcome.out
    assert "wrote rungs/ladder.html and 9 more files to rungs" in outcome.err
    assert Path("rungs/ladder.png").read_bytes().startswith(b"\x89PNG")
    assert invoke(capsys, "check", "rungs/3-recompute.json").code == 0


@pytest.mark.usefixtures("_scratch")
def test_relax_and_export_on_the_command_line(capsys):
    """What memory costs as JSON, beside what was exported; the model is there and reads back."""
    options = ("--relax", "memory", "--export", "deep/model.pb", "--json", "--preemption", "none")
    outcome = invoke(capsys, "solve", *E2, *options)
    data = json.loads(outcome.out)

    assert outcome.code == 0
    assert [row["rung"] for row in data["rungs"]] == ["as given", "without memory"]
    assert data["savings"][0]["verdict"] == "yes"
    assert data["exported"]["file"] == "deep/model.pb"
    assert "wrote deep/model.pb: makespan in ns, 3 requests, horizon of" in outcome.err
    assert cp_model_pb2.CpModelProto.FromString(Path("deep/model.pb").read_bytes()).variables


@pytest.mark.usefixtures("_scratch")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--relax memry", "'memry' is none of chunking, memory, budget"),
        ("--relax chunking", "there is no limit on chunking to lift: the instance allows it"),
        ("--relax memory --ladder", "--ladder and --relax exclude each other"),
        ("--ladder --preemption none", "leave --preemption out"),
        ("--ladder --reservation", "leave --reservation out"),
    ],
)
def test_contradicting_options_are_usage_errors(options, message, capsys):
    """Exit code 2 and one line that says what is wrong."""
    outcome = invoke(capsys, "solve", *E2, *options.split())

    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


# Live progress


def test_live_line_says_who_found_and_who_proved(capsys):
    """Best and bound come with their names, where they are known."""
    progress = Progress(
        elapsed_s=0.1, best_ns=4_000_000_000, bound_ns=1_000_000_000, best_by="vllm", bound_by="kv-volume"
    )
    with LiveLine(Objective.MAKESPAN, 2) as live:
        live(progress)

    assert capsys.readouterr().err.endswith("gap 75.00%  best by vllm, bound by kv-volume\n")


def test_live_line_never_wraps(capsys, monkeypatch):
    """A line longer than the terminal could not be rewritten, so its end is cut off."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    with LiveLine(Objective.MAKESPAN, 2) as live:
        live(Progress(elapsed_s=0.1, best_ns=4 * 10**9, bound_ns=10**9, best_by="a" * 50, bound_by="b"))
    line = capsys.readouterr().err.removesuffix("\r\x1b[K")

    assert len(line) == 39


def test_progress_names_every_finder():
    """From the first line on both names are known, and the last ones are those of the result."""
    told: list[Progress] = []
    result = solve(three_equal(), limits=EXACT, on_progress=told.append).result

    assert told
    assert all(progress.best_by and progress.bound_by for progress in told)
    assert (told[-1].best_ns, told[-1].best_by) == (result.primal_ns, result.found_by)


def test_talk_between_searches_starts_a_line_of_its_own(capsys, monkeypatch):
    """On a terminal a rung that is announced takes the place of the live line."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with LiveLine(Objective.MAKESPAN, 2) as live:
        live(Progress(elapsed_s=0.1, best_ns=2, bound_ns=1))
        live.tell("rung 'recompute'")

    assert capsys.readouterr().err.endswith("\r\x1b[Krung 'recompute'\n")


@pytest.mark.usefixtures("_scratch")
@pytest.mark.parametrize(
    "options",
    [
        ("--ladder",),
        ("--relax", "memory"),
        ("--kv-tokens", "4"),
        ("--export", "model.pb"),
    ],
    ids=" ".join,
)
def test_every_field_of_the_json_is_documented(options, capsys):
    """Ladder, infeasibility and export: no field is missing in the formats page."""
    data = json.loads(invoke(capsys, "solve", *E2, *options, "--time-limit", "0s", "--json").out)

    assert list(undocumented(data)) == []


def test_page_on_solving_runs(tmp_path, monkeypatch, capsys):
    """The Python blocks of the page run: the ladder answers, and an exported model is read back."""
    monkeypatch.chdir(tmp_path)
    instance = three_equal()
    export_model(instance, Objective.MAKESPAN, Path("model.pb"))
    session = {"instance": instance}
    for block in code_blocks("solve.md", "python"):
        exec(compile(block, "solve.md", "exec"), session)

    assert capsys.readouterr().out.splitlines()[-1].startswith("yes 0.16")
    assert session["model"].proto.variables


def test_page_on_solving_shows_options_that_exist_and_the_refusal_that_is_given():
    """Every option of its commands is one of `solve`, and its error message is what the code says."""
    page = text_of("solve.md")
    known = {
        name for parameter in solve_command.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    shown = {word for line in page.splitlines() if line.startswith("cspsched ") for word in line.split()}
    refusal = find_infeasibility(instance_of([(9, 9)], kv_blocks=8))

    assert {word for word in shown if word.startswith("--")} <= known
    assert refusal.sentence in " ".join(page.split())
