"""Policies that are asked for every batch: by script, and the last arrival first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class Scripted:
    """Calls a function for every decision, with its number."""

    name: ClassVar[str] = "scripted"
    label: ClassVar[str] = "scripted:by=hand"

    def __init__(self, decide: Callable[[int, Step], None], *, caches_prefixes: bool = False) -> None:
        self.decide, self.caches_prefixes = decide, caches_prefixes

    def new_run(self, instance: Instance) -> ScriptedRun:
        return ScriptedRun(self.decide, caches_prefixes=self.caches_prefixes)


class ScriptedRun:
    def __init__(self, decide: Callable[[int, Step], None], *, caches_prefixes: bool) -> None:
        self.decide, self.caches_prefixes = decide, caches_prefixes
        self.decisions = 0

    def submit(self, request: int) -> None:
        pass

    def schedule(self, step: Step) -> None:
        self.decide(self.decisions, step)
        self.decisions += 1

    def retire(self, requests: Sequence[int]) -> None:
        pass

    def cancel(self, request: int) -> None:
        pass


class LastFirst:
    """Serves the last arrival first and evicts the first ones for it.

    Parameters
    ----------
    batches_in_flight, decides_on_arrival
        As of `PolicyRun`.
    """

    name: ClassVar[str] = "last-first"

    def __init__(self, batches_in_flight: int = 1, *, decides_on_arrival: bool = False) -> None:
        self.batches_in_flight, self.decides_on_arrival = batches_in_flight, decides_on_arrival

    @property
    def label(self) -> str:
        return f"{self.name}:{self.batches_in_flight}"

    def new_run(self, instance: Instance) -> LastFirstRun:
        return LastFirstRun(self.batches_in_flight, self.decides_on_arrival)


class LastFirstRun:
    def __init__(self, batches_in_flight: int, decides_on_arrival: bool) -> None:  # noqa: FBT001
        self.batches_in_flight, self.decides_on_arrival = batches_in_flight, decides_on_arrival
        self.present: list[int] = []

    def submit(self, request: int) -> None:
        self.present.append(request)

    def schedule(self, step: Step) -> None:
        for request in reversed(self.present):
            known, computed = step.known_tokens[request], step.computed_tokens[request]
            tokens = min(known - computed, step.tokens_left)
            # One that was evicted while its batch runs has to wait for the end of that batch.
            waits = request in step.undelivered and not step.held_blocks[request]
            if tokens > 0 and step.requests_left and not waits and request not in step.evicted:
                self.make_room(step, request, step.missing_blocks(request, tokens))
                if step.missing_blocks(request, tokens) <= step.free_blocks:
                    step.schedule(request, tokens, step.missing_blocks(request, tokens))

    def make_room(self, step: Step, request: int, blocks: int) -> None:
        """Evict those who came before a request, the first first."""
        for victim in self.present[: self.present.index(request)]:
            if blocks > step.free_blocks and step.held_blocks[victim]:
                step.preempt(victim)

    def retire(self, requests: Sequence[int]) -> None:
        self.present = [request for request in self.present if request not in requests]

    def cancel(self, request: int) -> None:
        self.present.remove(request)
