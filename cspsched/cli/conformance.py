"""`cspsched conformance`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import counted, show, tell
from cspsched.cli.options import json_option
from cspsched.units import exact_seconds

if TYPE_CHECKING:
    from cspsched.recording.log import Entry
    from cspsched.recording.replay import Difference, Replay, Row

CONFORMANCE_SCHEMA = "cspsched/conformance/1"
GATE_FAILED = 3
BAD_INPUT = 1
MOST_ENTRIES_SHOWN = 6
ENGINES = {"plain": "plain", "compiled": "kernel"}
"""Words of the command line, and what they name in the package."""


@click.command("conformance")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("cases", nargs=-1)
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    default="plain",
    show_default=True,
    help="Whether our simulator replays as plain Python or compiled.",
)
@json_option
def conformance_command(
    folder: Path,
    cases: tuple[str, ...],
    engine: str,
    as_json: bool,  # noqa: FBT001 - click passes flags so
) -> int:
    """Replay recorded schedules of real engines, batch by batch.

    FOLDER holds manifest.json and the cases that it lists, or just logs with their configurations and traces
    (docs/recording.md), or runs of Vidur (docs/vidur.md). CASES are names or patterns such as 'v0/*'; all if
    none is given. A case is equal if every batch is: tokens, order, preemptions, KV blocks, queue and times.
    Exit code 3 if one differs, 1 if one cannot be read; a case that needs what is not simulated says so and
    changes neither. So does one that the compiled kernel has no rules for.

    \b
    cspsched conformance recordings
    cspsched conformance recordings c03_pressure_noapc 'v0/*' --json
    cspsched conformance recordings --engine compiled
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.recording.cases import VidurRun, find_cases
    from cspsched.recording.replay import Verdict, replay_case
    from cspsched.recording.vidur import judge_vidur_run
    from cspsched.simulate.kernel import Engine

    found, chosen = find_cases(folder, cases), Engine(ENGINES[engine])
    replays = []
    for position, case in enumerate(found, start=1):
        tell(f"[{position}/{len(found)}] replaying {case.name}")
        if isinstance(case, VidurRun):
            replays.append(judge_vidur_run(case, chosen))
        else:
            replays.append(replay_case(case, chosen))
        if not as_json:
            show("\n".join(_lines(replays[-1])))
    counts = Counter(replay.verdict for replay in replays)
    if as_json:
        data: dict[str, Any] = {"schema": CONFORMANCE_SCHEMA}
        data["counts"] = {verdict.value: counts[verdict] for verdict in Verdict}
        data["cases"] = [replay.to_json() for replay in replays]
        show(json.dumps(data, indent=1))
    else:
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        show(f"{counted(len(replays), 'case')}: {told}")
    if counts[Verdict.DIFFERS]:
        return GATE_FAILED
    return BAD_INPUT if counts[Verdict.UNREADABLE] else 0


def _lines(replay: Replay) -> Iterator[str]:
    """Verdict on a case in one line, and below it where it differs and what to know."""
    reason = f": {replay.reason}" if replay.reason else ""
    facts = f"  {replay.num_iterations:,} iterations, {replay.policy}" if replay.num_iterations else ""
    yield f"{replay.case:36} {replay.verdict}{reason}{facts}"
    for note in replay.notes:
        yield f"    note: {note}"
    if replay.difference is not None:
        yield from _sides(replay.difference)


def _sides(difference: Difference) -> Iterator[str]:
    recorded, simulated = difference.recorded, difference.simulated
    yield f"    first in iteration {difference.iteration}: {', '.join(difference.fields)}"
    first = _first_other_entry(recorded, simulated)
    yield f"      recorded   {_side(recorded, first)}"
    yield f"      simulated  {_side(simulated, first)}"


def _side(row: Row | None, first: int) -> str:
    if row is None:
        return "has ended"
    return (
        f"{exact_seconds(row.start_ns):f} s to {exact_seconds(row.end_ns):f} s, {row.kv_used} KV blocks, "
        f"{row.waiting} waiting, preempted {', '.join(row.preempted) or 'none'}, {_entries(row.sched, first)}"
    )


def _entries(entries: tuple[Entry, ...], first: int) -> str:
    """Entries from the first that differs on, as `request:tokens@computed before`."""
    shown = entries[first : first + MOST_ENTRIES_SHOWN]
    text = " ".join(f"{name}:{tokens}@{before}" for name, tokens, before in shown)
    before = f"{first} alike, " if first else ""
    rest = len(entries) - first - len(shown)
    return f"{counted(len(entries), 'request')}: {before}{text}{f' and {rest} more' if rest else ''}"


def _first_other_entry(recorded: Row | None, simulated: Row | None) -> int:
    """Position of the first entry in which two sides differ; the start if they do not."""
    if recorded is None or simulated is None or recorded.sched == simulated.sched:
        return 0
    pairs = zip(recorded.sched, simulated.sched, strict=False)
    alike = (k for k, (theirs, ours) in enumerate(pairs) if theirs != ours)
    return next(alike, min(len(recorded.sched), len(simulated.sched)))
