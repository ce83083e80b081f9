"""The group of commands, loaded lazily, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from traceback import format_exception, walk_tb
from typing import Any

import click

from cspsched.errors import CspschedError, InputError, InternalError

INTERRUPTED = 130
DEBUG_OPTION, DEBUG_VARIABLE = "--debug", "CSPSCHED_DEBUG"
WORDS = "cspsched.words"
"""Under which a context keeps the words of its command."""
PLACES = ("--out", "--output", "--save", "--markdown", "--junit", "--html")
"""Options that say where a result is written and change nothing in it."""
UNSET = ("", "0", "false", "no", "off")
"""Values of the variable that leave the flag off."""

COMMANDS = {
    "solve": ("cspsched.cli.solve:solve_command", "Best schedule of TRACE with a certified bound."),
    "compare": (
        "cspsched.cli.compare:compare_command",
        "How far policies are from the best possible schedule of TRACE.",
    ),
    "gate": (
        "cspsched.cli.gate:gate_command",
        "Fail where a scheduler is further from optimal than allowed, or worse than base.",
    ),
    "explain": (
        "cspsched.cli.explain:explain_command",
        "Why policies are above the optimum of TRACE.",
    ),
    "simulate": (
        "cspsched.cli.simulate:simulate_command",
        "Run one policy over TRACE and print its metrics.",
    ),
    "bound": (
        "cspsched.cli.bound:bound_command",
        "Certified lower bounds on what any scheduler can reach on TRACE.",
    ),
    "improve": (
        "cspsched.cli.improve:improve_command",
        "Find a schedule of TRACE that is better than every policy's.",
    ),
    "bracket": (
        "cspsched.cli.bracket:bracket_command",
        "Interval that holds the optimum of TRACE, with a proof at both ends.",
    ),
    "windows": (
        "cspsched.cli.windows:windows_command",
        "How far a policy is from the exact optimum in random small windows of TRACE.",
    ),
    "adversary": (
        "cspsched.cli.adversary:adversary_command",
        "Search small traces on which a policy is provably furthest from optimal.",
    ),
    "check": ("cspsched.cli.check:check_command", "Judge SCHEDULE by the referee."),
    "conformance": (
        "cspsched.cli.conformance:conformance_command",
        "Replay recorded schedules of real engines, batch by batch.",
    ),
    "validate": (
        "cspsched.cli.validate:validate_command",
        "Simulate measured RUNS and print how far TTFT, TPOT and latency are off.",
    ),
    "import-schedule": (
        "cspsched.cli.import_schedule:import_schedule_command",
        "Turn the log of a real engine's scheduler into a schedule.",
    ),
    "trace": (
        "cspsched.cli.trace:trace_group",
        "List, describe, convert, fit, generate, sample and fetch traces.",
    ),
    "profile": (
        "cspsched.cli.profile:profile_group",
        "Measure operators on a GPU or CPU, and make cost models of them.",
    ),
    "capacity": (
        "cspsched.cli.facts:capacity_command",
        "Where the GPU memory goes, byte by byte, and the KV blocks left.",
    ),
    "policies": (
        "cspsched.cli.facts:policies_command",
        "List the policies with what they follow and their settings.",
    ),
    "models": ("cspsched.cli.facts:models_command", "List the LLM architectures."),
    "devices": (
        "cspsched.cli.facts:devices_command",
        "List the devices, with the default C and R of vLLM V1 there.",
    ),
    "costs": (
        "cspsched.cli.facts:costs_group",
        "List the cost models, show where one comes from, or compose one.",
    ),
    "help": ("cspsched.cli.help:help_command", "Help on COMMAND, or on all."),
}
"""Where each command is, and the first sentence of its help, known without importing it."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called or its own help is asked."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the whole command, for results that name it."""
        ctx.meta.setdefault(WORDS, tuple(args))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for an unknown name."""
        if args and args[0] not in self.table:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.table, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            known = ", ".join(self.table)
            raise click.UsageError(f"no such command {args[0]!r}{hint}; there are: {known}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            width = max(map(len, self.table))
            for name, (_, short) in self.table.items():
                # Not a definition list, which breaks a sentence where the terminal could hold it.
                formatter.write(f"  {name:{width}}  {short}\n")


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cspsched", prog_name="cspsched")
@click.option(
    DEBUG_OPTION,
    is_flag=True,
    expose_value=False,
    help=f"Show the traceback of an error; here or after the command, or by {DEBUG_VARIABLE}=1.",
)
@click.pass_context
def cspsched_group(ctx: click.Context) -> None:
    """Say how far an LLM server's scheduler is from the best possible schedule.

    \b
    cspsched compare --heuristics vllm sarathi      policies on a bundled trace
    cspsched solve trace.csv                        the best schedule, with a proof
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.cli.console import Talk

    ctx.obj = ctx.with_resource(Talk(ctx.invoked_subcommand or "working"))


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command and turn whatever happens into an exit code; an error is one line on stderr."""
    words, debug = _without_debug(arguments)
    try:
        code = command.main(args=words, prog_name="cspsched", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the border: a bug of ours is told in a line, too
        if debug:
            click.echo("".join(format_exception(error)), err=True, nl=False)
        message, exit_code = _verdict(error, words)
        click.echo(f"error: {message}", err=True)
        return exit_code
    return code if isinstance(code, int) else 0


def command_line() -> str:
    """The command that runs, without the options that only say where and how its result is written."""
    words = list(click.get_current_context().meta[WORDS])
    kept = []
    while words:
        word = words.pop(0)
        if word in PLACES:
            words = words[1:]
        elif word != "--json" and word.partition("=")[0] not in PLACES:
            kept.append(word)
    return shlex.join(["cspsched", *kept])


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without the flag, which may stand anywhere, and whether it is set here or outside."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [word for word in arguments[:end] if word != DEBUG_OPTION]
    is_set = len(words) < end or os.environ.get(DEBUG_VARIABLE, "").lower() not in UNSET
    return [*words, *arguments[end:]], is_set


def _verdict(error: Exception, arguments: Sequence[str]) -> tuple[str, int]:
    """One line about an error, and its exit code."""
    match error:
        case click.ClickException():
            message, place = _one_line(error.format_message()), _place(error, arguments)
            return f"{message} (see '{place} --help')", error.exit_code
        case CspschedError():
            return _one_line(str(error)), error.exit_code
        case OSError():
            return f"{error.filename or 'output'}: {error.strerror}", InputError.exit_code
        case _:
            *_, (frame, line) = walk_tb(error.__traceback__)
            told = ": ".join(filter(None, (type(error).__name__, _one_line(str(error)))))
            told = f"internal error: {told} ({Path(frame.f_code.co_filename).name}:{line})"
            return f"{told}; please report it, {DEBUG_OPTION} shows the traceback", InternalError.exit_code


def _place(error: click.ClickException, arguments: Sequence[str]) -> str:
    """The command whose help says more."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        return context.command_path
    return " ".join(["cspsched", *(name for name in arguments[:1] if name in COMMANDS)])


def _one_line(message: str) -> str:
    return " ".join(message.split()).rstrip(".")
