"""Prefixes of prompts from a hash for each block, and hashes from prefixes.

Two prompts share what their lists of hashes begin with alike. The lists make a tree, whose paths are the
streams of `Request.prefix`: the first child of a block goes on in its stream, every other one begins a new
stream. What no other prompt has is left out, for it is the request's own. Streams are numbered as they
appear, so that the same sharing has the same names, whatever the hashes are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count, pairwise
from typing import Any

from cspsched.problem.columns import Prefix
from cspsched.problem.prefix import Run, runs_of_blocks
from cspsched.units import ceil_div

_ROOT = -1


class HashesError(ValueError):
    """The hashes of a prompt make no sense.

    Attributes
    ----------
    position
        Which of the prompts it is.
    """

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


def prefixes_of_hashes(hashes: Sequence[Any], prompts: Sequence[int], block_tokens: int) -> list[Prefix]:
    """Prefix of each prompt, as far as another of these prompts has it, too.

    Parameters
    ----------
    hashes
        For each prompt a list of numbers or names of its blocks, as JSON where it is text, or None. There is
        one for each block, or one for each full block.
    prompts
        Tokens of each prompt.
    block_tokens
        Tokens of a block; the last one of a prompt may be partial.

    Raises
    ------
    HashesError
        If something is no list of numbers or names, or has another length.
    """
    checked = [
        _checked(names, position, prompts[position], block_tokens) for position, names in enumerate(hashes)
    ]
    occurrences = Counter(chain.from_iterable(checked))
    root = _Block()
    paths: list[list[_Block]] = []
    for names in checked:
        path, parent = [root], root
        for name in names:
            if occurrences[name] == 1:
                # What follows is the prompt's own; most blocks are.
                break
            block = parent.children.get(name)
            if block is None:
                block = parent.children[name] = _Block()
            block.num_prompts += 1
            path.append(block)
            parent = block
        paths.append(path)
    streams = count()
    return [
        _segments(path, prompt, block_tokens, streams) for path, prompt in zip(paths, prompts, strict=True)
    ]


class _Block:
    """A block of the tree, known by its hash and those before it."""

    __slots__ = ("children", "has_heir", "num_prompts", "stream")

    def __init__(self) -> None:
        self.children: dict[Any, _Block] = {}
        self.num_prompts = 0
        self.stream = ""
        """Of the root and of what no two prompts have there is none."""
        self.has_heir = False
        """Whether a child goes on in the stream."""


def _checked(names: Any, position: int, prompt: int, block_tokens: int) -> Sequence[Any]:
    if isinstance(names, str):
        names = _list_of_text(names)
    if names is None:
        return ()
    kinds = set(map(type, names)) if isinstance(names, list) else {type(names)}
    if not kinds <= {int, str} or not isinstance(names, list) or (str in kinds and not all(names)):
        raise HashesError(position, "is no list of whole numbers or names, expected one for each block")
    if names and len(names) not in (ceil_div(prompt, block_tokens), prompt // block_tokens):
        raise HashesError(
            position,
            f"has {len(names)} hashes, expected {ceil_div(prompt, block_tokens)} blocks of {block_tokens} "
            f"tokens for a prompt of {prompt}",
        )
    return names


def _list_of_text(text: str) -> Any:
    """The list that a cell of text holds, None for an empty cell; the text itself if it is neither."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        return text


def _segments(path: Sequence[_Block], prompt: int, block_tokens: int, streams: Iterator[int]) -> Prefix:
    """Streams and tokens of the blocks that another prompt has, too: the first ones behind the root."""
    segments: list[tuple[str, int]] = []
    rest = prompt
    for parent, block in pairwise(path):
        if block.num_prompts == 1:
            break
        if not block.stream:
            block.stream = f"p{next(streams)}" if parent.has_heir or not parent.stream else parent.stream
            parent.has_heir = True
        tokens = min(block_tokens, rest)
        rest -= tokens
        if block.stream is parent.stream:
            segments[-1] = (block.stream, segments[-1][1] + tokens)
        else:
            segments.append((block.stream, tokens))
    return tuple(segments)


def hashes_of_prefixes(
    prefixes: Sequence[Prefix], prompts: Sequence[int], block_tokens: int
) -> list[list[int]]:
    """Numbers of the blocks of every prompt, in the order in which they appear.

    Blocks have one number where their content and everything before it agree. A block of which the prefix
    covers a part only gets a number of its own.
    """
    numbers: dict[tuple[int, tuple[Run, ...]], int] = {}
    used = 0
    lists: list[list[int]] = []
    for prefix, prompt in zip(prefixes, prompts, strict=True):
        parent, names, left = _ROOT, [], prompt
        for runs in runs_of_blocks(prefix, block_tokens):
            tokens = sum(length for _, _, length in runs)
            if tokens < min(block_tokens, left):
                break
            number = numbers.setdefault((parent, runs), used)
            used += number == used
            names.append(number)
            parent, left = number, left - tokens
        num_own = ceil_div(left, block_tokens)
        lists.append([*names, *range(used, used + num_own)])
        used += num_own
    return lists
