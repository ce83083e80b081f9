"""JSON of instances, schedules and results: nothing is lost, and junk is refused with a sentence."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import InputError
from cspsched.problem.instance import Instance
from cspsched.problem.json_io import read_json
from cspsched.problem.objectives import Objective
from cspsched.problem.result import RESULT_SCHEMA, Result, Status, StopReason, tool_versions
from cspsched.problem.schedule import Schedule
from cspsched.referee.metrics import measure
from cspsched.referee.timing import schedule_asap
from tests.support.strategies import check, check_briefly, feasible_runs, instances, make_instance

maybe_text = st.none() | st.text(max_size=5)


@st.composite
def results(draw: st.DrawFn) -> Result:
    """A result with a true schedule and value, or one that found nothing."""
    instance, schedule = draw(feasible_runs())
    objective = draw(st.sampled_from(Objective))
    value = measure(instance, schedule).objective_ns(objective)
    found = draw(st.booleans())
    return Result(
        instance=instance,
        objective=objective,
        schedule=schedule if found else None,
        primal_ns=value if found else None,
        dual_ns=draw(st.none() | st.integers(0, value)),
        status=draw(st.sampled_from([status for status in Status if not status.is_optimal])),
        stop_reason=draw(st.sampled_from(StopReason)),
        found_by=draw(maybe_text),
        certificate=draw(maybe_text),
        provenance={"seed": draw(st.integers())},
    )


@pytest.fixture
def solved() -> Result:
    """One request (2, 3) in three batches of 1 ns, proven."""
    instance = make_instance((2, 3))
    return Result(
        instance=instance,
        objective=Objective.MAKESPAN,
        schedule=schedule_asap(instance, [[(0, 2)], [(0, 1)], [(0, 1)]], [[], [], []]),
        primal_ns=3,
        dual_ns=3,
        status=Status.OPTIMAL,
        stop_reason=StopReason.PROVEN,
    )


def through_text(data: Any) -> Any:
    """What a file gives back."""
    return json.loads(json.dumps(data))


@given(instances())
@check_briefly
def test_instance_round_trip(instance):
    """An instance is read back equal, with the same fingerprint."""
    again = Instance.from_json(through_text(instance.to_json()))

    assert instance == again
    assert instance.fingerprint() == again.fingerprint()


@given(feasible_runs())
@check_briefly
def test_schedule_round_trip(drawn):
    """A schedule is read back equal, column by column, as int64."""
    _, schedule = drawn
    again = Schedule.from_json(through_text(schedule.to_json()))

    assert schedule == again
    assert np.int64 == again.tokens.dtype


@given(results())
@check_briefly
def test_result_round_trip(result):
    """A result is read back with the same JSON, and the referee has nothing against either."""
    again = Result.from_json(through_text(result.to_json()))

    assert result.to_json() == again.to_json()
    assert [] == again.violations() == result.violations()


def test_result_file_round_trip(solved, tmp_path):
    """What `write` writes `read_json` and `from_json` read."""
    path = tmp_path / "result.json"
    solved.write(path)

    assert solved.to_json() == Result.from_json(read_json(path)).to_json()


def test_result_to_a_place_that_cannot_be_written(solved, tmp_path):
    """A path that is a directory is refused with a sentence."""
    with pytest.raises(InputError, match="cannot be written"):
        solved.write(tmp_path)


@pytest.mark.parametrize("kind", [Instance, Schedule, Result])
@pytest.mark.parametrize("schema", ["cspsched/instance/2", "cspsched/result/3", "other", None, 1, []])
def test_unknown_schemas_are_refused(kind, schema):
    """Another schema is refused by name, with the one that is read."""
    name = RESULT_SCHEMA if kind is Result else f"cspsched/{kind.__name__.lower()}/1"
    with pytest.raises(InputError) as caught:
        kind.from_json({"schema": schema}, "my.json")

    assert str(caught.value) == (
        f"my.json: schema is {schema!r}, this version of cspsched reads {name!r}; "
        "write the file again with this version"
    )


@pytest.mark.parametrize("kind", [Instance, Schedule, Result])
@pytest.mark.parametrize("data", [None, [], "text", 3, 0.5, True])
def test_everything_is_an_object(kind, data):
    """JSON that is no object is refused."""
    with pytest.raises(InputError, match=r"my\.json: expected a JSON object with schema"):
        kind.from_json(data, "my.json")


def replaced(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of the JSON with one place replaced."""
    data = copy.deepcopy(data)
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("primal_ns",), 3.0, "primal_ns is 3.0, expected a whole number >= 0 or null"),
        (("primal_ns",), True, "primal_ns is True, expected a whole number >= 0 or null"),
        (("dual_ns",), -1, "dual_ns is -1, expected a whole number >= 0 or null"),
        (("found_by",), 3, "found_by is 3, expected text or null"),
        (("certificate",), [], "certificate is [], expected text or null"),
        (("provenance",), "by hand", "provenance is 'by hand', expected a table"),
        (("objective",), "speed", "objective 'speed' is not known, expected a measure"),
        (("status",), [], "[] is not a valid Status"),
        (("stop_reason",), None, "None is not a valid StopReason"),
        (("instance", "requests"), 5, "instance: requests must be a list, got int"),
        (("instance", "requests"), [], "the trace has no requests"),
        (("instance", "requests", 0), "r0", "requests[0]: expected a table of keys and values, got str"),
        (("instance", "requests", 0, "request_id"), 7, "requests[0]: request_id is 7, expected text"),
        (("instance", "requests", 0, "prompt_tokens"), "2", "prompt_tokens is '2', expected a whole number"),
        (("instance", "requests", 0, "prompt_tokens"), 0, "prompt_tokens is 0, expected at least 1"),
        (("instance", "requests", 0, "output_tokens"), 10**30, "expected at most 1000000000"),
        (("instance", "requests", 0, "speed"), 1, "requests[0]: unknown key 'speed'"),
        (("instance", "limits", "kv_blocks"), None, "limits: kv_blocks is None, expected a whole number"),
        (("instance", "limits", "kv_blocks"), 0, "kv_blocks is 0, expected at least 1"),
        (("instance", "limits", "block_tokens"), 2**62, f"expected less than {2**62}"),
        (("instance", "limits", "max_model_len"), 0, "max_model_len is 0, expected at least 1"),
        (("instance", "switches", "holding"), 1, "switches: holding is 1, expected true or false"),
        (("instance", "switches", "preemption"), "drop", "'drop', expected one of none, recompute, swap"),
        (("instance", "switches"), None, "switches: expected a table of keys and values, got NoneType"),
        (("instance", "cost", "step_ns"), 1.5, "cost: step_ns is 1.5, expected an exact number as text"),
        (("schedule", "tokens"), "2", "schedule: tokens must be a list of whole numbers"),
        (("schedule", "tokens"), [2.0, 1, 1], "schedule: tokens must be a list of whole numbers"),
        (("schedule", "tokens"), [True, 1, 1], "schedule: tokens must be a list of whole numbers"),
        (("schedule", "tokens"), [2**63, 1, 1], "schedule: a number is beyond 64 bits"),
        (("schedule", "tokens"), [2, 1], "request, tokens and kv_tokens differ in length"),
        (("schedule", "end_ns"), [1, 2], "3 starts, 2 ends and 4 offsets"),
        (("schedule", "first_entry"), [0, 2, 1, 3], "first_entry must rise from 0 to 3"),
        (("schedule", "first_entry"), [0, 1, 2, 4], "first_entry must rise from 0 to 3"),
        (("schedule", "first_entry"), [1, 1, 2, 3], "first_entry must rise from 0 to 3"),
        (("schedule", "evicted_batch"), [1], "evicted_request, evicted_to_host differ in length"),
        (("schedule", "speed"), [], "schedule: unknown key 'speed'"),
        (("fingerprint",), "sha256:0", "the instance was changed after the result was written"),
        (("instance", "requests", 0, "arrival_ns"), 1, "the instance was changed after the result was"),
    ],
)
def test_junk_has_its_sentence(solved, path, value, message):
    """Every wrong value is refused with the place and what was expected."""
    with pytest.raises(InputError) as caught:
        Result.from_json(replaced(solved.to_json(), path, value), "my.json")

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("result", ["instance", "schedule", "objective", "status", "stop_reason"]),
        ("instance", ["requests", "limits", "switches", "cost"]),
        ("schedule", ["start_ns", "tokens", "evicted_request"]),
    ],
)
def test_missing_keys_are_named(solved, kind, keys):
    """A missing key is refused by its name, at every level."""
    data = solved.to_json()
    part, reader = {
        "result": (data, Result),
        "instance": (data["instance"], Instance),
        "schedule": (data["schedule"], Schedule),
    }[kind]
    for key in keys:
        with pytest.raises(InputError, match=f"my.json: {key} missing"):
            reader.from_json({name: value for name, value in part.items() if name != key}, "my.json")


junk = st.sampled_from(
    [None, True, -1, 0, 1, 3, 2**31, 2**62, 2**63 - 1, -(2**63), 2**64, 10**30, 0.5, math.inf, math.nan, "",
     "1/3", "none", [], [0], [1, 2], [[]], {}, {"schema": 1}]
)  # fmt: skip


def places(data: Any) -> list[tuple[Any, Any]]:
    """All containers of a JSON value with the keys or positions in them."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    found = []
    for key, value in items:
        found += [(data, key), *places(value)]
    return found


@given(results(), st.lists(junk, min_size=1, max_size=3), st.randoms(use_true_random=False))
@check
def test_randomly_broken_json_is_refused_or_valid(result, values, rng):
    """Whatever a file holds, reading it ends in InputError or in a result that the referee can judge."""
    data = through_text(result.to_json())
    for value in values:
        spoil(data, value, rng)
    if rng.random() < 0.7:
        data.pop("fingerprint", None)
    try:
        again = Result.from_json(data)
    except InputError:
        return
    for violation in again.violations():
        assert violation.message
    assert again.to_json()


def spoil(data: Any, value: Any, rng: random.Random) -> None:
    """Replace, remove or double one place of a JSON value; keys are as likely as single numbers in lists."""
    found = places(data)
    keys = [place for place in found if isinstance(place[1], str)]
    numbers = [place for place in found if not isinstance(place[1], str)]
    container, key = rng.choice(rng.choice([keys, numbers or keys]))
    change = rng.choice(["replace", "replace", "remove", "double"])
    if change == "replace":
        container[key] = value
    elif change == "remove":
        del container[key]
    elif isinstance(container, list):
        container.append(container[key])
    else:
        container[f"{key}s"] = container[key]


@given(results(), st.lists(st.integers(0, 2**20), min_size=1, max_size=3), st.data())
@check
def test_schedules_of_any_numbers_are_judged(result, positions, data):
    """The referee gives a verdict on schedules with any 64-bit numbers in them, and never stumbles."""
    if result.schedule is None:
        return
    columns = result.schedule.to_json()
    for position in positions:
        name = data.draw(st.sampled_from([key for key in columns if key not in ("schema", "first_entry")]))
        if columns[name]:
            columns[name][position % len(columns[name])] = data.draw(
                st.sampled_from([-(2**63), -(2**62), -1, 0, 1, 2**31, 2 * 10**9, 2**62, 2**63 - 1])
            )
    changed = {**result.to_json(), "schedule": columns}

    assert isinstance(Result.from_json(changed).violations(), list)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: no valid JSON"),
        ("", "line 1: no valid JSON"),
        ("9" * 5000, "no valid JSON (a number of thousands of digits)"),
        ("[" * 100_000, "no valid JSON (nested too deeply)"),
    ],
)
def test_files_that_are_no_json(tmp_path, text, message):
    """Broken text, absurd numbers and absurd nesting are refused with the path."""
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_json(path)

    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a directory and a binary file each have their sentence."""
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"{\xff}")
    for path, message in (
        (tmp_path / "missing.json", "does not exist"),
        (tmp_path, "is a directory, expected a file"),
        (binary, "is no UTF-8 text (byte 1)"),
    ):
        with pytest.raises(InputError) as caught:
            read_json(path)
        assert message in str(caught.value)


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    """Files of Windows editors start with a byte order mark."""
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf{}")

    assert read_json(path) == {}


@pytest.mark.parametrize(
    ("primal_ns", "dual_ns", "gap"),
    [(4, 3, 0.25), (4, 4, 0.0), (None, 3, None), (4, None, None), (0, 0, None)],
)
def test_gap(solved, primal_ns, dual_ns, gap):
    """The gap is (U - L) / U, and not known where one of the two is not."""
    data = {**solved.to_json(), "primal_ns": primal_ns, "dual_ns": dual_ns}

    assert gap == Result.from_json(data).gap


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"primal_ns": 4}, [("objective", "states makespan 4 ns, the schedule's is 3 ns")]),
        ({"primal_ns": None}, [("objective", "states makespan None ns, the schedule's is 3 ns")]),
        (
            {"dual_ns": 4, "status": "feasible"},
            [("bound", "states the bound 4 ns, above its own schedule's 3 ns")],
        ),
        (
            {"dual_ns": 4},
            [
                ("bound", "states the bound 4 ns, above its own schedule's 3 ns"),
                ("status", "states that it is optimal, its bound is 4 ns and its value 3 ns"),
            ],
        ),
        (
            {"dual_ns": 2},
            [("status", "states that it is optimal, its bound is 2 ns and its value 3 ns")],
        ),
        ({"dual_ns": None, "status": "feasible"}, []),
    ],
)
def test_stated_values_are_checked(solved, changes, said):
    """The stated objective is the schedule's own, and the stated bound is not above it."""
    result = Result.from_json({**solved.to_json(), **changes})

    assert said == [(violation.rule, violation.message) for violation in result.violations()]


def test_broken_schedules_are_said_before_values(solved):
    """A schedule that breaks a rule has no value to compare; the rule is what is said."""
    data = replaced(solved.to_json(), ("schedule", "kv_tokens"), [2, 3, 5])

    assert [violation.rule for violation in Result.from_json(data).violations()] == ["memory"]
    assert Result.from_json(data).violations()[0].to_json()["rule"] == "memory"


def test_a_result_without_schedule_has_nothing_to_break(solved):
    """No schedule, no violations."""
    data = {**solved.to_json(), "schedule": None, "primal_ns": None}

    assert Result.from_json(data).violations() == []


def test_tool_versions_name_both_tools():
    """Every result can say what made it."""
    assert {"cspsched", "ortools"} == set(tool_versions())
    assert all(tool_versions().values())
