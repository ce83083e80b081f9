"""The wheel, installed beside nothing but the dependencies: what users get, not what lies in the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from email import message_from_string
from email.message import Message
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.places import ROOT

pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")

CORE = {
    "click", "jinja2", "matplotlib", "numba", "numpy", "ortools", "pandas", "pyarrow", "pydantic", "rich",
    "scikit-learn", "scipy",
}  # fmt: skip
EXTRAS = {"gpu", "ray", "aic", "fetch", "dev"}
DEVELOPMENT_ONLY = re.compile(r"(tests?|benchmarks?|docs?)/|\.ci/|\.(pyc|sh)$")

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the checkout, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("cspsched-*.whl")
    return path


@pytest.fixture(scope="module")
def files(wheel) -> set[str]:
    """Names in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel, files) -> Message:
    """METADATA of the wheel."""
    (name,) = (file for file in files if file.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and, behind it, the dependencies of this one.

    Their folders are appended by a .pth file. Python reads no .pth files of a folder that came in so, hence
    the editable install of the checkout, which is one, is not seen.
    """
    folder = tmp_path_factory.mktemp("home") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    installed = subprocess.run([*command, wheel], capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    behind = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(behind)) + "\n")
    return folder


@pytest.fixture
def python(home, tmp_path) -> Run:
    """Run the environment's Python, isolated, in an empty folder."""
    executable = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(*arguments: str) -> CompletedProcess[str]:
        return subprocess.run(
            [executable, "-I", "-W", "error", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def command(python) -> Run:
    """Run `cspsched` of the wheel; it must succeed."""

    def run(*arguments: str) -> CompletedProcess[str]:
        done = python("-m", "cspsched", *arguments)
        assert done.returncode == 0, done.stderr
        return done

    return run


# What is in it


def test_wheel_holds_the_whole_package(files):
    """Every module, the template and py.typed of the checkout are there."""
    package = ROOT / "cspsched"
    expected = {
        f"cspsched/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }

    assert expected - files == set()
    assert "cspsched/py.typed" in files
    assert any(name.startswith("cspsched/report/templates/") for name in files)


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("models/costs", ".toml"),
        ("models/devices", ".toml"),
        ("models/llms", ".toml"),
        ("profiling/grids", ".toml"),
        ("traces", ".csv"),
        ("traces/profiles", ".json"),
    ],
)
def test_wheel_holds_the_data(files, folder, suffix):
    """Facts and bundled traces ship as `cspsched/_data`."""
    names = {path.name for path in (ROOT / folder).glob(f"*{suffix}")}

    assert names
    assert {f"cspsched/_data/{folder}/{name}" for name in names} - files == set()


def test_wheel_holds_nothing_else(files):
    """One package and its metadata: no tests, benchmarks or documentation, and no second top-level name."""
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {"cspsched"}
    assert [name for name in files if DEVELOPMENT_ONLY.search(name.removeprefix("cspsched/_data/"))] == []
    assert max(len(name) for name in files) < 120


def test_metadata_names_the_core_dependencies(metadata):
    """Exactly the core dependencies are needed; the rest are extras."""
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in needed}

    assert names == CORE
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_metadata_has_the_version_of_the_project_file(metadata):
    """The version of the wheel is that of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert metadata["Version"] == project["version"]


# What it does


def test_the_wheel_is_what_is_imported(python, home):
    """The checkout, and its editable install, are out of reach."""
    code = "import cspsched, sys; print(cspsched.__file__); print(*sys.path, sep='\\n')"
    place, *path = python("-c", code).stdout.splitlines()

    assert Path(place).is_relative_to(home)
    assert str(ROOT) not in path


def test_data_is_found_inside_the_wheel(python, home):
    """Models and traces come from `_data`, not from a checkout."""
    done = python("-c", "from cspsched.resources import data_root; print(data_root())")

    assert Path(done.stdout.strip()).is_relative_to(home)
    assert Path(done.stdout.strip()).name == "_data"


def test_version(command, metadata):
    """`--version` knows the installed version."""
    assert metadata["Version"] in command("--version").stdout


def test_compare_on_the_bundled_trace(command):
    """The command of the README, on the first 50 requests of the bundled trace."""
    done = command("compare", "--heuristics", "vllm", "sarathi", "--limit", "50", "--json")
    data = json.loads(done.stdout)

    assert [row["policy"] for row in data["policies"]] == ["vllm", "sarathi"]
    assert data["num_requests"] == 50
    assert all(0 <= row["excess_at_least"] <= row["excess_at_most"] for row in data["policies"])


def test_compare_writes_its_report(command, tmp_path):
    """The page is made from the template of the wheel."""
    command("compare", "--limit", "5", "--time-limit", "0s", "--out", "report")

    assert "<html" in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_solve_on_the_bundled_trace(command, tmp_path):
    """The optimum of two requests of the bundled tiny trace, accepted by the wheel's own referee."""
    done = command("solve", "tiny-12", "--limit", "2", "--time-limit", "20s", "--json", "--out", "solved")

    assert json.loads(done.stdout)["status"] == "optimal"
    assert (tmp_path / "solved/batches.png").is_file()
    assert "feasible" in command("check", "solved/schedule.json").stdout


@pytest.mark.parametrize(
    ("name", "known"), [("models", "llama-3.1-8b"), ("devices", "h100"), ("costs", "unit")]
)
def test_facts_are_listed(command, name, known):
    """`models`, `devices` and `costs` list what ships."""
    assert known in command(name).stdout


def test_the_script_is_installed(home, tmp_path):
    """`cspsched` is on the path after an installation of the wheel."""
    (script,) = home.rglob("bin/cspsched")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    place = str(script.parent.parent)
    done = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
