"""Conversations as text: lengths by a rule that is told."""

from __future__ import annotations

import json

import pytest

from cspsched.errors import TraceError
from cspsched.trace import read_trace


@pytest.fixture
def conversations_file(tmp_path):
    """Write conversations, each a list of texts, and return the path."""

    def write(*conversations, **more):
        speakers = ("human", "gpt")
        entries = [
            {
                "id": str(k),
                "conversations": [{"from": speakers[n % 2], "value": text} for n, text in enumerate(texts)],
            }
            for k, texts in enumerate(conversations)
        ]
        path = tmp_path / "sharegpt.json"
        path.write_text(json.dumps([entry | more for entry in entries]), encoding="utf-8")
        return path

    return write


def test_the_first_two_turns_are_prompt_and_output(conversations_file):
    """A token is four letters, rounded up; all arrive at once, which is told."""
    trace = read_trace(conversations_file(("Hi there!", "Hello", "more"), ("x" * 8, "ü" * 4)))

    assert [(one.prompt_tokens, one.output_tokens) for one in trace.requests] == [(3, 2), (2, 1)]
    assert {one.arrival_ns for one in trace.requests} == {0}
    assert trace.notes[1:] == (
        "lengths are letters over 4, rounded up, of the first two turns: no tokenizer",
        "all requests arrive at 0: the file has no arrivals",
    )


def test_conversations_that_are_too_short_are_left_out(conversations_file):
    """As vLLM's benchmark leaves them out; how many is told."""
    trace = read_trace(conversations_file(("a",), (), ("a", ""), ("a", "b")))

    assert len(trace.requests) == 1
    assert trace.notes[-1] == "3 of 4 conversations have no two turns and are left out"


def test_no_conversation_of_two_turns_is_refused(conversations_file):
    """A trace has at least one request."""
    with pytest.raises(TraceError, match="has no conversation with two turns of text"):
        read_trace(conversations_file(("a",)))


def test_given_lengths_are_taken(conversations_file):
    """Where somebody has counted the tokens, `--columns` names them."""
    path = conversations_file(("a", "b"), num_in=70, num_out=9)
    (request,) = read_trace(path, columns="prompt=num_in,output=num_out").requests

    assert (request.prompt_tokens, request.output_tokens) == (70, 9)
