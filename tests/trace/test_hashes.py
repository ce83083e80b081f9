"""Hashes of blocks become prefixes that share exactly what the lists of hashes share."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspsched.errors import TraceError
from cspsched.trace import read_trace, write_trace
from cspsched.trace.detect import format_called
from cspsched.trace.hashes import HashesError, hashes_of_prefixes, prefixes_of_hashes
from tests.support.places import DATA

MOONCAKE = DATA / "traces" / "mooncake_fast25_conversation.jsonl"
needs_data = pytest.mark.skipif(
    not MOONCAKE.is_file(), reason="the public traces are not beside the checkout"
)
BLOCK = 4


@st.composite
def prompts_with_hashes(draw):
    """Lists of hashes of a few names, and prompts whose last block may be partial."""
    lists = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=7))
    sizes = {}
    prompts = []
    for names in lists:
        # A block that others stand behind is full; the others have the size that their first prompt gives.
        goes_on = any(names == other[: len(names)] != other for other in lists)
        size = BLOCK if goes_on else sizes.setdefault(tuple(names), draw(st.integers(1, BLOCK)))
        prompts.append(BLOCK * (len(names) - 1) + size)
    return lists, prompts


def tokens_of(prefix):
    """Each token of a prefix as the stream and the place that it stands for."""
    return list(chain.from_iterable([(stream, k) for k in range(tokens)] for stream, tokens in prefix))


def common(one, other):
    """Length of what two lists begin with alike."""
    return next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@given(prompts_with_hashes())
def test_two_prompts_share_what_their_hashes_share(case):
    """Token by token: as many as their blocks have before one differs, no more than a prompt has."""
    lists, prompts = case
    prefixes = prefixes_of_hashes(lists, prompts, BLOCK)

    for i, names in enumerate(lists):
        for j in range(i):
            shared = min(BLOCK * common(names, lists[j]), prompts[i], prompts[j])
            assert common(tokens_of(prefixes[i]), tokens_of(prefixes[j])) == shared


@given(prompts_with_hashes())
def test_a_prefix_ends_where_no_other_prompt_goes_on(case):
    """What one prompt has alone is its own, and no part of a prefix."""
    lists, prompts = case
    prefixes = prefixes_of_hashes(lists, prompts, BLOCK)

    for i, prefix in enumerate(prefixes):
        others = [common(lists[i], names) for j, names in enumerate(lists) if j != i]
        assert len(tokens_of(prefix)) == min(BLOCK * max(others, default=0), prompts[i])


@given(prompts_with_hashes())
def test_hashes_of_prefixes_give_the_prefixes_again(case):
    """There and back, names of streams included."""
    lists, prompts = case
    prefixes = prefixes_of_hashes(lists, prompts, BLOCK)
    again = hashes_of_prefixes(prefixes, prompts, BLOCK)

    assert prefixes == prefixes_of_hashes(again, prompts, BLOCK)


def test_a_prefix_that_ends_within_a_block_is_lost_from_there():
    """Blocks of 4 tokens hold 4 of 6 shared ones."""
    assert hashes_of_prefixes([(("sys", 6),)] * 2, [9, 9], BLOCK) == [[0, 1, 2], [0, 3, 4]]


def test_a_prompt_may_have_hashes_of_its_full_blocks_only():
    """As engines have, which cache nothing else."""
    assert prefixes_of_hashes([[7], [7]], [6, 7], BLOCK) == [(("p0", 4),)] * 2


def test_no_hashes_are_no_prefix():
    """A list may be missing or empty, or text as in a CSV file."""
    assert prefixes_of_hashes([None, [], "", "[5]", [5]], [4] * 5, BLOCK) == [
        (),
        (),
        (),
        (("p0", 4),),
        (("p0", 4),),
    ]


@pytest.mark.parametrize(
    "names", [[1, 2, 3], [1], 7, "seven", [1.5, 2], [None, 1], ["", 1], [True, 2], {"a": 1}]
)
def test_hashes_that_make_no_sense_are_refused(names):
    """Which prompt it is, how many blocks were expected."""
    with pytest.raises(HashesError) as caught:
        prefixes_of_hashes([[1, 2], names], [8, 8], BLOCK)

    assert caught.value.position == 1


def test_the_refusal_names_line_and_column(tmp_path):
    """A wrong block size shows in the number of hashes."""
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 655, "output_length": 5, "hash_ids": [1, 2]}\n'
        '{"timestamp": 0, "input_length": 655, "output_length": 5, "hash_ids": [1, 2, 3, 4]}\n',
        encoding="utf-8",
    )
    with pytest.raises(TraceError) as caught:
        read_trace(path, trace_format="mooncake")

    assert str(caught.value) == (
        f"{path} line 2: hash_ids has 4 hashes, expected 2 blocks of 512 tokens for a prompt of 655 "
        "(drop the row, or use --limit/--window to leave it out)"
    )


@needs_data
def test_mooncake_comes_back_byte_by_byte(tmp_path):
    """Hashes are numbered as they appear there, too: reading and writing the file changes nothing."""
    losses = write_trace(read_trace(MOONCAKE).requests, tmp_path / "again.jsonl", format_called("mooncake"))

    assert losses == ()
    assert (tmp_path / "again.jsonl").read_bytes().rstrip() == MOONCAKE.read_bytes().rstrip()
