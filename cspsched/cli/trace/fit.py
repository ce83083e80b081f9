"""`cspsched trace fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import begin, counted, show, tell
from cspsched.cli.options import (
    json_option,
    output_option,
    selected_trace,
    trace_argument,
    trace_options,
)

if TYPE_CHECKING:
    from cspsched.trace.generators import Profile


@click.command("fit")
@trace_argument
@output_option("JSON file for the profile.", "-o", required=True)
@click.option("--name", help="Name of the profile.  [default: the output's]")
@click.option(
    "--source", metavar="TEXT", help="Where the trace is from, and its licence; kept in the profile."
)
@click.option(
    "--components",
    type=click.IntRange(min=1, max=16),
    help="Fit mixtures of so many lognormals to the lengths, instead of tables of 256 quantiles.",
)
@json_option
@trace_options
def fit_command(
    trace: Path,
    output: Path,
    name: str | None,
    source: str | None,
    components: int | None,
    as_json: bool,  # noqa: FBT001 - click passes flags so
    **options: Any,
) -> None:
    """Fit a profile to TRACE, for 'cspsched trace generate --profile FILE'.

    Lengths and their rank correlation, the rhythm of the arrivals, slow changes and silences; and how far
    from the trace all that is.

    \b
    cspsched trace fit trace.csv --output mine.json --source "our gateway, 3 March"
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from datetime import UTC, datetime

    from cspsched.report.output import write_files
    from cspsched.trace import describe
    from cspsched.trace.generators import Description, fit_profile

    given = selected_trace(trace, options)
    for warning in describe(given).warnings:
        tell(f"warning: {warning}")
    begin(f"fitting a profile to {counted(len(given.requests), 'request')}")
    description = Description(
        name=name or output.stem,
        source=source or f"fitted to {given.name} ({given.format} format)",
        fit_date=datetime.now(UTC).date().isoformat(),
    )
    profile = fit_profile(given, description, num_components=components)
    write_files(output.parent, {output.name: profile.to_text()})
    show(profile.to_text().rstrip() if as_json else summary(profile))
    tell(f"wrote the profile to {output}")


def summary(profile: Profile) -> str:
    """What was fitted, and how near it is, a line each."""
    lines = []
    if profile.lengths:
        for field in ("prompt", "output"):
            error = getattr(profile.lengths, f"{field}_error")
            lines.append(f"{field + ' tokens':16} KS {error.ks:.4f}, W1 / mean {error.w1_over_mean:.4f}")
        lines.append(f"{'Spearman':16} {profile.lengths.rank_correlation:.3f}")
    if profile.rate_per_s:
        rhythm = f"{profile.arrivals.family}, cv {profile.arrivals.cv:.3g}"
        lines.append(f"{'arrivals':16} {profile.rate_per_s:.4g}/s, {rhythm}")
    if profile.arrivals_error:
        lines[-1] += (
            f" (KS {profile.arrivals_error.ks:.3f}, W1 / mean {profile.arrivals_error.w1_over_mean:.3f})"
        )
    if profile.rate.hours:
        lines.append(
            f"{'hours':16} rate times {min(profile.rate.hours):.2f} to {max(profile.rate.hours):.2f}"
        )
    if profile.rate.modulation:
        modulation = profile.rate.modulation
        lines.append(
            f"{'modulation':16} cv {modulation.cv:.3g}, phi {modulation.phi:.2f} in {modulation.step_s:g} s"
        )
    if profile.rate.spells:
        spells = profile.rate.spells
        lines.append(
            f"{'spells':16} {spells.on.mean:.3g} s with arrivals, {spells.off.mean:.3g} s without, on average"
        )
    for row in profile.dispersion:
        window = f"dispersion {row.window_s:g} s"
        lines.append(f"{window:16} {row.trace:.4g} in the trace, {row.profile:.4g} in the profile")
    return "\n".join([*lines, *(f"note: {note}" for note in profile.notes)])
