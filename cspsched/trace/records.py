"""JSON as a table: one object a line, a list of objects, or one object of equally long lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cspsched.errors import TraceError
from cspsched.trace.source import Source
from cspsched.trace.table import ListColumn, Table

PROMPTS_OF_A_RUN = "input_lens"
LISTS_OF_A_RUN = (PROMPTS_OF_A_RUN, "output_lens", "start_times", "errors")
"""Keys under which a benchmark keeps a list with an entry per request."""
_DECODER = json.JSONDecoder(parse_float=str)


def json_table(source: Source) -> Table:
    """Return the table of JSON lines or of a JSON document.

    Objects in objects are flattened: `{"metrics": {"isl": {"value": 5}}}` has the column `metrics.isl.value`.
    Numbers with decimals stay text, digit by digit. An object with a list `input_lens` is a run of a
    benchmark: its lists are the columns.

    Raises
    ------
    InputError
        If the source is no UTF-8 text.
    TraceError
        If a line is no JSON object, there is none, or the lists of a run differ in length.
    """
    text, name = source.text, source.name
    if text.lstrip().startswith("["):
        entries = _parsed(text, name)
        if not entries:
            raise TraceError(f"{name} is an empty list, expected one object per request")
        objects = [_object(entry, f"{name} entry {k}") for k, entry in enumerate(entries, start=1)]
        return _rows_table(source, objects, "entry", range(1, len(objects) + 1))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    document = _document_over_lines(text, lines[0][1])
    if document is not None:
        lines, objects = lines[:1], [document]
    else:
        objects = [_object(_parsed(line, f"{name} line {k}"), f"{name} line {k}") for k, line in lines]
    if PROMPTS_OF_A_RUN not in objects[0]:
        return _rows_table(source, objects, "line", [number for number, _ in lines])
    if len(objects) > 1:
        raise TraceError(
            f"{name} holds {len(objects)} runs of a benchmark, expected one (keep one line of it)"
        )
    return _run_table(source, objects[0])


def _document_over_lines(text: str, first_line: str) -> dict[str, Any] | None:
    """The one object that a text is, if its first line is none by itself."""
    try:
        json.loads(first_line)
    except ValueError:
        try:
            document = _DECODER.decode(text)
        except (ValueError, RecursionError):
            return None
        return document if isinstance(document, dict) else None
    return None


def _parsed(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where} line {error.lineno}"
        raise TraceError(f"{place}: no valid JSON ({error.msg}); repair or drop it") from None
    except ValueError:
        raise TraceError(f"{where}: no valid JSON (a number of thousands of digits); repair it") from None
    except RecursionError:
        raise TraceError(f"{where}: no valid JSON (nested too deeply); repair it") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"{where}: expected a JSON object with the fields of a request (repair or drop it)")
    return value


def _rows_table(
    source: Source, objects: Sequence[Mapping[str, Any]], place: str, places: Sequence[int]
) -> Table:
    rows = [
        dict(_flattened(one)) if any(type(value) is dict for value in one.values()) else one
        for one in objects
    ]
    header = dict.fromkeys(name for row in rows for name in row)
    columns = {name: ListColumn([row.get(name) for row in rows]) for name in header}
    return Table(source=source.name, stem=source.stem, columns=columns, place=place, places=places)


def _flattened(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flattened(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner


def _run_table(source: Source, run: Mapping[str, Any]) -> Table:
    prompts = run[PROMPTS_OF_A_RUN]
    if not isinstance(prompts, list) or not prompts:
        raise TraceError(f"{source.name}: {PROMPTS_OF_A_RUN} has no entries, expected one per request")
    lists = {name: values for name, values in run.items() if isinstance(values, list)}
    for name in LISTS_OF_A_RUN:
        if name in lists and len(lists[name]) != len(prompts):
            raise TraceError(
                f"{source.name}: {name} has {len(lists[name])} entries and {PROMPTS_OF_A_RUN} "
                f"{len(prompts)}, expected as many (save the run again)"
            )
    return Table(
        source=source.name,
        stem=source.stem,
        columns={name: ListColumn(values) for name, values in lists.items() if len(values) == len(prompts)},
        place="request",
        places=range(1, len(prompts) + 1),
        facts={name: value for name, value in run.items() if name not in lists},
    )
