"""Records are the same compiled and plain: fields, kinds, first values, whole columns."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from cspsched.simulate.kernel.records import (
    NO_RUN,
    Now,
    RequestNotes,
    RequestState,
    get_column,
    new_records,
    set_column,
)

KINDS = [Now, RequestState, RequestNotes]


@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_of_records_begin_alike(
    kind: type[Now | RequestState | RequestNotes],
) -> None:
    """A row of the array has the fields of the object, in its order, with its values."""
    (row,) = new_records(kind, 1)
    (plain,) = new_records(kind, 1, plain=True)

    assert isinstance(plain, kind)
    assert row.dtype.names == tuple(field.name for field in fields(kind))
    for field in fields(kind):
        assert np.array_equal(getattr(row, field.name), getattr(plain, field.name)), field.name


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_columns_are_written_and_read_whole(plain: bool) -> None:  # noqa: FBT001
    """A value for each record, or one for all; what is read is a copy."""
    requests = new_records(RequestState, 3, plain=plain)
    set_column(requests, "prompt_tokens", np.array([4, 5, 6], dtype=np.int32))
    set_column(requests, "key", 2**40)
    prompts = get_column(requests, "prompt_tokens")
    requests[1].prompt_tokens = 9

    assert prompts.tolist() == [4, 5, 6]
    assert get_column(requests, "prompt_tokens").tolist() == [4, 9, 6]
    assert get_column(requests, "key").tolist() == [2**40] * 3
    assert {request.last_step for request in requests} == {NO_RUN}


def test_a_request_takes_two_lines_of_a_cache() -> None:
    """The speed of the kernel is that of the records that it touches."""
    assert new_records(RequestState, 1).dtype.itemsize == 128
