"""How GPUs share a model: what its name and its keys in files say, both ways."""

from __future__ import annotations

import pytest

from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.errors import InputError

MIXED = Parallelism(tensor=2, data=4, has_expert_parallel=True)


def test_ranks_share_experts_whole_or_in_slices():
    """All ranks of all groups share them, one way or the other."""
    sliced = Parallelism(tensor=2, data=4)

    assert (MIXED.num_ranks, MIXED.expert_groups, MIXED.expert_slices) == (8, 8, 1)
    assert (sliced.num_ranks, sliced.expert_groups, sliced.expert_slices) == (8, 1, 8)


@pytest.mark.parametrize(
    ("parallelism", "title", "suffix"),
    [
        (ONE_GPU, "TP 1", ""),
        (Parallelism(tensor=4), "TP 4", "-tp4"),
        (MIXED, "TP 2, DP 4, EP 8", "-tp2-dp4-ep8"),
    ],
)
def test_names_tell_them_apart(parallelism, title, suffix):
    """For people and for files; degrees come back as they were written."""
    assert (parallelism.title, parallelism.suffix) == (title, suffix)
    assert Parallelism.of_degrees(parallelism.degrees, "file") == parallelism


def test_degrees_may_be_left_out_of_a_file():
    """One of a kind is usual; a file without any does not say."""
    assert Parallelism.of_degrees({"tensor_parallel": 2}, "file") == Parallelism(tensor=2)
    assert Parallelism.of_degrees({"title": "x"}, "file") is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tensor_parallel": "2"}, "file: tensor_parallel is '2', expected a whole number"),
        ({"data_parallel": 0}, "data_parallel is 0, expected at least 1"),
        ({"tensor_parallel": 4, "expert_parallel": 2}, "expert_parallel is 2, expected 1 or all 4 ranks"),
    ],
)
def test_degrees_that_make_no_sense_are_refused(data, message):
    """With the file and the key."""
    with pytest.raises(InputError, match=message):
        Parallelism.of_degrees(data, "file")
