"""The help: fast, complete, and in agreement with itself."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from cspsched.cli.group import COMMANDS
from tests.support.command_line import ALL_COMMANDS, invoke

HEAVY = ("ortools", "numba", "torch", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import cspsched",
        "import cspsched.cli; cspsched.cli.run(cspsched.cli.cspsched_group, ['--help'])",
        "import cspsched.cli; cspsched.cli.run(cspsched.cli.cspsched_group, ['solve', '--help'])",
    ],
)
def test_import_and_help_load_nothing_heavy(code):
    """Neither the package nor a help text loads the solver, the compiler, or the plotting library."""
    check = f"{code}; import sys; print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("loaded []\n")


def test_help_lists_every_command_with_its_short_help(capsys):
    """`cspsched --help` shows the table of commands."""
    outcome = invoke(capsys, "--help")

    assert outcome.code == 0
    for name, (_, short) in COMMANDS.items():
        assert f"{name} " in outcome.out
        assert short in outcome.out


def test_no_arguments_show_the_help(capsys):
    """Without a command the help comes, on stderr, as a usage error."""
    outcome = invoke(capsys)

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: cspsched")


@pytest.mark.parametrize("name", COMMANDS)
def test_table_of_commands_agrees_with_the_commands(name):
    """The table, which is shown without importing a command, has its name and the first line of its help."""
    assert name == ALL_COMMANDS[name].name
    assert COMMANDS[name][1] == (ALL_COMMANDS[name].help or "").partition("\n")[0]


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_command_has_help_with_an_example(name, capsys):
    """Every help text says what the command does and shows a call of it."""
    outcome = invoke(capsys, *name.split(), "--help")

    assert outcome.code == 0
    assert f"\n  cspsched {name}" in outcome.out


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_option_is_documented(name):
    """No option comes without a sentence that ends in a full stop."""
    for parameter in ALL_COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.partition("  [default")[0][-1] in ".?", f"{name} {parameter.name}"


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_argument_is_explained(name):
    """The text of a command mentions its argument by name."""
    command = ALL_COMMANDS[name]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name.upper() in (command.help or "")


def examples() -> list[list[str]]:
    """The lines of all help texts that show a call, as words."""
    lines = [line.split() for command in ALL_COMMANDS.values() for line in (command.help or "").splitlines()]
    return [words for words in lines if words[:1] == ["cspsched"]]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_example_in_a_help_text_uses_options_that_exist(words):
    """The options of an example are options of the command that it calls."""
    name = next(name for name in (" ".join(words[1:3]), words[1]) if name in ALL_COMMANDS)
    known = {option for parameter in ALL_COMMANDS[name].params for option in parameter.opts}

    assert {word for word in words if word.startswith("--")} <= known


def test_version_is_that_of_the_package(capsys):
    """`--version` prints the installed version."""
    from importlib.metadata import version

    assert f"cspsched, version {version('cspsched')}\n" == invoke(capsys, "--version").out
