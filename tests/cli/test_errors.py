"""Bad input, tried as a new user would: one clear line on stderr, no traceback, the documented exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cspsched.resources import shipped_file
from tests.support.command_line import Outcome, invoke

SIGN_OF_LIFE = re.compile(r"[a-z-]+: \d+ s\n")
HEADER = "request_id,arrival_s,prompt_tokens,output_tokens\n"
QUICK = ("--time-limit", "0s")


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with a trace of two requests in it."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(f"{HEADER}r0,0,20,3\nr1,0.01,40,2\n", encoding="utf-8")


def assert_error(outcome: Outcome, code: int, *parts: str) -> None:
    """One line that says all the parts, the exit code, and nothing on stdout."""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out) == (code, "")
    for part in parts:
        assert part in outcome.err


BAD_TRACES = {
    "missing column": (
        "request_id,arrival_s,prompt_tokens\na,0,1\n",
        "line 1: column output_tokens is missing",
    ),
    "negative tokens": (f"{HEADER}a,0,-3,1\n", "line 2: prompt_tokens is '-3', expected a whole number"),
    "no number": (f"{HEADER}a,0,3,1\nb,soon,3,1\n", "line 3: arrival_s is 'soon'"),
    "empty file": ("", "is empty, expected a header line"),
    "header only": (HEADER, "has a header and no requests"),
    "binary file": (b"\x00\xff\xfe\x01", "is no UTF-8 text"),
}


@pytest.mark.parametrize("command", ["solve", "compare", "simulate", "bound", "trace describe"])
@pytest.mark.parametrize("case", BAD_TRACES)
def test_bad_trace_is_refused_with_its_place(command, case, capsys):
    """A trace that cannot be read exits 1 and names file, place, value and what is expected."""
    content, message = BAD_TRACES[case]
    Path("bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())

    assert_error(invoke(capsys, *command.split(), "bad.csv"), 1, "bad.csv", message)


@pytest.mark.parametrize("command", ["solve", "compare", "simulate", "bound", "check", "trace describe"])
def test_missing_file_and_directory_are_said_so(command, capsys):
    """What is not there, and a directory in the place of a file, exit 1."""
    Path("folder.csv").mkdir()

    assert_error(invoke(capsys, *command.split(), "nowhere.csv"), 1, "nowhere.csv does not exist")
    assert_error(invoke(capsys, *command.split(), "folder.csv"), 1, "folder.csv is a directory")


def test_unreadable_file_is_said_so(capsys, monkeypatch):
    """A file without the right to read it exits 1 with the reason of the system."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "trace.csv")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)

    assert_error(invoke(capsys, "simulate", "trace.csv"), 1, "trace.csv", "Permission denied")


@pytest.mark.parametrize("option", [(), ("--drop-rejected",)])
def test_solve_goes_on_without_the_rejected(option, capsys):
    """The rest is solved, and the reason is told with its arithmetic; --drop-rejected changes nothing."""
    outcome = invoke(capsys, "solve", "trace.csv", "--kv-tokens", "32", *option, *QUICK)
    reason = "request 'r1' alone needs 3 KV blocks, the device offers 2 (40 prompt + 2 output - 1 = 41 tokens"

    assert outcome.code == 0
    assert f"1 request left out; the first: {reason}" in outcome.out
    assert f"rejected: {reason}" in outcome.err


def test_compare_and_simulate_reject_count_and_go_on(capsys):
    """Both leave the request out, exit 0, and say which and how many."""
    compared = invoke(capsys, "compare", "trace.csv", "--kv-tokens", "32", *QUICK)
    simulated = invoke(capsys, "simulate", "trace.csv", "--kv-tokens", "32", "--json")

    assert (compared.code, simulated.code) == (0, 0)
    assert "1 request is rejected, the same for every policy; the first: request 'r1'" in compared.out
    assert json.loads(simulated.out)["rejected"] == 1
    assert "rejected: request 'r1' alone needs 3 KV blocks" in simulated.err


def test_many_rejections_are_counted_and_not_all_listed(capsys):
    """Of ten rejected requests three are shown with the reason, and the number of all."""
    rows = "".join(f"big{k},0,100,1\n" for k in range(10))
    Path("many.csv").write_text(f"{HEADER}{rows}small,0,5,1\n", encoding="utf-8")

    outcome = invoke(capsys, "bound", "many.csv", "--kv-tokens", "32")

    assert outcome.code == 0
    assert outcome.err.count("rejected: request 'big") == 3
    assert "rejected: 10 requests in all" in outcome.err


@pytest.mark.parametrize("command", ["compare", "simulate", "bound", "solve"])
def test_nothing_is_left_if_all_requests_are_rejected(command, capsys):
    """If no request fits there is nothing to compare: one line with the first reason."""
    outcome = invoke(capsys, command, "trace.csv", "--kv-tokens", "16")

    assert outcome.code == 4
    assert outcome.err.startswith("error: no request can be served; the first: request 'r0' alone needs 2")


USAGE = {
    "unknown policy": ("compare --heuristics vlm", "unknown policy 'vlm', did you mean 'vllm'?"),
    "unknown policy of simulate": ("simulate --policy saratih", "did you mean 'sarathi'?"),
    "unknown policy of solve": ("solve trace.csv --heuristics vlm", "did you mean 'vllm'?"),
    "unknown setting": ("compare --heuristics vllm:max_num_sq=2", "did you mean 'max_num_seqs'?"),
    "ill-typed setting": ("compare --heuristics vllm:max_num_seqs=two", "max_num_seqs is 'two', expected"),
    "setting out of range": ("compare --heuristics vllm:max_num_seqs=0", "is 0, expected at least 1"),
    "setting without value": ("compare --heuristics vllm:max_num_seqs", "is no key=value"),
    "same policy twice": ("compare --heuristics vllm vllm", "each once; got: vllm, vllm"),
    "no policy": (
        "compare --heuristics",
        "'--heuristics' requires an argument (see 'cspsched compare --help')",
    ),
    "unknown model": (
        "solve trace.csv --model llama-3.1-8",
        "unknown model 'llama-3.1-8'. Did you mean 'llama-3.1-8b'?",
    ),
    "unknown device": ("solve trace.csv --device h10", "unknown device 'h10'"),
    "unknown cost": ("solve trace.csv --cost infermax-7", "Did you mean 'infermax-7b'? Known: "),
    "no measured cost": (
        "solve trace.csv --device v100",
        "no cost model was measured for llama-3.1-8b on v100",
    ),
    "cost of unknown name": ("costs nope", "unknown cost model 'nope'"),
    "no KV cache": ("solve trace.csv --kv-tokens 0", "'--kv-tokens': '0' is no whole number from 1 on"),
    "both capacities": (
        "solve trace.csv --kv-tokens 64 --kv-blocks 4",
        "both kv_tokens and kv_blocks are given",
    ),
    "time without unit": (
        "solve trace.csv --time-limit 60x",
        "'60x' is no time, such as 60s, 5min, 500ms or 60 (seconds)",
    ),
    "window that is none": (
        "solve trace.csv --window x",
        "'x' is no window in seconds, such as 60:120 or :300",
    ),
    "window backwards": ("solve trace.csv --window 5:1", "expected seconds start:end, 0 <= start < end"),
    "rate of zero": ("solve trace.csv --scale-rate 0", "scale_rate is 0.0, expected a finite factor above 0"),
    "no requests": ("solve trace.csv --limit 0", "'--limit': '0' is no whole number from 1 on"),
    "negative seed": ("solve trace.csv --seed -1", "'--seed': -1 is not in the range"),
    "seed too large": ("solve trace.csv --seed 99999999999", "'--seed': 99999999999 is not in the range"),
    "unknown command": (
        "slove trace.csv",
        "no such command 'slove', did you mean 'solve'?; there are: solve, compare",
    ),
    "strange command": ("xyz", "no such command 'xyz'; there are: solve, compare"),
    "unknown subcommand": ("trace describ", "did you mean 'describe'?; there are: list, convert, describe"),
    "unknown option": (
        "solve trace.csv --objektive makespan",
        "Did you mean '--objective'? (see 'cspsched solve",
    ),
    "missing trace": ("solve", "Missing argument 'TRACE'"),
    "two traces": ("solve trace.csv trace.csv", "Got unexpected extra argument (trace.csv)"),
    "unknown objective": ("bound --objective cost", "objective 'cost' is not known"),
    "rate of nothing": ("trace generate --rate 0 --out new.csv", "rate_per_s is 0.0, expected a finite rate"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_call_says_what_was_expected(case, capsys):
    """A name, a value or an option that makes no sense exits 2 and says what to do."""
    arguments, message = USAGE[case]

    assert_error(invoke(capsys, *arguments.split()), 2, message)


INPUT = {
    "less than a block": (
        "solve trace.csv --kv-tokens 8",
        "less than one KV block of 16 tokens; give more, or smaller",
    ),
    "empty window": ("solve trace.csv --window 5:9", "no request arrives in the window from 5.0 s to 9.0 s"),
    "model too large": (
        "capacity --model llama-3.1-70b --tensor-parallel 1",
        "does not fit on h100",
        "use more tensor parallelism",
    ),
    "solve too large": (
        "solve trace.csv --cost infermax-70b --model llama-3.1-70b",
        "use more tensor parallelism",
    ),
    "heads do not divide": ("capacity --tensor-parallel 3", "expected a divisor of the 32 attention heads"),
    "trace after policies": ("compare --heuristics vllm nowhere.csv", "nowhere.csv does not exist"),
    "folder after policies": ("compare --heuristics vllm ./here", "here does not exist"),
}


@pytest.mark.parametrize("case", INPUT)
def test_value_that_does_not_fit_says_what_to_do(case, capsys):
    """What is well-formed and still impossible exits 1 with a remedy."""
    arguments, *parts = INPUT[case]

    assert_error(invoke(capsys, *arguments.split()), 1, *parts)


def shipped_cost(name: str) -> str:
    path = shipped_file("models/costs", name, ".toml")
    assert path is not None
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".toml", ('step_ns = "', 'step_ns = "-'), "step is -"),
        (".toml", ('slopes_ns = ["', 'slopes_ns = ["-'), "must all be at least 0"),
        (".toml", ("cspsched/cost/1", "cspsched/cost/99"), "schema is 'cspsched/cost/99', this version"),
        (".toml", ("name = ", "name = = "), "no valid TOML"),
        (".json", ("", ""), "no valid JSON"),
    ],
)
def test_cost_file_that_is_none_is_refused(suffix, change, message, capsys):
    """A cost file that is malformed, of another schema, or prices something negatively exits 1."""
    Path(f"cost{suffix}").write_text(shipped_cost("infermax-7b").replace(*change), encoding="utf-8")

    assert_error(invoke(capsys, "simulate", "trace.csv", "--cost", f"cost{suffix}"), 1, message)


def test_cost_file_that_is_missing_or_a_directory_is_said_so(capsys):
    """A path in the place of a cost model is looked for as a file."""
    Path("folder.toml").mkdir()

    missing = invoke(capsys, "simulate", "trace.csv", "--cost", "gone.toml")
    folder = invoke(capsys, "simulate", "trace.csv", "--cost", "folder.toml")

    assert_error(missing, 1, "gone.toml does not exist")
    assert_error(folder, 1, "folder.toml is a directory")


@pytest.fixture
def schedule(capsys: pytest.CaptureFixture[str]) -> dict:
    """A sound schedule file as data; `schedule.json` holds it."""
    assert invoke(capsys, "simulate", "trace.csv", "--save", "schedule.json").code == 0
    return json.loads(Path("schedule.json").read_text(encoding="utf-8"))


def check(capsys: pytest.CaptureFixture[str], data: object, *options: str) -> Outcome:
    Path("tampered.json").write_text(json.dumps(data), encoding="utf-8")
    return invoke(capsys, "check", "tampered.json", *options)


def test_check_accepts_what_simulate_saved(schedule, capsys):
    """The referee finds nothing in an untouched schedule and says what it is worth."""
    outcome = check(capsys, schedule)

    assert outcome.code == 0
    assert outcome.out.startswith("feasible: 2 requests in ")
    assert f"latency {schedule['primal_ns']} ns as stated" in outcome.out


def test_check_names_rule_request_batch_and_numbers(schedule, capsys):
    """A schedule with a token taken away exits 3; the violation says where and how much."""
    schedule["schedule"]["tokens"][0] -= 1

    outcome = check(capsys, schedule)
    as_json = json.loads(check(capsys, schedule, "--json").out)

    assert (outcome.code, outcome.err) == (3, "")
    assert "request 'r0'" in outcome.out
    assert "19" in outcome.out
    assert (as_json["schema"], as_json["feasible"]) == ("cspsched/check/2", False)
    assert {"rule", "batch", "request_id", "message"} == set(as_json["violations"][0])


def test_check_judges_against_the_capacity_in_the_file(schedule, capsys):
    """With fewer KV blocks than the schedule occupies the rule 'capacity' is broken, with both numbers."""
    schedule["instance"]["limits"]["kv_blocks"] = 3
    del schedule["fingerprint"]

    outcome = check(capsys, schedule)

    assert outcome.code == 3
    assert "capacity: batch " in outcome.out
    assert "the device offers 3" in outcome.out


@pytest.mark.parametrize(
    ("key", "message"), [("primal_ns", "objective: states latency 5 ns"), ("dual_ns", "bound: states")]
)
def test_check_derives_the_stated_numbers_again(schedule, key, message, capsys):
    """A false objective, and a bound above the schedule's own value, exit 3."""
    schedule[key] = 5 if key == "primal_ns" else schedule["primal_ns"] + 1

    outcome = check(capsys, schedule)

    assert outcome.code == 3
    assert message in outcome.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"schema": "cspsched/comparison/1"}',
            "schema is 'cspsched/comparison/1', which holds no schedule; check schedule.json of 'solve'",
        ),
        ('{"schema": "cspsched/schedule/1"}', "a bare schedule has no instance to be judged by; check"),
        (
            '{"schema": "cspsched/result/2", "metrics": {}}',
            "is what 'solve --json' prints, without the schedule; check schedule.json of 'solve'",
        ),
        ("[]", "expected a JSON object"),
        ('{"schema": "cspsched/result/1"}', "instance, schedule, objective, status, stop_reason missing"),
        ('{"schema": "cspsched/result/1", "insta', "line 1: no valid JSON"),
        (HEADER, "line 1: no valid JSON"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
    ],
)
def test_check_refuses_what_is_no_schedule(content, message, capsys):
    """JSON of another schema, cut-off JSON, a trace, and binary data exit 1."""
    Path("other.json").write_bytes(content if isinstance(content, bytes) else content.encode())

    assert_error(invoke(capsys, "check", "other.json"), 1, "other.json", message)


def test_check_says_what_it_derived_and_what_not(capsys):
    """Class, bound and status have a line each; a bound of no search is derived again."""
    assert invoke(capsys, "solve", "trace.csv", "--time-limit", "0s", "--out", "out").code == 0
    outcome = invoke(capsys, "check", "out/schedule.json")
    feasible, klass, bound, status = outcome.out.splitlines()

    assert feasible.startswith("feasible: 2 requests in ")
    assert klass == "class: full, as stated"
    assert bound.startswith("bound: ")
    assert ", re-derived, gap " in bound
    assert status.startswith("status: ")


def test_check_has_a_line_for_every_forgery(schedule, capsys):
    """A false class and a bound without a proof exit 3, one line each."""
    forged = {**schedule, "policy_class": "no preemption", "dual_ns": schedule["primal_ns"], "gap_ns": 0}
    outcome = check(capsys, forged)

    assert outcome.code == 3
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == ["class", "gap", "bound"]


def test_check_refuses_an_instance_changed_after_the_fact(schedule, capsys):
    """The fingerprint tells when the instance is not the one that was solved."""
    schedule["instance"]["limits"]["kv_blocks"] += 1

    assert_error(check(capsys, schedule), 1, "tampered.json: fingerprint is ")


def test_check_refuses_a_result_without_a_schedule(schedule, capsys):
    """There is nothing to judge."""
    assert_error(check(capsys, {**schedule, "schedule": None}), 1, "tampered.json: holds no schedule")


WRITERS = [
    "solve trace.csv --out",
    "compare trace.csv --out",
    "compare trace.csv --markdown",
    "simulate trace.csv --save",
]


@pytest.mark.parametrize("call", WRITERS)
def test_place_that_cannot_be_written_is_refused_before_the_work(call, capsys):
    """Below a file nothing can be made: exit 1 at once, with nothing simulated and nothing printed."""
    Path("afile").touch()

    outcome = invoke(capsys, *call.split(), "afile/below/name")

    assert_error(outcome, 1, "afile/below", "cannot be written", "choose another place")


@pytest.mark.parametrize("call", WRITERS)
def test_file_for_a_folder_and_folder_for_a_file_are_refused(call, capsys):
    """A folder option takes no file, a file option no folder: exit 2."""
    Path("afile").touch()
    Path("adir").mkdir()
    wrong = "afile" if call.endswith("--out") else "adir"

    assert_error(invoke(capsys, *call.split(), wrong), 2, f"'{wrong}' is a")


def test_refused_solve_leaves_no_folder(capsys):
    """Nothing is made for a solve that cannot start."""
    invoke(capsys, "solve", "trace.csv", "--kv-tokens", "16", "--out", "result")

    assert not Path("result").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            "solve nowhere.csv",
            1,
            "error: nowhere.csv does not exist (bundled: burst-6, chat-2000, tiny-12)\n",
        ),
        ("compare --heuristics vlm", 2, "error: unknown policy 'vlm', did you mean 'vllm'?; there are"),
        ("solve trace.csv --kv-tokens 16", 4, "error: no request can be served; the first: request 'r0'"),
    ],
)
def test_exit_codes_reach_the_shell(arguments, code, message):
    """A real process ends with the code, and stderr has the line and no traceback."""
    command = [sys.executable, "-m", "cspsched", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    # On a machine that is slow to load there is a sign of life.
    lines = [line for line in done.stderr.splitlines(keepends=True) if not SIGN_OF_LIFE.fullmatch(line)]

    assert (done.returncode, done.stdout) == (code, "")
    assert lines[0].startswith(message)
    assert len(lines) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_an_error_line():
    """Output that cannot be written exits 1 without a traceback."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "cspsched", "models"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "error: output: No space left on device\n")


def test_reader_that_leaves_early_gets_no_traceback():
    """`cspsched models | head` ends without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "cspsched", "models"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "")
