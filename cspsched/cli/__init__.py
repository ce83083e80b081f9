"""The command line: `cspsched COMMAND`. Commands are imported when they are called, so help stays fast."""

from __future__ import annotations

import sys

from cspsched.cli.group import cspsched_group, run


def main() -> None:
    """Entry point of the `cspsched` command."""
    sys.exit(run(cspsched_group, sys.argv[1:]))
