"""The GitHub action and the GitLab recipe, step by step, in a repository with a base and a head."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.gate_cases import write_checkout
from tests.support.pages import code_blocks
from tests.support.places import ROOT

CI = {"GITHUB_ACTIONS": "true"}


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command in a folder, by a stated author."""
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first commit, `main`, is base, and whose working tree is what a test makes of it."""
    folder = tmp_path / "repository"
    write_checkout(folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "base")
    return folder


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the runners do, with this environment's `cspsched`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run_action(repository: Path, base_ref: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """The action's steps but the installation; the last one's outcome and the job summary."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    temporary = repository.parent / "runner"
    temporary.mkdir()
    summary = temporary / "summary.md"
    given = {"RUNNER_TEMP": str(temporary), "GITHUB_STEP_SUMMARY": str(summary), **CI}
    inputs = {"BASE_REF": base_ref, "CONFIG": "gate.toml", "OUT": "gate-report"}
    _, *others = [step for step in steps if base_ref or "base-ref" not in step.get("if", "")]
    for step in others:
        assert set(step["env"]) <= set(inputs)
        done = shell(step["run"], repository, **given, **inputs)
    return done, summary.read_text()


def test_the_action_fails_a_pull_request_that_is_worse(repository):
    """Exit code 3, the table in the job summary, and an annotation at the scheduler's file."""
    base = git(repository, "rev-parse", "HEAD")
    write_checkout(repository, seats=1)

    done, summary = run_action(repository, base)

    assert done.returncode == 3
    assert "### Gate failed" in summary
    assert "above base's" in summary
    assert "::error file=scheduler.py,title=cspsched gate" in done.stdout
    assert (repository / "gate-report" / "junit.xml").is_file()


def test_the_action_passes_what_changes_nothing(repository):
    """The same scheduler under another comment: equal values, exit code 0."""
    base = git(repository, "rev-parse", "HEAD")
    write_checkout(repository, schedule="pass  # another comment")

    done, summary = run_action(repository, base)

    assert done.returncode == 0
    assert "### Gate passed: 2 cells" in summary
    assert "| equal |" in summary


def test_the_action_works_without_a_base(repository):
    """On a push there is none: limits on the excess decide."""
    done, summary = run_action(repository, "")

    assert done.returncode == 0
    assert "Gate passed" in summary


def test_the_recipe_for_gitlab_runs(repository):
    """Every line of its script but the installation, on a branch that is worse than its target."""
    (recipe,) = (yaml.safe_load(text) for text in code_blocks("gate.md", "yaml") if "scheduler-gate" in text)
    job = recipe["scheduler-gate"]
    install, *script = job["script"]
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    write_checkout(repository, seats=1)

    done = shell("\n".join(script), repository, CI_MERGE_REQUEST_TARGET_BRANCH_NAME="main")

    assert install.startswith("pip install")
    assert done.returncode == 3
    assert (repository / job["artifacts"]["reports"]["junit"]).is_file()
