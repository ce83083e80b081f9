"""What the engine asks of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cspsched.problem.instance import Instance

if TYPE_CHECKING:
    from cspsched.simulate.step import Step


class PolicyRun(Protocol):
    """One run of a policy over one instance: its queues. Requests are positions in the instance.

    A run that decides ahead says how far by an attribute `batches_in_flight` (1 if there is none): 2 means
    that the next batch is decided when one starts, before it is known what that one generates. If it has a
    true attribute `decides_on_arrival` and less in flight than that, it is asked at arrivals, too. A run with
    a true attribute `caches_prefixes` finds what earlier requests left on the device (`step.find_cached`).
    A run with a method `cancel(request)`, which forgets a request that waits or runs and whose KV blocks are
    free already, lets requests of a replica be cancelled.
    """

    def submit(self, request: int) -> None:
        """Take note of an arrival; called in (arrival, file) order."""

    def schedule(self, step: Step) -> None:
        """Decide the next batch by `step.schedule` and `step.preempt`; an empty batch means: wait."""

    def retire(self, requests: Sequence[int]) -> None:
        """Forget requests that generated their last token; their KV blocks are free already."""


@runtime_checkable
class Policy(Protocol):
    """A scheduler with its settings; holds no state of a run, so one object serves many runs.

    It decides by rules that the kernel knows (`kernel_rules`, see `HasKernelRules`), or step by step
    (`new_run`, see `StepPolicy`).
    """

    @property
    def name(self) -> str:
        """Name in the registry, such as `vllm`."""

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults, such as `vllm:max_num_seqs=256`."""


@runtime_checkable
class StepPolicy(Policy, Protocol):
    """A scheduler that is asked for every batch."""

    def new_run(self, instance: Instance) -> PolicyRun:
        """Fresh queues for an instance."""


class Machine(Protocol):
    """Where batches run, if not one by one at the instance's cost. Its tick is what it takes for 1 ns."""

    def run(self, batch: Mapping[int, int], computed: Mapping[int, int], *, ready_ns: int) -> tuple[int, int]:
        """Run a batch {request: tokens} decided at `ready_ns` and return its start and end.

        `computed` are the KV entries of its requests before it. Batches end in the order of calls.
        """
