"""A policy of the user's that fails is one line: who, in which decision, when, why, and where in the file."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from cspsched.errors import PolicyCrashError, PolicyError
from cspsched.policies.base import make_policy
from cspsched.simulate import simulate
from tests.support.command_line import Outcome, invoke
from tests.support.strategies import make_instance

TRACE = "request_id,arrival_s,prompt_tokens,output_tokens\na,0,20,3\nb,0.001,9,6\n"
STEPPED = """
class Mine:
    name = label = "mine"

    def new_run(self, instance):
        return Run(instance)


class Run:
    def __init__(self, instance):
        self.waiting, self.running = [], []

    def submit(self, request):
        self.waiting.append(request)

    def schedule(self, step):
        for request in self.running:
            step.schedule(request, 1, step.missing_blocks(request, 1))
        for request in self.waiting:
            step.schedule(request, step.known_tokens[request], 2)
        self.running += self.waiting
        self.waiting = []

    def retire(self, requests):
        self.running = [request for request in self.running if request not in requests]
"""
DECIDED = """
from cspsched.policies.base import DecisionPolicy


class Mine(DecisionPolicy):
    name = "mine"

"""
INSTANCE = make_instance((20, 3), (9, 6), block_tokens=16, arrivals_ns=[0, 1], max_batch_tokens=64)


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with a trace in it."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(TRACE, encoding="utf-8")


def written(code: str) -> str:
    """The text of a policy in a file of that code, and below it the number of the line that is marked."""
    Path("mine.py").write_text(code, encoding="utf-8")
    return "mine.py:Mine"


def marked(code: str) -> str:
    """File and line that is marked in the code."""
    (line,) = (number for number, line in enumerate(code.splitlines(), start=1) if "# here" in line)
    return f"(mine.py:{line})"


def stepped(old: str, new: str) -> str:
    """The policy of steps with one line exchanged, which is marked."""
    assert STEPPED.count(old) == 1
    return STEPPED.replace(old, f"{new}  # here")


def one_line(outcome: Outcome, code: int) -> str:
    """The only line on stderr, after `error: `; nothing on stdout."""
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    return outcome.err.removeprefix("error: ").rstrip("\n")


def test_the_policy_of_steps_works_as_long_as_nothing_is_exchanged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the tests below spoil."""
    assert invoke(capsys, "simulate", "trace.csv", "--policy", written(STEPPED)).code == 0
    assert invoke(capsys, "simulate", "trace.csv", "--policy", written(DECIDED)).code == 0


RAISING = {
    "new_run": ("return Run(instance)", "return Run(instance.nothing)", "new_run fails: AttributeError: "),
    "init": ("self.waiting, self.running = [], []", "1 / 0", "new_run fails: ZeroDivisionError: division by"),
    "submit": (
        "self.waiting.append(request)",
        "self.wating.append(request)",
        "submit fails, request 'a', batch 0 at 0 ns: AttributeError: 'Run' object has no attribute 'wating'",
    ),
    "schedule": (
        "for request in self.running:",
        "for request in sorted(self.running, key=lambda i: {}[i]):",
        "schedule fails, batch 1 at ",
    ),
    "retire": (
        "self.running = [request for request in self.running if request not in requests]",
        "assert not requests",
        "retire fails, batch 3 at ",
    ),
    "exit": ("self.waiting = []", "raise SystemExit(0)", "schedule fails, batch 0 at 0 ns: SystemExit: 0"),
    "two lines": ("self.waiting = []", "raise ValueError('a\\nb')", "ValueError: a b (mine.py:"),
    "no message": ("self.waiting = []", "raise ValueError", "batch 0 at 0 ns: ValueError (mine.py:"),
    "library": ("self.waiting = []", "__import__('json').loads(step)", "TypeError: the JSON object must be"),
}


@pytest.mark.parametrize("case", RAISING)
def test_a_policy_of_steps_that_raises(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 6 and one line, wherever it happens; the line is that of the user's, not of a library."""
    old, new, message = RAISING[case]
    code = stepped(old, new)
    told = one_line(invoke(capsys, "simulate", "trace.csv", "--policy", written(code)), 6)

    assert told.startswith("policy mine: ")
    assert message in told
    assert told.endswith(marked(code))


ANSWERS = {
    "start": ("start(self, instance): return 1 / 0", "start fails: ZeroDivisionError: division by zero"),
    "order": ("order(self, request): return {}[0]", "order fails, request 'r0': KeyError: 0"),
    "admit": (
        "admit(self, view, request): return view.requests.nothing",
        "admit fails, request 'r0', batch 0 at 0 ns: AttributeError: 'tuple' object has no",
    ),
    "chunk": (
        "chunk(self, view, request, most): return most // view.num_running",
        "chunk fails, request 'r0', batch 0 at 0 ns: ZeroDivisionError: ",
    ),
    "victim": (
        "victim(self, view, request): return min([])",
        "victim fails, request 'r0', batch 4 at 4 ns: ValueError: ",
    ),
    "batch_mode": ("batch_mode(self, view): return view.clock_ns[0]", "batch_mode fails, batch 0 at 0 ns: "),
}
TIGHT = make_instance((4, 9), (4, 9), kv_blocks=14)
"""Two requests that do not fit together in the end."""


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_raises_is_the_same_line_plain_and_compiled(case: str) -> None:
    """The method is the decision; the request is the one that was asked about."""
    method, message = ANSWERS[case]
    code = f"{DECIDED}    def {method}  # here\n"
    policy = make_policy(written(code))
    told = []
    for engine in ("plain", "compiled"):
        with pytest.raises(PolicyCrashError) as caught:
            simulate(TIGHT, policy, engine)
        told.append(str(caught.value))
        assert not isinstance(caught.value.__cause__, PolicyError)

    assert told[0] == told[1]
    assert told[0].startswith(f"policy mine: {message}")
    assert told[0].endswith(marked(code))


NO_ANSWERS = {
    "start": ("start(self, instance): return 5", "start returns 5, expected a DecisionPolicy"),
    "order": ("order(self, request): pass", "order of request 'r0' is None, expected a number"),
    "nan": ("order(self, request): return float('nan')", "order of request 'r0' is nan, expected a number"),
    "text": ("order(self, request): return 'a'", "order of request 'r0' is 'a', expected a number"),
    "admit": ("admit(self, view, request): pass", "admit of request 'r0' is None, expected true or false"),
    "float": (
        "chunk(self, view, request, most): return 2.5",
        "chunk of request 'r0' is 2.5, expected 0 to 4",
    ),
    "none": (
        "chunk(self, view, request, most): pass",
        "chunk of request 'r0' is None, expected 0 to 4",
    ),
    "negative": (
        "chunk(self, view, request, most): return -1",
        "chunk of request 'r0' is -1, expected 0 to 4",
    ),
    "victim": ("victim(self, view, request): pass", "victim is None, expected a running request"),
    "mode": ("batch_mode(self, view): return 7", "batch_mode is 7, expected a BatchMode"),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
def test_what_is_no_answer_is_the_same_line_plain_and_compiled(case: str) -> None:
    """With the line where the method begins."""
    method, message = NO_ANSWERS[case]
    code = f"{DECIDED}    def {method}  # here\n"
    policy = make_policy(written(code))
    told = []
    for engine in ("plain", "compiled"):
        with pytest.raises(PolicyError) as caught:
            simulate(TIGHT, policy, engine)
        told.append(str(caught.value))

    assert told[0] == told[1]
    assert told[0].startswith(f"policy mine: {message} {marked(code)}")


NO_STEPS = {
    "unknown": ("schedule(7, 1, 0)", "request is 7, expected a position from 0 to 1"),
    "from the end": ("schedule(-1, 1, 1)", "request is -1, expected a position from 0 to 1"),
    "name": ("schedule('a', 1, 0)", "request is 'a', expected a whole number"),
    "none": ("schedule(None, 1, 0)", "request is None, expected a whole number"),
    "too many": ("schedule(0, 21, 2)", "request 'a' is scheduled with 21 tokens, expected 1 to 20"),
    "not there yet": ("schedule(1, 1, 1)", "request 'b' is scheduled before its arrival"),
    "float": ("schedule(0, 2.5, 2)", "tokens is 2.5, expected a whole number"),
    "no tokens": ("schedule(0, None, 2)", "tokens is None, expected a whole number"),
    "half a block": ("schedule(0, 20, 1.5)", "KV blocks is 1.5, expected a whole number"),
    "preempt": ("preempt(9)", "request is 9, expected a position from 0 to 1"),
    "swap": ("swap_out(0.0)", "request is 0.0, expected a whole number"),
    "missing": ("missing_blocks(0, None)", "tokens is None, expected a whole number"),
}


@pytest.mark.parametrize("case", NO_STEPS)
def test_a_step_that_is_none_is_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 6, one line with decision, batch and line; nothing is counted from the end or cut off."""
    call, message = NO_STEPS[case]
    code = stepped("self.waiting = []", f"step.{call}").replace("in self.waiting:", "in ():")
    told = one_line(invoke(capsys, "simulate", "trace.csv", "--policy", written(code)), 6)

    assert told.startswith(f"policy mine: {message}")
    assert told.endswith(f", in schedule, batch 0 at 0 ns {marked(code)}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return Run(instance)", "pass", "new_run returns None without submit, schedule, retire, expected"),
        ("def retire", "def retired", "without retire, expected an object with submit, schedule, retire"),
        (
            "def submit(self, request)",
            "def submit(self)",
            "mine fails, batch 0 at 0 ns: TypeError: Run.submit() ",
        ),
        ("self.waiting, self", "self.batches_in_flight = 0; self.waiting, self", "in_flight is 0, expected"),
    ],
)
def test_a_run_that_is_none_is_refused(
    old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a method, with another signature, or with nothing to run."""
    text = written(STEPPED.replace(old, new))

    assert message in one_line(invoke(capsys, "simulate", "trace.csv", "--policy", text), 6)


def test_a_policy_that_gets_stuck_is_told_as_ours_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Its code did not fail: exit code 1."""
    text = written(STEPPED.replace("self.waiting.append(request)", "pass"))
    told = one_line(invoke(capsys, "simulate", "trace.csv", "--policy", text), 1)

    assert "policy mine schedules nothing although nothing more can arrive" in told


def test_whole_numbers_of_numpy_are_taken() -> None:
    """As Python's own."""
    text = written(
        "import numpy as np\n"
        + STEPPED.replace("known_tokens[request], 2", "known_tokens[np.int64(request)], np.int32(2)")
    )

    assert (
        simulate(INSTANCE, make_policy(text)).schedule
        == simulate(INSTANCE, make_policy(written(STEPPED))).schedule
    )


@pytest.mark.parametrize("command", ["compare", "solve", "bracket", "improve", "windows"])
def test_other_commands_say_the_same(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, whatever was told before it, and no traceback."""
    text = written(stepped("self.waiting = []", "1 / 0"))
    option = "--policy" if command == "windows" else "--heuristics"
    outcome = invoke(capsys, command, "trace.csv", option, text)

    assert outcome.code == 6
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == [outcome.err.splitlines()[-1]]
    assert "policy mine: schedule fails, batch 0 at 0 ns: ZeroDivisionError: division by zero" in errors[0]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("place", ["before", "after", "outside"])
def test_debug_shows_the_traceback_above_the_line(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the user's frame and the exception that began it."""
    call = ["simulate", "trace.csv", "--policy", written(stepped("self.waiting = []", "1 / 0"))]
    if place == "outside":
        monkeypatch.setenv("CSPSCHED_DEBUG", "1")
    else:
        call = ["--debug", *call] if place == "before" else [*call, "--debug"]
    outcome = invoke(capsys, *call)

    assert outcome.code == 6
    assert outcome.err.startswith("Traceback (most recent call last):")
    assert "1 / 0  # here" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: policy mine: schedule fails, batch 0 at 0 ns: ")


def test_python_has_the_exception_as_the_cause() -> None:
    """`raise ... from`: the chain is there for who wants it."""
    with pytest.raises(PolicyCrashError) as caught:
        simulate(INSTANCE, make_policy(written(stepped("self.waiting = []", "1 / 0"))))

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "mine.py" in "".join(traceback.format_exception(caught.value))


def test_an_interrupt_is_no_failure_of_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while a policy decides ends as everywhere."""
    text = written(stepped("self.waiting = []", "raise KeyboardInterrupt"))

    assert invoke(capsys, "simulate", "trace.csv", "--policy", text).code == 130
