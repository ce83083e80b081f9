"""A replica of Vidur's: pipeline stages that batches pass one behind another, priced by its tables.

Time is in femtoseconds (1e-15 s): a batch time is a float composed by `costs.vidur_tables`, rounded once to a
tick. Half a tick per batch is 5e-12 s after ten thousand, and an hour is 3.6e18 of the 9.2e18 ticks that 64
bits hold. What Vidur notes of a request is kept here, too, as it counts itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cspsched.costs.vidur_tables import VidurTables
from cspsched.problem.request import Request

FS_PER_S = 10**15


@dataclass(slots=True, kw_only=True)
class VidurRequest:
    """A request as Vidur counts it. Times in femtoseconds.

    Attributes
    ----------
    prompt_tokens
        Tokens of its prefill, or of its refill after a restart.
    processed_tokens
        Tokens processed since the last restart; the end of a prefill adds one for the token it generates.
    is_prefilled
        Whether the prefill has ended, so that it takes one token a batch.
    scheduled_fs, prefill_completed_fs, completed_fs
        When its first batch was formed, its first prefill ended, its last batch ended.
    execution_fs
        Time on the stages, all batches together.
    preempted_fs
        Time between the stages, from the end of one to the start of the next.
    """

    prompt_tokens: int
    processed_tokens: int = 0
    is_prefilled: bool = False
    num_restarts: int = 0
    scheduled_fs: int | None = None
    prefill_completed_fs: int | None = None
    completed_fs: int | None = None
    execution_fs: int = 0
    preempted_fs: int = 0

    def restart(self, *, forgets_prompt: bool) -> None:
        """Refill what was processed; with the bug that is all of its prompt that it remembers."""
        self.num_restarts += 1
        if forgets_prompt or self.processed_tokens > self.prompt_tokens:
            self.prompt_tokens = self.processed_tokens
        self.processed_tokens, self.is_prefilled = 0, False

    def run(self, tokens: int, ready_fs: int, spans: Sequence[tuple[int, int]]) -> None:
        """Pass the stages, each from a start to an end, with so many tokens."""
        if self.scheduled_fs is None:
            self.scheduled_fs = ready_fs
        for start_fs, end_fs in spans:
            if self.completed_fs is not None:
                self.preempted_fs += start_fs - self.completed_fs
            self.execution_fs += end_fs - start_fs
            self.completed_fs = end_fs
        self.processed_tokens += tokens
        if not self.is_prefilled and self.processed_tokens == self.prompt_tokens:
            self.is_prefilled = True
            self.processed_tokens += 1
            if self.prefill_completed_fs is None:
                self.prefill_completed_fs = self.completed_fs


class VidurMachine:
    """Runs batches on the stages of a replica (`simulate.Machine`); 1 ns of the simulation is 1 fs.

    Attributes
    ----------
    requests
        What Vidur notes of every request of the instance.
    prefill_tokens
        Tokens of every batch that are prefill.
    """

    def __init__(self, requests: Sequence[Request], tables: VidurTables, *, emulate_bugs: bool) -> None:
        self.requests = [VidurRequest(prompt_tokens=request.prompt_tokens) for request in requests]
        self.prefill_tokens: list[int] = []
        self._tables = tables
        self._forgets_prompts = emulate_bugs
        self._stage_free_fs = [0] * tables.num_stages

    def run(self, batch: Mapping[int, int], computed: Mapping[int, int], *, ready_ns: int) -> tuple[int, int]:
        """Pass the stages: each takes the batch once it has left the stage before and the stage is free.

        Raises
        ------
        InputError
            If the batch is larger than the tables.
        """
        prefills: list[tuple[int, int]] = []
        decodes: list[int] = []
        for position, tokens in batch.items():
            request = self.requests[position]
            if request.processed_tokens and not computed[position]:
                request.restart(forgets_prompt=self._forgets_prompts)
            if request.is_prefilled:
                decodes.append(request.processed_tokens)
            else:
                prefills.append((tokens, request.processed_tokens))
        self.prefill_tokens.append(sum(tokens for tokens, _ in prefills))
        spans = self._pass_stages(self._tables.stage_times_s(prefills, decodes), ready_ns)
        for position, tokens in batch.items():
            self.requests[position].run(tokens, ready_ns, spans)
        return spans[0][0], spans[-1][1]

    def _pass_stages(self, times_s: Sequence[float], ready_fs: int) -> list[tuple[int, int]]:
        spans = []
        for stage, time_s in enumerate(times_s):
            start_fs = max(ready_fs, self._stage_free_fs[stage])
            self._stage_free_fs[stage] = ready_fs = start_fs + round(time_s * FS_PER_S)
            spans.append((start_fs, ready_fs))
        return spans
