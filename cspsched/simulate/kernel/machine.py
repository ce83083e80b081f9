"""A machine that says when batches start and end, in place of the instance's cost."""

from __future__ import annotations

from collections.abc import Callable

from cspsched.errors import LimitError
from cspsched.simulate.kernel.columns import BATCHED
from cspsched.simulate.kernel.flights import launch
from cspsched.simulate.kernel.records import NEVER_NS, NO_REQUEST
from cspsched.simulate.kernel.running import KernelLoop
from cspsched.simulate.protocol import Machine


def answer_with(machine: Machine, loop: KernelLoop) -> Callable[[int], None]:
    """Return what runs the batch that was decided on the machine.

    Raises
    ------
    LimitError
        By what is returned, if the batch ends beyond 2^62 ticks.
    """
    loop.kernel.now.on_machine = 1

    def run(question: int) -> None:
        kernel, now = loop.kernel, loop.kernel.now
        placed = (int(kernel.slots[place, BATCHED]) for place in range(now.num_batched))
        rows = {request: kernel.requests[request] for request in placed if request != NO_REQUEST}
        batch = {request: row.tokens for request, row in rows.items()}
        computed = {request: row.kv_tokens for request, row in rows.items()}
        start_ns, end_ns = machine.run(batch, computed, ready_ns=now.clock_ns)
        if end_ns >= NEVER_NS:
            raise LimitError(f"the run is too long, at {end_ns} ticks of the machine; split the trace")
        launch(kernel, start_ns, end_ns)

    return run
