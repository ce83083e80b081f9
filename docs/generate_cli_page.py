"""Writes `docs/cli.md` from the commands themselves: `python docs/generate_cli_page.py`.

A test makes the page in memory and compares it with the file. The text is built from the commands' parameters
and not from click's help, whose layout differs between versions of click.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from cspsched import errors
from cspsched.cli.check import GATE_FAILED
from cspsched.cli.group import DEBUG_OPTION, DEBUG_VARIABLE, INTERRUPTED, cspsched_group

PAGE = Path(__file__).with_name("cli.md")
COMMAND = "python docs/generate_cli_page.py"
VERBATIM = "\b"
"""Click's marker in front of a paragraph that keeps its lines."""


def page() -> str:
    """Text of the page."""
    lines = [
        f"<!-- Written by `{COMMAND}`; do not edit. -->",
        "# Command line",
        "",
        "Data goes to stdout, talk to stderr. `cspsched COMMAND --help` says the same as this page.",
        "Formats of the files and of `--json`: [formats.md](formats.md).",
        "",
        *_exit_codes(),
        "",
        f"An error is one line on stderr. `{DEBUG_OPTION}`, before or after the command, or "
        f"`{DEBUG_VARIABLE}=1` shows its traceback above it.",
    ]
    for words, command in commands(cspsched_group, ("cspsched",)):
        lines += ["", *_section(words, command)]
    return "\n".join(lines) + "\n"


def commands(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with the words that call it; groups come before their commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


def _exit_codes() -> list[str]:
    return [
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | fine |",
        f"| {errors.InputError.exit_code} | bad input, or a file that cannot be read or written |",
        f"| {errors.UsageError.exit_code} | wrong usage |",
        f"| {GATE_FAILED} | `check`: the schedule breaks a rule, or the file states what is not so |",
        f"| {errors.InfeasibleError.exit_code} | proven: no schedule exists |",
        f"| {errors.LimitError.exit_code} | a limit was hit before there was a schedule |",
        f"| {errors.PolicyCrashError.exit_code} | your own policy's code raised, or answered nonsense |",
        f"| {INTERRUPTED} | Ctrl-C; the best schedule so far is still written |",
    ]


def _section(words: tuple[str, ...], command: click.Command) -> list[str]:
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    call = [*words, *(_argument(argument) for argument in arguments)]
    call += ["[OPTIONS]"] if options else []
    call += ["COMMAND"] if isinstance(command, click.Group) else []
    lines = [f"## {' '.join(words)}", "", f"`{' '.join(call)}`", "", *_help(command)]
    if options:
        lines += ["", "| option | value | default | |", "|---|---|---|---|", *map(_row, options)]
    return lines


def _argument(argument: click.Argument) -> str:
    name = (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _help(command: click.Command) -> list[str]:
    """Paragraphs of a command's help, those marked as verbatim as code."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith(VERBATIM):
            paragraph = f"```\n{paragraph.removeprefix(VERBATIM).strip()}\n```"
        lines += [*paragraph.splitlines(), ""]
    return lines[:-1]


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    words, stated = _without_default(option.help or "")
    cells = (names, _value(option), stated or _default(option), words)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _without_default(text: str) -> tuple[str, str]:
    """Help without the default that it states in brackets at its end, and that default."""
    words, bracket, stated = text.partition("[default: ")
    return words.strip(), stated.removesuffix("]") if bracket else ""


def _value(option: click.Option) -> str:
    """What is to be given after the option."""
    if option.is_flag:
        return ""
    if option.metavar:
        return f"`{option.metavar}`"
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        return _range(kind)
    if isinstance(kind, click.Path):
        return "folder" if not kind.file_okay else "file"
    return {"integer": "whole number", "float": "number"}.get(kind.name, kind.name)


def _range(kind: click.IntRange | click.FloatRange) -> str:
    what = "whole number" if isinstance(kind, click.IntRange) else "number"
    least = "" if kind.min is None else f"{'above' if kind.min_open else 'at least'} {kind.min}"
    most = "" if kind.max is None else f"{'below' if kind.max_open else 'at most'} {kind.max}"
    return ", ".join(filter(None, (what, " and ".join(filter(None, (least, most))))))


def _default(option: click.Option) -> str:
    """The default as it would be written; nothing where an option is off unless it is given."""
    value = option.to_info_dict()["default"]
    if option.required:
        return "(needed)"
    if option.secondary_opts:
        return f"`{(option.opts if value else option.secondary_opts)[0]}`"
    if value is None or option.is_flag:
        return ""
    if isinstance(value, tuple | list):
        return " ".join(f"`{part}`" for part in value)
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
