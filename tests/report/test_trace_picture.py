"""The picture of a trace."""

from __future__ import annotations

import numpy as np
import pytest

from cspsched.problem.request import Request
from cspsched.report.trace import SUFFIXES, trace_figure, trace_picture
from cspsched.trace import Trace
from cspsched.trace.generators import generate_trace, load_profile

SECOND = 1_000_000_000


def trace_of(arrivals_s, prefix=()):
    requests = tuple(
        Request(
            request_id=f"r{k}",
            arrival_ns=int(time * SECOND),
            prompt_tokens=10 + k,
            output_tokens=2 + k,
            prefix=prefix,
        )
        for k, time in enumerate(arrivals_s)
    )
    return Trace(name="made $x_1$", format="native", requests=requests)


def panels(trace):
    """Axes by title."""
    return {axes.get_title(): axes for axes in trace_figure(trace).axes if axes.get_title()}


def test_prefixes_have_a_panel_if_there_are_any():
    """Three panels, and a fourth."""
    three = ["arrivals", "lengths", "prompt and output"]

    assert sorted(panels(trace_of(range(9)))) == three
    assert sorted(panels(trace_of(range(9), prefix=(("system", 8),)))) == sorted([*three, "prefix sharing"])


def test_what_is_drawn_is_the_trace():
    """Rates times widths are the requests; curves end at 1; cells hold all; shares are the naive."""
    trace = trace_of(range(9), prefix=(("system", 8),))
    found = panels(trace)
    (bars,) = found["arrivals"].patches
    values, edges, _ = bars.get_data()
    prompt, output = found["lengths"].lines
    cells = found["prompt and output"].collections[0].get_array()
    (so_far,) = found["prefix sharing"].lines

    assert pytest.approx(9) == float((values * np.diff(edges)).sum())
    assert list(prompt.get_xdata()) == list(range(10, 19))
    assert list(output.get_xdata()) == list(range(2, 11))
    assert list(prompt.get_ydata())[-1] == 1.0
    assert cells.sum() == 9
    assert pytest.approx(8 * 8 / sum(range(10, 19))) == so_far.get_ydata()[-1]


@pytest.mark.parametrize("arrivals_s", [[0], [0, 0, 0], [0, 1], [0, 1e6]])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_small_traces_have_a_picture(arrivals_s, suffix):
    """One request, all together, two."""
    assert len(trace_picture(trace_of(arrivals_s), suffix)) > 5_000


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_same_trace_has_the_same_bytes(suffix, start):
    """No date and no random names."""
    trace = generate_trace(load_profile("chat"), num_requests=300, seed=1)
    first, second = (trace_picture(trace, suffix) for _ in range(2))

    assert first == second
    assert first.startswith(start)
