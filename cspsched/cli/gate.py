"""`cspsched gate`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cspsched.cli.console import show, step, tell
from cspsched.cli.group import INTERRUPTED, command_line
from cspsched.cli.options import (
    SERVING_NAMES,
    ManyValuesCommand,
    ObjectiveText,
    heuristics_option,
    instance_serving,
    json_option,
    out_type,
    seed_option,
    selected_trace,
    serving_options,
    trace_options,
)
from cspsched.errors import InputError, UsageError

if TYPE_CHECKING:
    from cspsched.studies.gate.file import GateFile, TraceEntry
    from cspsched.studies.gate.result import GateResult
    from cspsched.studies.gate.run import Case, Contest

FAILED = 3
DEFAULT_FILE = "gate.toml"
file_type = click.Path(path_type=Path, dir_okay=False)
TRACE_NAMES = ("limit", "window", "scale_rate")
OF_THE_FILE = ("heuristics", "base", "objectives", *TRACE_NAMES, *SERVING_NAMES)
"""Options that a gate's file has keys for."""


class Percentage(click.ParamType[Fraction]):
    """A percentage such as 40% or 2.5 %; its value is the exact ratio."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        """The ratio."""
        from cspsched.studies.gate.file import read_percent

        try:
            return value if isinstance(value, Fraction) else read_percent(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("gate", cls=ManyValuesCommand)
@click.argument("target", type=click.Path(path_type=Path), required=False, metavar="TARGET")
@heuristics_option
@click.option(
    "--base", multiple=True, metavar="POLICY...", help="Policies to compare those with, in their order."
)
@click.option(
    "--base-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Another checkout: what its gate file (else its policy files) say is base.",
)
@click.option(
    "--base-result",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An earlier result of 'gate --json', as base.",
)
@click.option(
    "--objective",
    "objectives",
    type=ObjectiveText(),
    multiple=True,
    default=("latency",),
    show_default=True,
    metavar="WHAT...",
    help="What is compared, one column of the matrix each (see 'compare').",
)
@click.option(
    "--excess-at-most", type=Percentage(), metavar="PERCENT",
    help="Fail unless the excess is proven to be within it.",
)  # fmt: skip
@click.option(
    "--regression-at-most", type=Percentage(), metavar="PERCENT",
    help="Tolerance of head's value over base's.  [default: 0 %]",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(min=0), help="As in 'compare'.  [default: the file's, else 200]")
@click.option(
    "--out", type=out_type, help="Folder for all outputs: JSON, Markdown, JUnit, CSV, badge, pages."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="File for the report in Markdown."
)
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), help="File for the report as JUnit XML."
)
@click.option(
    "--annotations/--no-annotations",
    default=None,
    help="Annotations of GitHub for each reason.  [default: where GITHUB_ACTIONS is true]",
)
@json_option
@seed_option
@trace_options
@serving_options
def gate_command(
    target: Path | None,
    heuristics: tuple[str, ...],
    base: tuple[str, ...],
    base_dir: Path | None,
    base_result: Path | None,
    objectives: tuple[str, ...],
    excess_at_most: Fraction | None,
    regression_at_most: Fraction | None,
    steps: int | None,
    out: Path | None,
    markdown: Path | None,
    junit: Path | None,
    annotations: bool | None,  # noqa: FBT001 - click passes flags so
    as_json: bool,  # noqa: FBT001 - click passes flags so
    seed: int,
    **options: Any,
) -> int:
    """Fail where a scheduler is further from optimal than allowed, or worse than base.

    TARGET is a gate's file (TOML: traces, policies, objectives, limits; gate.toml if nothing is given), or
    one trace, with options. Head and base run on the same instances, so that their difference is exact; the
    excess is certified, and within its limit only if that is proven. The same bytes every time. Exits 3 with
    a line a reason, 0 if all is well.

    \b
    cspsched gate
    cspsched gate gate.toml --base-dir ../base --out gate-report
    cspsched gate chat-2000 --heuristics vllm sarathi --excess-at-most 40%
    cspsched gate chat-2000 --heuristics new.py:Mine --base old.py:Mine --objective latency ttft
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.report import gate as report
    from cspsched.report.files import write_gate
    from cspsched.report.output import require_writable, write_files
    from cspsched.studies.gate.result import read_stored
    from cspsched.studies.gate.run import run_gate
    from cspsched.studies.reference import ReferenceLimits

    for folder in filter(None, (out, markdown and markdown.parent, junit and junit.parent)):
        require_writable(folder)
    if sum(map(bool, (base, base_dir, base_result))) > 1:
        raise UsageError("--base, --base-dir and --base-result each say what base is; give one of them")
    target = Path(DEFAULT_FILE) if target is None and Path(DEFAULT_FILE).is_file() else target
    if target is not None and target.suffix == ".toml":
        file = _read_file(target)
        contests, objectives = _with_base(file.contests, target, base_dir), file.objectives
        cases = [_case(entry, target.parent, dict(options)) for entry in file.traces]
        steps, seed = (file.steps if steps is None else steps), (seed if _is_given("seed") else file.seed)
    else:
        contests = _with_base(_contests(heuristics, base), None, base_dir)
        cases = [_selected(target, options)]
    contests = tuple(_ruled(one, excess_at_most, regression_at_most) for one in contests)
    stored = read_stored(base_result) if base_result else {}
    _refuse_undecided(contests, has_stored=base_result is not None)
    result = run_gate(
        cases,
        contests,
        objectives,
        limits=ReferenceLimits(steps=steps, seed=seed),
        stored=stored,
        command=command_line(),
        on_step=step,
    )
    show(json.dumps(result.to_json(), indent=1) if as_json else "\n".join(report.lines(result)))
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: report.markdown(result)})
    if junit is not None:
        write_files(junit.parent, {junit.name: report.junit(result)})
    if out is not None:
        written = write_gate(result, out)
        tell(f"wrote {out / 'gate.html'} and {len(written) - 1} more files to {out}")
    if annotations or (annotations is None and os.environ.get("GITHUB_ACTIONS") == "true"):
        _annotate(result, as_json=as_json)
    return _code(result)


def _read_file(path: Path) -> GateFile:
    """The gate's file, refused beside options that it has keys for."""
    from cspsched.studies.gate.file import read_gate_file

    for name in filter(_is_given, OF_THE_FILE):
        option = {"objectives": "objective"}.get(name, name).replace("_", "-")
        context = click.get_current_context()
        raise click.UsageError(f"--{option} is given beside {path}, which says that itself", context)
    return read_gate_file(path)


def _is_given(name: str) -> bool:
    """Whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _with_base(
    contests: tuple[Contest, ...], file: Path | None, base_dir: Path | None
) -> tuple[Contest, ...]:
    """The contests with those of another checkout as base, if there is one: the same files there."""
    from cspsched.studies.gate.file import based_on_file, based_on_folder

    if base_dir is None:
        return contests
    if file is None:
        return based_on_folder(contests, Path(), base_dir)
    if file.is_absolute():
        raise UsageError(f"{file} is an absolute path, which has no place in {base_dir}; give a relative one")
    other = base_dir / file
    return (
        based_on_file(contests, other)
        if other.is_file()
        else based_on_folder(contests, file.parent, other.parent)
    )


def _contests(heuristics: tuple[str, ...], base: tuple[str, ...]) -> tuple[Contest, ...]:
    """Policies of the options, each with the base in the same position."""
    from cspsched.studies.gate.run import Contest
    from cspsched.studies.gate.verdict import GateRules

    if base and len(base) != len(heuristics):
        raise UsageError(
            f"--base names {len(base)} policies for {len(heuristics)}; give one for each, in order"
        )
    pairs = zip(heuristics, base or (None,) * len(heuristics), strict=True)
    return tuple(Contest(name=head, head=head, base=other, rules=GateRules()) for head, other in pairs)


def _ruled(contest: Contest, excess: Fraction | None, regression: Fraction | None) -> Contest:
    """The contest with the limits of the command line, which count more than those of the file."""
    given = {"excess_at_most": excess, "regression_at_most": regression}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(contest, rules=replace(contest.rules, **changes))


def _refuse_undecided(contests: tuple[Contest, ...], *, has_stored: bool) -> None:
    """Refuse a gate that could only fail where a policy crashes."""
    for contest in contests:
        if contest.rules.excess_at_most is None and contest.base is None and not has_stored:
            raise UsageError(
                f"nothing is decided about policy {contest.name!r}: give --excess-at-most (excess_at_most in "
                "the file), or a base"
            )


def _selected(trace: Path | None, options: dict[str, Any]) -> Case:
    from cspsched.studies.gate.run import Case

    requests = selected_trace(trace, options)
    return Case(name=requests.name, trace=requests, serving=instance_serving(options))


def _case(entry: TraceEntry, folder: Path, options: dict[str, Any]) -> Case:
    """A trace of the file, its values converted as the options of the same names are, which have defaults."""
    from cspsched.studies.gate.run import Case

    context = click.get_current_context()
    known = {
        param.name: param for param in context.command.params if param.name in (*TRACE_NAMES, *SERVING_NAMES)
    }
    for name, value in entry.options.items():
        if name not in known:
            raise InputError(
                f"trace {entry.name!r}: unknown option {name.replace('_', '-')!r}; there are "
                f"{', '.join(sorted(known)).replace('_', '-')}"
            )
        try:
            options[name] = known[name].type_cast_value(context, str(value))
        except click.UsageError as error:
            raise InputError(f"trace {entry.name!r}: {error.format_message()}") from None
    if options["cost"] and Path(options["cost"]).suffix:
        options["cost"] = str(folder / options["cost"])
    trace = folder / entry.trace
    requests = selected_trace(trace if trace.exists() else Path(entry.trace), options)
    return Case(name=entry.name, trace=replace(requests, name=entry.name), serving=instance_serving(options))


def _annotate(result: GateResult, *, as_json: bool) -> None:
    """One workflow command a reason; beside JSON they go where they do not break it."""
    from cspsched.report.gate import github_annotations

    for line in github_annotations(result):
        click.echo(line, err=as_json)


def _code(result: GateResult) -> int:
    from cspsched.studies.gate.result import Verdict

    if result.is_interrupted:
        return INTERRUPTED
    return 0 if result.verdict is Verdict.PASSED else FAILED
