"""What a prefix cache without limits would hit, against a comparison of every prompt with all before it."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.trace import describe, read_trace
from cspsched.trace.sharing import prefix_statistics
from tests.support.places import DATA

TRIED, TRACES = DATA / "tried", DATA / "traces"
needs_data = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not beside the checkout")

PREFIXES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), max_size=3).map(tuple)


def tokens_of(prefix):
    return list(chain.from_iterable([(stream, k) for k in range(tokens)] for stream, tokens in prefix))


def common(one, other):
    return next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def naive(arrivals_ns, prefixes):
    """Shared tokens of each prompt, and the time since an earlier one last had all of them."""
    shared, reuse_ns = [], []
    texts = [tokens_of(prefix) for prefix in prefixes]
    for i, text in enumerate(texts):
        most = max((common(text, other) for other in texts[:i]), default=0)
        shared.append(most)
        if most:
            last_ns = max(arrivals_ns[j] for j in range(i) if common(text, texts[j]) >= most)
            reuse_ns.append(arrivals_ns[i] - last_ns)
    return shared, reuse_ns


@given(st.lists(st.tuples(st.integers(0, 9), PREFIXES), min_size=1, max_size=12))
def test_statistics_are_those_of_a_comparison_of_all_pairs(rows):
    """Tokens, requests and the median time since the last use."""
    rows = sorted(rows, key=lambda row: row[0])
    arrivals_ns, prefixes = [10**9 * time for time, _ in rows], [prefix for _, prefix in rows]
    shared, reuse_ns = naive(arrivals_ns, prefixes)
    # Two neighbouring segments of one name begin anew, so they are two.
    statistics = prefix_statistics(arrivals_ns, [20] * len(rows), prefixes)

    assert statistics.shared_tokens == sum(shared)
    assert statistics.shared_share == pytest.approx(sum(shared) / (20 * len(rows)))
    assert statistics.num_sharing == len(reuse_ns)
    if reuse_ns:
        ordered = sorted(reuse_ns)
        middle = (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2
        assert statistics.reuse_s_p50 == pytest.approx(middle / 1e9)
    else:
        assert statistics.reuse_s_p50 is statistics.shared_tokens_mean is None


@needs_data
def test_three_lines_of_mooncake():
    """The 2nd prompt shares 512 tokens with the 1st, the 3rd all of its 655."""
    statistics = describe(read_trace(TRIED / "03_mooncake_three_lines.jsonl"))

    assert statistics.span_s == 27.482
    assert statistics.prompt_tokens.mean == pytest.approx(660.67, abs=0.005)
    assert statistics.prefix is not None
    assert statistics.prefix.shared_tokens == 512 + 655


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("conversation", 12_031), ("synthetic", 3_993)])
def test_whole_traces_of_mooncake(name, rows):
    """Counts, and the tokens of blocks whose hash an earlier prompt has had, as the lines of the file say."""
    path = TRACES / f"mooncake_fast25_{name}.jsonl"
    seen, num_shared, num_tokens = set(), 0, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = sum(one in seen for one in row["hash_ids"])
        num_shared += min(512 * known, row["input_length"])
        num_tokens += row["input_length"]
        seen.update(row["hash_ids"])
    trace = read_trace(path)
    statistics = describe(trace)

    assert len(trace.requests) == rows
    assert statistics.prefix is not None
    assert statistics.prefix.shared_tokens == num_shared
    assert statistics.prefix.shared_share == num_shared / num_tokens
