"""The part of a cost model that is around the schedule: read, refused, and never in a batch time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cspsched.costs.frontend import Frontend, frontend_names, load_frontend
from cspsched.costs.presets import cost_path, load_cost
from cspsched.errors import InputError, UsageError

COST = "h100-llama-3.1-8b"


def cost_file(folder: Path, part: str) -> Path:
    """The default cost model with a part at its end."""
    path = folder / "cost.toml"
    path.write_text(f"{cost_path(COST).read_text()}\n{part}")
    return path


@pytest.mark.parametrize(
    ("text", "request_ns"),
    [("7.5ms", 7_500_000), ("0s", 0), ("120 us", 120_000), ("1.000000001s", 10**9 + 1)],
)
def test_a_time_is_what_comes_before_the_scheduler(text: str, request_ns: int) -> None:
    """To the nanosecond, with any unit."""
    assert load_frontend(text, COST) == Frontend(request_ns=request_ns)


def test_a_cost_file_may_have_one(tmp_path: Path) -> None:
    """It is found by the file and by `cost`, and the cost model is the same as without."""
    part = Frontend(request_ns=5, output_ns=7, source='a "run"')
    path = cost_file(tmp_path, part.to_toml())

    assert load_frontend(str(path), COST) == load_frontend("cost", path) == part
    assert part.added_ns == 12
    assert load_cost(path) == load_cost(COST)


def test_shipped_ones_say_where_they_come_from() -> None:
    """Each is read by its name and has a source."""
    assert frontend_names()
    for name in frontend_names():
        assert len(load_frontend(name, COST).source) > 20


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("[frontend]\noutput_ns = 3\n", "frontend: request_ns missing"),
        ("[frontend]\nrequest_ns = 1.5\n", "request_ns is 1.5, expected a whole number"),
        ("[frontend]\nrequest_ns = -1\n", "request_ns is -1, expected whole nanoseconds from 0 on"),
        ("[frontend]\nrequest_ns = 1\nhttp_ns = 2\n", "unknown key 'http_ns'"),
        ("", r"has no part \[frontend\]; fit one to a run"),
    ],
)
def test_a_wrong_part_is_refused(part: str, message: str, tmp_path: Path) -> None:
    """In one sentence that says what to do."""
    with pytest.raises(InputError, match=message):
        load_frontend("cost", cost_file(tmp_path, part))


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    """The sentence names what else may stand there."""
    with pytest.raises(UsageError, match=r"unknown frontend 'soon'.*a time such as 7\.5ms"):
        load_frontend("soon", COST)
