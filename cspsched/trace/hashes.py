"""Prefixes of prompts from a hash for each block, and hashes from prefixes.

Two prompts share what their lists of hashes begin with alike. The lists make a tree, whose paths are the
streams of `Request.prefix`: the first child of a block goes on in its stream, every other one begins a new
stream, named by its hash. What no other prompt has is left out, for it is the request's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from cspsched.problem.columns import Prefix
from cspsched.problem.prefix import Run, runs_of_blocks
from cspsched.problem.request import Request
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
        For each prompt a list of numbers or names of its blocks, or None. There is one for each block, or one
        for each full block.
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
    children_of_all: dict[Any, _Block] = {}
    paths: list[list[_Block]] = []
    for names in checked:
        path: list[_Block] = []
        children, stream = children_of_all, None
        for name in names:
            if occurrences[name] == 1:
                # What follows is the prompt's own; most blocks are.
                break
            block = children.get(name)
            if block is None:
                block = children[name] = _Block(str(name) if stream is None or children else stream)
            block.num_prompts += 1
            path.append(block)
            children, stream = block.children, block.stream
        paths.append(path)
    return [_segments(path, prompt, block_tokens) for path, prompt in zip(paths, prompts, strict=True)]


class _Block:
    """A block of the tree, known by its hash and those before it."""

    __slots__ = ("children", "num_prompts", "stream")

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.num_prompts = 0
        self.children: dict[Any, _Block] = {}


def _checked(names: Any, position: int, prompt: int, block_tokens: int) -> Sequence[Any]:
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


def _segments(path: Sequence[_Block], prompt: int, block_tokens: int) -> Prefix:
    """Streams and tokens of the blocks that another prompt has, too: the first ones of the path."""
    segments: list[tuple[str, int]] = []
    rest = prompt
    before: _Block | None = None
    for block in path:
        if block.num_prompts == 1:
            break
        tokens = min(block_tokens, rest)
        rest -= tokens
        if before is not None and block.stream is before.stream:
            segments[-1] = (block.stream, segments[-1][1] + tokens)
        else:
            segments.append((block.stream, tokens))
        before = block
    return tuple(segments)


def hashes_of_prefixes(requests: Sequence[Request], block_tokens: int) -> tuple[list[list[int]], int]:
    """Numbers of the blocks of every prompt as they appear, and tokens whose sharing is lost.

    Blocks have one number where their content and everything before it agree. A block of which the prefix
    covers a part only gets a number of its own.
    """
    numbers: dict[tuple[int, tuple[Run, ...]], int] = {}
    used = 0
    lost_tokens = 0
    lists: list[list[int]] = []
    for request in requests:
        parent, names, left = _ROOT, [], request.prompt_tokens
        for runs in runs_of_blocks(request.prefix, block_tokens):
            tokens = sum(length for _, _, length in runs)
            if tokens < min(block_tokens, left):
                lost_tokens += tokens
                break
            number = numbers.setdefault((parent, runs), used)
            used += number == used
            names.append(number)
            parent, left = number, left - tokens
        for _ in range(ceil_div(left, block_tokens)):
            names.append(used)
            used += 1
        lists.append(names)
    return lists, lost_tokens
