"""Arrivals drawn within the ticks of a coarse clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import UsageError
from cspsched.trace import describe, read_trace
from cspsched.trace.jitter import Jitter
from tests.support.places import DATA

MOONCAKE = DATA / "traces" / "mooncake_fast25_conversation.jsonl"
SECOND = 10**9


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).map(sorted), st.integers(0, 5))
def test_each_arrival_stays_in_its_tick(ticks, seed):
    """Order and ticks stay, the first arrives at 0, and the same seed gives the same times."""
    stamped = np.array(ticks, dtype=np.int64) * 3 * SECOND
    stamped -= stamped[0]
    drawn, note = Jitter(seed=seed).spread(stamped)
    again, _ = Jitter(seed=seed).spread(stamped)

    assert drawn[0] == 0
    assert (np.diff(drawn) >= 0).all()
    assert (drawn == again).all()
    if stamped.any():
        tick = np.diff(stamped)[np.diff(stamped) > 0].min()
        assert f"{tick / SECOND:g} s (seed {seed})" in note
        # Before the first was moved to 0 each was within a tick behind its stamp.
        offsets = drawn - stamped
        assert offsets.max() - offsets.min() < tick
    else:
        assert "changes nothing" in note


@pytest.mark.parametrize("stamps", [[0], [0, 0], [0, 999_999]])
def test_a_fine_clock_is_left_alone(stamps):
    """A tick below 1 ms, or none, is told."""
    drawn, note = Jitter().spread(np.array(stamps))

    assert drawn.tolist() == stamps
    assert note == "--dejitter changes nothing: the arrivals are not on ticks of 1 ms or more"


@pytest.mark.parametrize("text", ["", "normal", "uniform:", "uniform:-1", "uniform:x", "uniform:1:2"])
def test_another_text_is_refused(text):
    """The sentence shows how it is written."""
    with pytest.raises(UsageError, match="expected uniform or uniform:SEED, such as uniform:7"):
        Jitter.of(text)


@pytest.mark.skipif(not MOONCAKE.is_file(), reason="the public traces are not beside the checkout")
def test_mooncake_is_nearly_poisson_then():
    """Gaps that were 0 or 3 s vary as those of a Poisson process; lengths and their order are the same."""
    raw, drawn = read_trace(MOONCAKE), read_trace(MOONCAKE, dejitter="uniform:3")

    assert describe(raw).interarrival_cv == pytest.approx(3.03, abs=0.01)
    assert describe(drawn).interarrival_cv == pytest.approx(1.0, abs=0.05)
    assert describe(raw).warnings
    assert not describe(drawn).warnings
    assert [one.prompt_tokens for one in raw.requests] == [one.prompt_tokens for one in drawn.requests]
    assert any("seed 3" in note for note in drawn.notes)
