"""Sorted-F's set that grows request by request answers as the test of whole sets does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.policies.sorted_f import Candidate, Device, StartedSet, best_set, quality

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(sizes=st.lists(sizes, min_size=1, max_size=14), kv_blocks=st.integers(1, 40), block=st.integers(1, 6))
def test_a_growing_set_takes_whom_the_whole_set_has_room_for(
    sizes: list[tuple[int, int]], kv_blocks: int, block: int
) -> None:
    """Whoever is added fits with all before by `Device.holds`, and whoever is not does not."""
    device, chosen = Device(kv_blocks, block), list[Candidate]()
    started = StartedSet(device)
    for request, (output, held) in enumerate(sizes):
        candidate = Candidate(output, held, request)
        fits = device.holds([*chosen, candidate])

        assert started.add_if_fits(candidate) == fits
        if fits:
            chosen.append(candidate)


@given(outputs=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_with_room_for_all_the_set_is_the_largest_of_least_quality(outputs: list[int]) -> None:
    """Of all numbers of shortest outputs, compared as fractions, the largest of least F."""
    waiting = [Candidate(output, 1, request) for request, output in enumerate(outputs)]
    by_output = sorted(waiting)
    values = [
        quality(sum(candidate.output_tokens for candidate in by_output[:count]), count)
        for count in range(1, len(outputs) + 1)
    ]
    most = max(count for count, value in enumerate(values, start=1) if value == min(values))

    assert best_set(waiting, Device(10_000, 1), 0) == by_output[:most]


@pytest.mark.parametrize(("kv_blocks", "fits"), [(5, True), (4, False)])
def test_memory_is_looked_at_before_every_end(kv_blocks: int, fits: bool) -> None:  # noqa: FBT001
    """Held 1 to the end 3 and 2 to the end 1: 2 + 3 blocks before the first end, 4 before the last."""
    started = StartedSet(Device(kv_blocks, 1))

    assert started.add_if_fits(Candidate(4, 1, 0))
    assert started.add_if_fits(Candidate(2, 2, 1)) == fits
