"""What the README shows is what its commands print."""

from __future__ import annotations

import re
import shlex

import pytest

from cspsched.cli.group import COMMANDS, cspsched_group, run
from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown_after(command: str) -> list[str]:
    """Lines of the first output block behind a command."""
    block = README.split(f"`{command}`", 1)[1].split("```\n", 1)[1].split("```", 1)[0]
    return block.strip().splitlines()


@pytest.mark.parametrize(
    "command",
    [
        "cspsched compare --heuristics vllm sarathi --objective latency",
        "cspsched solve traces/burst-6.csv --cost infermax-70b --kv-tokens 64 --block-tokens 1"
        " --objective latency",
    ],
)
def test_output_is_that_of_the_command(command, capsys, monkeypatch, tmp_path):
    """Every word of the shown output is printed, table frames and the time aside."""
    arguments = shlex.split(command.replace("traces/", f"{ROOT}/traces/"))[1:]
    monkeypatch.chdir(tmp_path)
    code = run(cspsched_group, arguments)
    words = set(re.findall(r"[^\s│┃]+", capsys.readouterr().out))
    shown = [line for line in shown_after(command) if not set(line) & set("┏┡├└━")]

    assert code == 0
    assert shown
    for line in shown:
        assert set(re.findall(r"[^\s│┃]+", line)) <= words


def test_python_example_runs():
    """The example needs nothing but an installed cspsched."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

    exec(compile(example, "README.md", "exec"), {})


def test_commands_and_pictures_exist():
    """Every command named is one, and every picture and page linked is in the repository."""
    for name in re.findall(r"`cspsched ([a-z]+)", README):
        assert name in COMMANDS
    for path in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (ROOT / path).is_file()
