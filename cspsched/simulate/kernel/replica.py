"""A replica that the kernel runs (see `cspsched.simulate.replica`)."""

from __future__ import annotations

from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.layout import ENDED, SUBMISSION, Kernel
from cspsched.simulate.kernel.records import NEVER_NS, Now, field_of, set_field
from cspsched.simulate.kernel.run import KernelRun
from cspsched.simulate.kernel.standing import Standing
from cspsched.simulate.kernel.support import new_loop
from cspsched.simulate.protocol import Machine, Policy
from cspsched.simulate.replica import ReplicaView, Submissions
from cspsched.simulate.simulation import Simulation

HELD, WAITING, RUNNING = 3, 4, 5
"""Columns of `batch_counts`."""


class KernelReplica:
    """A replica in the kernel, compiled or as plain Python, for policies with kernel rules.

    Parameters
    ----------
    machine
        Runs the batches in place of the instance's cost, of a policy that can have several in flight. On its
        own times, and batches that overlap as in a pipeline, the referee has no say.

    Raises
    ------
    UsageError
        If the kernel has no rules for the policy with its settings, the numbers do not fit it, or the policy
        or compiled code is to run on a machine that cannot.
    InputError
        If a request can never be served.
    """

    def __init__(
        self, instance: Instance, policy: Policy, *, plain: bool = False, machine: Machine | None = None
    ) -> None:
        self._instance, self._loop = instance, new_loop(instance, policy, plain=plain, machine=machine)
        self._flies = self._loop.rules.flies
        self._submissions = Submissions(instance.requests)
        self._clients: dict[str, int] = {}
        self._standing = Standing.of(instance, self._loop.rules)
        now = self._now
        now.num_arrivals = now.num_unfinished = now.until_ns = 0
        now.is_open = 1

    def submit(self, request: int, arrival_ns: int | None = None) -> None:
        """Let a request come at its arrival, or at a time that is known only now."""
        own_ns = int(self._instance.columns.arrival_ns[request])
        arrival_ns = own_ns if arrival_ns is None else arrival_ns
        self._submissions.add(request, arrival_ns)
        kernel, now = self.kernel, self._now
        set_field(kernel.requests[request], "arrival_ns", arrival_ns)
        if self._standing is not None:
            self._standing.enter(kernel, request, arrival_ns)
        if self._loop.rules.has_deadlines:
            kernel.notes[request].due_ns += arrival_ns - own_ns
        if self._loop.rules.clients:
            client = self._instance.requests[request].client_id
            kernel.notes[request].client = self._clients.setdefault(client, len(self._clients))
        num_arrivals = field_of(now, "num_arrivals")
        kernel.orders[num_arrivals, SUBMISSION] = request
        set_field(now, "num_arrivals", num_arrivals + 1)
        set_field(now, "num_unfinished", field_of(now, "num_unfinished") + 1)

    def cancel(self, request: int) -> None:
        """Let a request that was submitted leave before its end, between batches."""
        self._submissions.require(request)
        self._loop.cancel(request)

    def advance(self, until_ns: int) -> None:
        """Make every decision before a time; the batch of the last one may end later."""
        self._submissions.advance(until_ns)
        self._now.until_ns = max(int(self._now.until_ns), until_ns)
        self._loop.go_on()

    def advance_to_end(self, until_ns: int) -> list[tuple[int, int]]:
        """Advance to a time, or to the first end of a request that comes to be known if that is before."""
        now = self._now
        set_field(now, "stops_at_ends", 1)
        set_field(now, "until_ns", max(int(field_of(now, "until_ns")), until_ns))
        self._loop.go_on()
        kernel, now, ends = self.kernel, self._now, []
        self._submissions.advance(int(field_of(now, "until_ns")))
        for request in kernel.orders[: int(field_of(now, "num_ended")), ENDED].tolist():
            ends.append((int(field_of(kernel.requests[request], "finish_ns")), request))
        set_field(now, "num_ended", 0)
        set_field(now, "stops_at_ends", 0)
        return sorted(ends)

    def finish(self) -> Simulation:
        """Serve all that was submitted to its end, and tell what was done."""
        return self.finish_run().to_simulation()

    def finish_run(self) -> KernelRun:
        """The same by request, by batch and as spans; times of requests that were not submitted are -1."""
        self._now.is_open = 0
        self._now.until_ns = NEVER_NS
        self._loop.go_on()
        return self._loop.result()

    @property
    def kernel(self) -> Kernel:
        """The kernel, for compiled code that advances it by `now.until_ns`; another one after a full log."""
        return self._loop.kernel

    @property
    def next_event_ns(self) -> int | None:
        """When the next decision is due if nothing more is submitted; None if there is none."""
        now, kernel = self._now, self.kernel
        if not now.num_unfinished:
            return None
        if not now.is_idle:
            return int(now.clock_ns)
        events = [int(now.landing_ns)] if now.num_flying else []
        if now.num_submitted < now.num_arrivals:
            events.append(int(kernel.requests[kernel.orders[now.num_submitted, SUBMISSION]].arrival_ns))
        return min(events, default=None)

    def finish_ns(self, request: int) -> int | None:
        """When a request generates its last token; None if that is not decided yet."""
        finish_ns = int(self.kernel.requests[request].finish_ns)
        return finish_ns if finish_ns >= 0 else None

    @property
    def view(self) -> ReplicaView:
        """What a router may look at."""
        now, blocks = self._now, self._instance.limits.kv_blocks
        num_running, num_waiting, free_blocks = now.num_running, now.num_waiting, now.free_blocks
        num_submitted = now.num_submitted
        end_ns, counts = self._loop.last_batch()
        if min(now.clock_ns, end_ns) > now.until_ns:
            num_running, num_waiting, free_blocks = counts[RUNNING], counts[WAITING], blocks - counts[HELD]
            num_submitted = now.num_seen if self._flies else num_submitted
        return self._submissions.look(
            lambda request: int(self.kernel.requests[request].finish_ns),
            int(now.until_ns),
            num_running=int(num_running),
            num_waiting=int(num_waiting + now.num_arrivals - num_submitted),
            free_blocks=int(free_blocks),
        )

    @property
    def _now(self) -> Now:
        return self.kernel.now
