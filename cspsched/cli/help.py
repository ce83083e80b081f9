"""`cspsched help`."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_command(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Help on COMMAND, or on all.

    \b
    cspsched help
    cspsched help trace generate
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    context = ctx.find_root()
    words = list(command)
    while words and isinstance(context.command, click.Group):
        name, found, words = context.command.resolve_command(context, words)
        assert found is not None
        context = click.Context(found, info_name=name, parent=context)
    if words:
        raise click.UsageError(f"{context.command_path} has no commands, got {words[0]!r}", ctx)
    click.echo(context.get_help())
