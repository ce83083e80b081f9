"""Calls of the command line in this process."""

from __future__ import annotations

from dataclasses import dataclass

import click
import pytest

from cspsched.cli.group import COMMANDS, cspsched_group, run


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `cspsched` in this process."""
    capsys.readouterr()
    code = run(cspsched_group, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Outcome(code, out, err)


def all_commands() -> dict[str, click.Command]:
    """Every command and subcommand by its words."""
    context = click.Context(cspsched_group)
    commands: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cspsched_group.get_command(context, name)
        assert command is not None
        commands[name] = command
        if isinstance(command, click.Group):
            found = {sub: command.get_command(context, sub) for sub in command.list_commands(context)}
            commands |= {f"{name} {sub}": one for sub, one in found.items() if one is not None}
    return commands


ALL_COMMANDS = all_commands()
