"""A policy in a user's own file, the page that says how, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cspsched.cli.group import cspsched_group, run
from cspsched.errors import UsageError
from cspsched.policies import base
from cspsched.policies.base import make_policy, policy_names
from cspsched.problem.instance import Instance, Switches
from cspsched.referee.rules import find_violations
from cspsched.simulate import Policy, simulate
from tests.support.places import DOCS
from tests.support.policy_runs import batches, evictions, instance_of
from tests.support.strategies import check, instances

PAGE = DOCS / "adding_a_policy.md"
TRACE = "request_id,arrival_s,prompt_tokens,output_tokens\na,0,9,3\nb,0,3,6\n"


def block(language: str, number: int = 0) -> str:
    """A code block of the page in a language, by default the first."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return str(blocks[number])


@pytest.fixture
def page_policy(tmp_path: Path) -> Path:
    """The page's policy in a file."""
    path = tmp_path / "my_policy.py"
    path.write_text(block("python"), encoding="utf-8")
    return path


def test_the_policy_of_the_page_runs(page_policy: Path) -> None:
    """As it stands: shortest prompt first, and the referee has no objection."""
    instance = instance_of((5, 2), (3, 2), (4, 2), kv_blocks=10)
    simulation = simulate(instance, make_policy(f"{page_policy}:ShortestFirst"))

    assert batches(simulation) == [[(1, 3), (2, 4)], [(1, 1), (2, 1)], [(0, 5)], [(0, 1)]]
    assert find_violations(instance, simulation.schedule) == []


@pytest.fixture
def patient(tmp_path: Path) -> str:
    """The page's example of every decision."""
    path = tmp_path / "patient.py"
    path.write_text(block("python", 1), encoding="utf-8")
    return f"{path}:Patient"


def test_the_decisions_of_the_page_are_taken(patient: str) -> None:
    """Shortest whole prompts first and alone, above a margin; the longest is evicted and comes back first."""
    rows = [(6, 9), (5, 9), (9, 1), (2, 1, 1)]
    simulation = simulate(instance_of(*rows, kv_blocks=20, max_batch_tokens=12), make_policy(patient))

    assert batches(simulation)[0] == [(1, 5), (0, 6)]
    assert batches(simulation)[1] == [(3, 2)]
    assert evictions(simulation)[0][1] == 0
    order = list(dict.fromkeys(request for _, request in evictions(simulation)))
    later = [request for batch in batches(simulation)[evictions(simulation)[0][0] :] for request, _ in batch]
    assert order == [0]
    assert later.index(0) < later.index(2)


@check
@given(instances())
def test_the_decisions_of_the_page_keep_the_rules(instance: Instance) -> None:
    """The referee has no objection where a batch holds every refill."""
    budget = max(request.peak_kv_tokens for request in instance.requests)
    limits = replace(instance.limits, max_batch_tokens=max(budget, instance.limits.max_batch_tokens))
    instance = replace(instance, limits=limits, switches=Switches(hybrid_batches=False))
    scope: dict[str, Any] = {}
    exec(block("python", 1), scope)

    assert find_violations(instance, simulate(instance, scope["Patient"]()).schedule) == []


def test_the_listing_shows_a_policy_of_a_file(page_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first line and its settings; it names no source."""
    assert run(cspsched_group, ["policies", f"{page_policy}:ShortestFirst"]) == 0
    text = capsys.readouterr().out

    assert "Shortest prompt first" in text
    assert "source: -; engine: plain" in text
    assert "max_num_seqs = 64" in text


def test_its_settings_are_read(page_policy: Path) -> None:
    """Typed by its dataclass, in the words of the page."""
    policy = make_policy(f"{page_policy}:ShortestFirst:max_num_seqs=1")

    assert policy.label == "shortest-first:max_num_seqs=1"
    assert len(batches(simulate(instance_of((2, 2), (2, 2)), policy))[0]) == 1
    with pytest.raises(UsageError, match="has no setting 'max_num_seq', did you mean 'max_num_seqs'"):
        make_policy(f"{page_policy}:ShortestFirst:max_num_seq=1")


def test_the_commands_take_it(page_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`simulate --policy` and `compare --heuristics`, beside a built-in one."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE, encoding="utf-8")

    assert (
        run(cspsched_group, ["simulate", str(trace), "--policy", f"{page_policy}:ShortestFirst", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["policy"] == "shortest-first:max_num_seqs=64"
    heuristics = ["vllm", f"{page_policy}:ShortestFirst:max_num_seqs=8"]
    assert run(cspsched_group, ["compare", "--json", str(trace), "--heuristics", *heuristics]) == 0
    names = [row["policy"] for row in json.loads(capsys.readouterr().out)["policies"]]
    assert names == ["vllm", "shortest-first:max_num_seqs=8"]


def test_the_entry_point_of_the_page_is_found(page_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's metadata, as an installed package would bring it."""
    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    points = EntryPoints(
        EntryPoint(name, value, group) for group, names in groups.items() for name, value in names.items()
    )
    monkeypatch.setattr(base, "entry_points", lambda *, group: points.select(group=group))
    monkeypatch.syspath_prepend(page_policy.parent)

    assert policy_names()[-1] == "shortest-first"
    assert isinstance(make_policy("shortest-first:max_num_seqs=2"), Policy)


def test_a_changed_file_is_read_again(page_policy: Path) -> None:
    """Each call runs the file; nothing is remembered from the one before."""
    make_policy(f"{page_policy}:ShortestFirst")
    code = page_policy.read_text(encoding="utf-8")
    page_policy.write_text(code.replace('"shortest-first"', '"shorter-first"'), encoding="utf-8")

    assert make_policy(f"{page_policy}:ShortestFirst").name == "shorter-first"


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "", r"mine.py' names no class, expected such as .*mine.py:MyPolicy"),
        ("class Other: ...\nimport json", "Mine", r"mine.py has no 'Mine'; it has: Other"),
        ("", "Mine", r"mine.py has no 'Mine'; it has: nothing"),
        ("import no_such_module", "Mine", r"cannot be imported: ModuleNotFoundError: No module named 'no_su"),
        ("def broken(:", "Mine", r"cannot be imported: SyntaxError: invalid syntax .*line 1"),
        ("missing", "Mine", r"cannot be imported: NameError: name 'missing'"),
        ("class Mine: ...", "Mine", r"mine.py:Mine' is a Mine without name, label and new_run"),
        ("Mine = 5", "Mine", r"mine.py:Mine' cannot be made: 5 is not a callable"),
        (
            "class Mine:\n def __init__(self, x): ...",
            "Mine",
            r"cannot be made: missing a required argument: 'x'",
        ),
        ("class Mine: ...", "Mine:most=2", r"mine.py:Mine' takes no settings, got 'most=2'"),
        ("class Mine: ...", "Mime", r"mine.py has no 'Mime', did you mean 'Mine'\?; it has: Mine"),
        ("\n1 / 0", "Mine", r"cannot be imported: ZeroDivisionError: division by zero \(.*mine.py:2\)"),
        ("raise SystemExit(0)", "Mine", r"cannot be imported: SystemExit: 0 \(.*mine.py:1\)"),
        ("open('nowhere')", "Mine", r"cannot be imported: FileNotFoundError: .*'nowhere' \(.*mine.py:1\)"),
        ("from . import other", "Mine", r"cannot be imported: ImportError: cannot import name 'other'"),
        (
            "import beside",
            "Mine",
            r"No module named 'beside' .*; it lies beside the policy: 'from . import bes",
        ),
        (
            "class Mine:\n def __init__(self):\n  {}[7]",
            "Mine",
            r"mine.py:Mine' cannot be made: KeyError: 7 \(.*mine.py:3\)",
        ),
        (
            "class Mine:\n name = 'x'\n @property\n def label(self): return 1 / 0\n def new_run(self): ...",
            "Mine",
            r"mine.py:Mine' cannot be made: ZeroDivisionError: division by zero \(.*mine.py:4\)",
        ),
        (
            "class Mine:\n name = 'x'\n label = None\n def new_run(self): ...",
            "Mine",
            r"mine.py:Mine': label is None, expected a line of text",
        ),
        (
            "class Mine:\n name = 'x'\n label = 'a\\nb'\n def new_run(self): ...",
            "Mine",
            r"mine.py:Mine': label is 'a\\nb', expected a line of text",
        ),
        ("class Mine: ...", "mine", r"mine.py has no 'mine', did you mean 'Mine'\?"),
        (
            "x = '\0'",
            "Mine",
            r"cannot be imported: SyntaxError: source code string cannot contain null bytes$",
        ),
        (
            "class Mine:\n settings_type = 5",
            "Mine",
            r"mine.py:Mine' cannot be made: TypeError: must be called",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, code: str, name: str, message: str) -> None:
    """Each with one sentence that names the file."""
    path = tmp_path / "mine.py"
    path.write_text(code, encoding="utf-8")
    (tmp_path / "beside.py").touch()
    with pytest.raises(UsageError, match=message):
        make_policy(f"{path}:{name}")


SETTINGS = """
from dataclasses import dataclass
from typing import Optional
from enum import StrEnum

class Kind(StrEnum):
    FAST = "fast"
    SLOW = "slow"

@dataclass(frozen=True)
class Settings:
    most: int
    share: Optional[float] = None
    words: str = ""
    kind: Kind = Kind.FAST
    names: list[str] = ()

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most is {self.most}, expected at least 1")

@dataclass(frozen=True)
class Mine:
    settings: Settings
    name = label = "mine"
    settings_type = Settings

    def new_run(self, instance): ...
"""


@pytest.fixture
def with_settings(tmp_path: Path) -> str:
    """A policy that needs settings."""
    path = tmp_path / "mine.py"
    path.write_text(SETTINGS, encoding="utf-8")
    return f"{path}:Mine"


def test_settings_of_all_kinds_are_read(with_settings: str) -> None:
    """Numbers, texts, choices, and any of them or None in both ways of writing it."""
    settings = make_policy(f"{with_settings}:most=2,share=0.5,words=two words,kind=slow").settings  # type: ignore[attr-defined]

    assert (settings.most, settings.share, settings.words, settings.kind) == (2, 0.5, "two words", "slow")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", r"Mine' cannot be made: TypeError: .*missing 1 required positional argument: 'most'"),
        ("most=0", r"Mine' cannot be made: ValueError: most is 0, expected at least 1 \(.*mine.py:20\)"),
        ("most=x", r"most is 'x', expected a whole number"),
        ("most=1,share=x", r"share is 'x', expected a number"),
        ("most=1,kind=slwo", r"kind is 'slwo', expected one of fast, slow, did you mean 'slow'\?"),
        (
            "most=1,names=a",
            r"names has type list\[str\], which no text is read as; use int, float, bool, str or",
        ),
        (
            "mots=1",
            r"has no setting 'mots', did you mean 'most'\?; it knows: most, share, words, kind, names",
        ),
        ("most", r"setting 'most' is no key=value"),
        ("most=1,most=2", r"setting 'most' is given twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(with_settings: str, settings: str, message: str) -> None:
    """Each with one sentence, also where the policy's own test refuses them."""
    with pytest.raises(UsageError, match=message):
        make_policy(f"{with_settings}:{settings}")


def test_a_file_of_nearly_that_name_is_named(page_policy: Path) -> None:
    """A misspelt file; a folder is none."""
    page_policy.with_name("my_folder.py").mkdir()
    with pytest.raises(UsageError, match=r"my_folder.py is a directory"):
        make_policy(f"{page_policy.with_name('my_folder.py')}:ShortestFirst")
    with pytest.raises(UsageError, match=r"my_polcy.py does not exist, did you mean 'my_policy.py'\?"):
        make_policy(f"{page_policy.with_name('my_polcy.py')}:ShortestFirst")


def test_what_fails_before_a_run_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and one line, for the file's own code as for a wrong name."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "class Mine:\n def __init__(self):\n  raise OSError(5, 'a\\nb')", encoding="utf-8"
    )
    code = run(cspsched_group, ["simulate", "tiny-12", "--policy", "mine.py:Mine"])

    assert code == 2
    told = "error: policy 'mine.py:Mine' cannot be made: OSError: [Errno 5] a b (mine.py:3)\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("text", ["nowhere/mine.py:Mine", "nowhere/mine.py:Mine:most=2", "nowhere/mine.py"])
def test_a_missing_file_is_refused(text: str) -> None:
    """Or one without a class."""
    with pytest.raises(UsageError, match=r"nowhere/mine.py( does not exist|' names no class)"):
        make_policy(text)


def test_what_is_no_file_is_a_name() -> None:
    """Only `.py` before the first colon or the end is a file."""
    with pytest.raises(UsageError, match=r"unknown policy 'mine\.pyx'"):
        make_policy("mine.pyx:Mine")
