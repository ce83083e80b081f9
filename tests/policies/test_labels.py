"""A label before the equals sign is the policy's name everywhere; files share no module."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

from cspsched.errors import PolicyError, UsageError
from cspsched.policies import base
from cspsched.policies.base import add_setting, make_policy
from cspsched.policies.text import PolicyText
from cspsched.policies.vllm_v1 import VllmV1
from cspsched.simulate import Policy, PolicyRun, simulate
from cspsched.simulate.decisions import DecisionPolicy
from cspsched.simulate.kernel.support import kernel_rules
from cspsched.studies.solving import policy_candidates
from tests.support.command_line import Outcome, invoke
from tests.support.strategies import make_instance

INSTANCE = make_instance((4, 9), (5, 3), (9, 2))
CLASS = """
from cspsched.policies.base import DecisionPolicy

MOST = {most}


class Mine(DecisionPolicy):
    name = "mine"

    def chunk(self, view, request, most):
        return min(most, MOST)
"""
WITH_HELPER = """
from dataclasses import dataclass

from cspsched.policies.base import DecisionPolicy
from . import helper
from .helper import MineSettings


@dataclass(frozen=True)
class Mine(DecisionPolicy):
    settings: MineSettings
    name = "mine"
    settings_type = MineSettings

    def chunk(self, view, request, most):
        helper.ASKED.append(request)
        return min(most, helper.MOST + self.settings.more)
"""
HELPER = """
from __future__ import annotations
from dataclasses import dataclass
from enum import StrEnum

MOST, ASKED = {most}, []


class Kind(StrEnum):
    FAST = "fast"


@dataclass(frozen=True)
class MineSettings:
    more: int | None = 0
    kind: Kind = Kind.FAST
"""


def folder_with(path: Path, most: int, *, helper: bool = False) -> Path:
    """A folder with a policy of chunks of so many tokens, or whose helper says how many."""
    path.mkdir()
    (path / "mine.py").write_text(WITH_HELPER if helper else CLASS.format(most=most), encoding="utf-8")
    if helper:
        (path / "helper.py").write_text(HELPER.format(most=most), encoding="utf-8")
    return path / "mine.py"


def longest_chunk(policy: Policy) -> int:
    return int(simulate(INSTANCE, policy).schedule.tokens.max())


@pytest.mark.parametrize(
    ("text", "label", "name", "settings"),
    [
        ("vllm", None, "vllm", ""),
        ("vllm:max_num_seqs=256", None, "vllm", "max_num_seqs=256"),
        ("small=vllm:max_num_seqs=16", "small", "vllm", "max_num_seqs=16"),
        (" v1.2+fix@pr-7= vllm ", "v1.2+fix@pr-7", "vllm", ""),
        ("größer=vllm", "größer", "vllm", ""),
        ("base=a/b.py:C", "base", "a/b.py:C", ""),
        ("base=b.py:C:x=1,y=2", "base", "b.py:C", "x=1,y=2"),
        ("base=/a/b.py:C", "base", "/a/b.py:C", ""),
        ("a=b/c.py:C", "a", "b/c.py:C", ""),
        ("./a=b/c.py:C", None, "a=b/c.py:C", ""),
        ("runs/a=b.py:C:x=1", None, "runs/a=b.py:C", "x=1"),
        ("a.py:C:x=1", None, "a.py:C", "x=1"),
    ],
)
def test_a_text_in_its_parts(text: str, label: str | None, name: str, settings: str) -> None:
    """An equals sign before any colon and slash ends a label; later ones are settings or paths."""
    read = PolicyText.read(text)

    assert (read.label, read.name, read.settings) == (label, name, settings)
    assert (read.file is None) == (".py" not in name)
    assert PolicyText.read(str(read)).settings == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=vllm", "the label '' is none, expected letters, digits and . [+] @ - _ before the equals sign"),
        ("my label=vllm", "the label 'my label' is none, expected letters"),
        ("base=vlm", "unknown policy 'vlm', did you mean 'vllm'?"),
        ("base=VLLM", "unknown policy 'VLLM', did you mean 'vllm'?"),
        ("base=", "unknown policy ''"),
        ("base=vllm:max_num_seq=2", "has no setting 'max_num_seq', did you mean 'max_num_seqs'?"),
        ("base=nowhere.py:Mine", "policy file nowhere.py does not exist"),
        (
            "vllm=max_num_seqs=16",
            "'vllm' is a policy itself; its settings stand behind a colon [(]vllm:max_num_seqs=16[)]",
        ),
        ("vllm=sarathi", "'vllm' is a policy itself"),
    ],
)
def test_a_wrong_label_is_refused(text: str, message: str) -> None:
    """And what stands behind a good one is read as without it."""
    with pytest.raises(UsageError, match=message):
        make_policy(text)


@dataclass(frozen=True)
class Bare:
    """A policy whose label is a field."""

    label: str = "own"
    name: ClassVar[str] = "bare"

    def new_run(self, instance: object) -> PolicyRun:
        raise NotImplementedError


class Tuple(NamedTuple):
    """A policy that is a tuple."""

    label: str = "own"
    name: str = "tuple"

    def new_run(self, instance: object) -> PolicyRun:
        raise NotImplementedError


class Attribute(DecisionPolicy):
    """A policy that gives itself a label."""

    name = "attribute"
    label = ""  # type: ignore[assignment]

    def __init__(self) -> None:
        self.label = "own"  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Bare, Tuple, Attribute])
def test_whatever_a_policy_calls_itself(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field, an attribute, a tuple's entry: the label covers it, and it stays what it is."""
    monkeypatch.setitem(base.BUILT_IN, "kind", f"{__name__}:{kind.__name__}")
    plain, labelled = make_policy("kind"), make_policy("new=kind")

    assert (plain.label, labelled.label) == ("own", "new")
    assert isinstance(labelled, kind)
    assert labelled.name == plain.name


def test_a_labelled_policy_is_what_it_was() -> None:
    """Settings, kernel rules and schedules, plain and compiled, are the same; only the label is new."""
    plain, labelled = make_policy("vllm:max_num_seqs=2"), make_policy("small=vllm:max_num_seqs=2")

    assert isinstance(labelled, VllmV1)
    assert (labelled.label, labelled.name, labelled.settings) == ("small", "vllm", plain.settings)  # type: ignore[attr-defined]
    assert kernel_rules(INSTANCE, labelled) == kernel_rules(INSTANCE, plain)
    for engine in ("plain", "compiled"):
        run = simulate(INSTANCE, labelled, engine)
        assert (run.policy, run.schedule) == ("small", simulate(INSTANCE, plain, engine).schedule)


@pytest.mark.parametrize("engine", ["plain", "compiled"])
def test_errors_of_a_labelled_policy_say_the_label(engine: str, tmp_path: Path) -> None:
    """Of ours and of the user's own."""
    path = folder_with(tmp_path / "a", -1)
    with pytest.raises(PolicyError, match="policy base: chunk of request 'r0' is -1, expected 0 to 4"):
        simulate(INSTANCE, make_policy(f"base={path}:Mine"), engine)
    stuck = make_instance((4, 9), (4, 9), kv_blocks=14, max_batch_tokens=5, chunked_prefill=False)
    with pytest.raises(PolicyError, match="policy short schedules nothing"):
        simulate(stuck, make_policy("short=vllm"), engine)


def test_a_setting_is_added_behind_a_label() -> None:
    """`simulate --emulate-bugs` does so."""
    assert add_setting("a=sarathi", "emulate_bugs=true") == "a=sarathi:emulate_bugs=true"
    assert add_setting("a=sarathi:chunk=5", "x=1") == "a=sarathi:chunk=5,x=1"
    assert add_setting("a=b/c.py:C", "x=1") == "a=b/c.py:C:x=1"
    assert add_setting("b/c.py:C:y=2", "x=1") == "b/c.py:C:y=2,x=1"


def test_two_files_of_one_name_share_nothing(tmp_path: Path) -> None:
    """Each class keeps the constants of its own file, in whatever order they are made and run."""
    base_file, head_file = (folder_with(tmp_path / name, most) for name, most in (("a", 2), ("b", 3)))
    old, new = make_policy(f"base={base_file}:Mine"), make_policy(f"head={head_file}:Mine")
    changed = base_file.read_text(encoding="utf-8").replace("MOST = 2", "MOST = 5")
    base_file.write_text(changed, encoding="utf-8")
    newest = make_policy(f"{base_file}:Mine")

    assert [longest_chunk(policy) for policy in (old, new, newest, old)] == [2, 3, 5, 2]
    assert (old.label, new.label, newest.label) == ("base", "head", "mine")
    assert len({type(policy).__module__ for policy in (old, new, newest)}) == 3


def test_helpers_beside_the_files_are_not_shared_either(tmp_path: Path) -> None:
    """`from . import helper` is the file beside the policy, and its state that of one policy."""
    files = [folder_with(tmp_path / name, most, helper=True) for name, most in (("a", 2), ("b", 3))]
    old, new = (make_policy(f"{file}:Mine:more=1,kind=fast") for file in files)
    again = make_policy(f"{files[0]}:Mine")
    chunks = [longest_chunk(policy) for policy in (old, new, again)]
    asked = [sys.modules[type(one).__module__].helper.ASKED for one in (old, new, again)]

    assert chunks == [3, 4, 2]
    assert len({id(one) for one in asked}) == 3
    assert len(asked[2]) > len(asked[0]) > 0
    assert "helper" not in sys.modules


def test_a_failed_import_leaves_no_module(tmp_path: Path) -> None:
    """Neither the file's nor a helper's."""
    file = folder_with(tmp_path / "a", 2, helper=True)
    (tmp_path / "a" / "helper.py").write_text("import no_such_module", encoding="utf-8")
    before = set(sys.modules)
    with pytest.raises(UsageError, match="cannot be imported: ModuleNotFoundError: No module named 'no_such"):
        make_policy(f"{file}:Mine")

    assert set(sys.modules) <= before


TRACE = "request_id,arrival_s,prompt_tokens,output_tokens\na,0,9,3\nb,0,3,6\nc,0.01,30,2\n"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Base and head of one class, and a policy of ours, each with a label; a trace beside them."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(TRACE, encoding="utf-8")
    folder_with(tmp_path / "a", 2)
    folder_with(tmp_path / "b", 3)
    return ["base=a/mine.py:Mine", "head=./b/mine.py:Mine", "small=vllm:max_num_seqs=1"]


def said(capsys: pytest.CaptureFixture[str], *call: str) -> Outcome:
    outcome = invoke(capsys, *call)
    assert outcome.code == 0, outcome.err
    return outcome


def test_compare_names_its_rows_by_label(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In JSON and in the table, before and after the trace."""
    call = ["compare", "--time-limit", "0s"]
    data = json.loads(said(capsys, *call, "trace.csv", "--json", "--heuristics", *pair).out)
    table = said(capsys, *call, "--heuristics", *pair, "trace.csv").out
    cells = {cell.strip() for line in table.splitlines() for cell in re.split("[│┃]", line)}

    assert [row["policy"] for row in data["policies"]] == ["base", "head", "small"]
    assert {"base", "head", "small"} <= cells
    assert "mine" not in table


def test_simulate_names_the_policy_by_label(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A user's and one of ours."""
    for text, label in zip(pair, ("base", "head", "small"), strict=True):
        data = json.loads(said(capsys, "simulate", "trace.csv", "--json", "--policy", text).out)
        assert data["policy"] == label


def test_solve_knows_its_first_schedules_by_label(pair: list[str]) -> None:
    """As `found by` says."""
    assert [label for label, _ in policy_candidates(INSTANCE, pair)[0]] == ["base", "head", "small"]


@pytest.mark.parametrize("command", ["bracket", "improve"])
def test_other_commands_take_labels(
    command: str, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They list the policies."""
    call = [command, "trace.csv", "--steps", "1", "--json", "--heuristics", *pair]
    text = said(capsys, *call).out

    assert all(f'"{label}"' in text for label in ("base", "head", "small"))
    assert "mine" not in text


def test_windows_take_a_label(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The windows of the labelled policy."""
    call = ["windows", "trace.csv", "--policy", pair[0], "--num", "1", "--json"]

    assert json.loads(said(capsys, *call).out)["policy"] == "base"
