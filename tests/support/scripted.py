"""A policy whose decisions are a function of their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from cspsched.problem.instance import Instance
from cspsched.simulate import Step


class Scripted:
    """Calls a function for every decision, with its number."""

    name: ClassVar[str] = "scripted"
    label: ClassVar[str] = "scripted:by=hand"

    def __init__(self, decide: Callable[[int, Step], None]) -> None:
        self.decide = decide

    def new_run(self, instance: Instance) -> ScriptedRun:
        return ScriptedRun(self.decide)


class ScriptedRun:
    def __init__(self, decide: Callable[[int, Step], None]) -> None:
        self.decide = decide
        self.decisions = 0

    def submit(self, request: int) -> None:
        pass

    def schedule(self, step: Step) -> None:
        self.decide(self.decisions, step)
        self.decisions += 1

    def retire(self, requests: Sequence[int]) -> None:
        pass
