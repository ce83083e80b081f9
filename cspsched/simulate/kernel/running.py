"""One kernel, its loop and its logs: gone on with as often as asked, then read out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from cspsched.compiled.jit import compiled, told_of_compiling
from cspsched.errors import InputError, UsageError
from cspsched.problem.cost import CostModel, IntArray
from cspsched.simulate.kernel import layout
from cspsched.simulate.kernel.cancel import cancel_by_request, take_unarrived, wake
from cspsched.simulate.kernel.cost import flatten_cost, flatten_exactly
from cspsched.simulate.kernel.failures import failure
from cspsched.simulate.kernel.logs import Logs
from cspsched.simulate.kernel.memory import new_kernel
from cspsched.simulate.kernel.records import field_of, get_column
from cspsched.simulate.kernel.rules import Rules
from cspsched.simulate.kernel.run import TIMES, KernelRun
from cspsched.simulate.kernel.workload import Workload
from cspsched.units import ceil_div

LOG = logging.getLogger("cspsched")
MOST_OUTPUT_TOKENS, MOST_BLOCK_TOKENS, MOST_BLOCKS = 2**26, 2**24, 2**31 - 1
"""What the calendar, the residues and 32 bits hold."""
Asker = Callable[["KernelLoop"], Callable[[int], None]]
"""Makes of a loop the function that answers its questions."""


class KernelLoop:
    """A kernel that runs rules over columns; the label and the requests' names are for results and errors.

    Parameters
    ----------
    plain
        Whether it runs as plain Python.

    Raises
    ------
    InputError
        If a request can never be served.
    UsageError
        If the numbers do not fit the kernel.
    """

    def __init__(
        self,
        workload: Workload,
        rules: Rules,
        cost: CostModel,
        *,
        label: str,
        name_of: Callable[[int], str] = str,
        asker: Asker | None = None,
        plain: bool = False,
    ) -> None:
        if ceil_div(workload.largest_peak, rules.block_tokens) > rules.kv_blocks:
            raise InputError(
                f"a request needs {workload.largest_peak} tokens of KV cache, the device holds "
                f"{rules.kv_blocks} blocks of {rules.block_tokens}; remove such requests first"
            )
        prices = flatten_exactly(cost) if plain else fitting_prices(workload, rules, cost)
        if prices is None:
            raise UsageError(f"policy {label}: the numbers are too large for compiled code; run it plain")
        self.rules = rules
        self._workload, self._label, self._name_of = workload, label, name_of
        self._run = rules.run if plain else compiled(rules.run, CACHES=rules.caches_prefixes)
        self._logs, self._may_compile = Logs(), not plain
        self._cancelled: list[int] = []
        self.kernel = new_kernel(workload, rules, prices, plain=plain)
        self._tell = asker(self) if asker else None

    def go_on(self) -> None:
        """Run until all known requests have finished or `now.until_ns` has come.

        Raises
        ------
        StuckError, LivelockError, LimitError
            As `run_workload`.
        """
        with self._telling():
            self._go_on()
        now = self.kernel.now
        if not field_of(now, "is_open") and now.num_unfinished:
            # It waited for an arrival while it was open, and none came.
            raise self._failure(layout.STUCK)

    def cancel(self, request: int) -> None:
        """Cancel a request that was submitted (see `Replica.cancel`).

        Raises
        ------
        UsageError
            If the policy cannot forget a request that waits.
        """
        kernel = self.kernel
        if kernel.requests[request].finish_ns >= 0:
            return
        at_ns = max(self.last_batch()[0], int(kernel.now.until_ns))
        if not take_unarrived(kernel, request, at_ns):
            (self.rules.cancel or cancel_by_request)(kernel, request, at_ns)
            wake(kernel, at_ns)
        self._cancelled.append(request)

    def _telling(self) -> AbstractContextManager[None]:
        """What tells, in the first run of compiled code, that it is compiled first."""
        if not self._may_compile:
            return nullcontext()
        self._may_compile = False
        what = f"compiling the policy {self._label}, once after an installation"
        return told_of_compiling(lambda: LOG.info(what), lambda: None)

    def _go_on(self) -> None:
        while (answer := int(self._run(self.kernel))) != layout.FINISHED:
            if answer == layout.LOG_FULL:
                self.kernel = self._logs.grow(self.kernel)
            elif answer >= layout.FIRST_QUESTION and self._tell:
                self._tell(answer)
            else:
                raise self._failure(answer)

    def _failure(self, answer: int) -> Exception:
        return failure(answer, self.kernel, self.rules, self._label, self._name_of)

    def last_batch(self) -> tuple[int, list[int]]:
        """End and counts of the last batch, columns as in the log; (-1, []) if there was none."""
        return self._logs.last_batch(self.kernel)

    def result(self) -> KernelRun:
        """What has been done; the kernel is given away, so nothing follows."""
        self._logs.keep(self.kernel)
        times_ns = np.stack([get_column(self.kernel.requests, name) for name in TIMES], axis=1)
        changes = self._output_changes()
        num_preemptions = get_column(self.kernel.requests, "num_preemptions").astype(np.int32)
        # The records go before the logs are joined: of ten million requests they are a gigabyte.
        del self.kernel
        return KernelRun(
            policy=self._label,
            rules=self.rules,
            workload=self._workload,
            times_ns=times_ns,
            num_preemptions=num_preemptions,
            batch_ns=self._logs.column("batch_ns"),
            batch_counts=self._logs.column("batch_counts"),
            spans=self._logs.column("spans"),
            output_changes=changes,
        )

    def _output_changes(self) -> dict[int, int]:
        """Tokens generated by each request to which a bug or a cancellation gave others than it asked for."""
        now, requests, asked = self.kernel.now, self.kernel.requests, self._workload
        if not (now.restarts_output or now.drops_above or self._cancelled):
            return {}
        generated = get_column(requests, "prompt_tokens") + get_column(requests, "generated")
        generated -= asked.prompt_tokens
        arrived = self.kernel.orders[: now.num_arrivals, layout.SUBMISSION]
        submitted = np.union1d(arrived, np.array(self._cancelled, dtype=np.int32))
        changed = submitted[generated[submitted] != asked.output_tokens[submitted]]
        return dict(zip(changed.tolist(), generated[changed].tolist(), strict=True))


def fitting_prices(workload: Workload, rules: Rules, cost: CostModel) -> IntArray | None:
    """The flat cost model; None if something does not fit the kernel's numbers."""
    fits = (
        int(workload.output_tokens.max()) < MOST_OUTPUT_TOKENS
        and rules.block_tokens <= MOST_BLOCK_TOKENS
        and rules.kv_blocks <= MOST_BLOCKS
    )
    return flatten_cost(cost, rules, workload.largest_peak) if fits else None
