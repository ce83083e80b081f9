"""Decisions by hand: the step that follows those that were made before, on the kernel's records."""

from __future__ import annotations

from collections.abc import Callable

from cspsched.problem.instance import Instance
from cspsched.simulate import KernelReplica, Step
from tests.support.scripted import Scripted

Act = Callable[[Step], object]
"""What is done in a step."""


def put(*entries: tuple[int, int, int]) -> Act:
    """A batch of (request, tokens, blocks)."""

    def act(step: Step) -> None:
        for request, tokens, blocks in entries:
            step.schedule(request, tokens, blocks)

    return act


def put_missing(*entries: tuple[int, int]) -> Act:
    """A batch of (request, tokens), each with the blocks that it lacks."""

    def act(step: Step) -> None:
        for request, tokens in entries:
            step.schedule(request, tokens, step.missing_blocks(request, tokens))

    return act


def step_after(instance: Instance, *acts: Act, caches_prefixes: bool = False) -> Step:
    """The step that follows one for each act; requests that do not arrive at 0 never come."""
    found: list[Step] = []

    def decide(number: int, step: Step) -> None:
        if number < len(acts):
            acts[number](step)
        else:
            found.append(step)

    replica = KernelReplica(instance, Scripted(decide, caches_prefixes=caches_prefixes), plain=True)
    for position, request in enumerate(instance.requests):
        if not request.arrival_ns:
            replica.submit(position)
    replica.advance(10**9)
    return found[0]
