"""A slow simulator of vLLM V1 and Sarathi: one object a block, everything counted anew in every iteration.

It shares nothing with `cspsched.simulate` and `cspsched.policies` but the rules that both were written from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Protocol

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule


@dataclass(eq=False)
class Block:
    """One KV block and who owns it."""

    owner: NaiveRequest | None = None


@dataclass(eq=False)
class NaiveRequest:
    """One request; every token of its KV cache is an item of a list."""

    index: int
    name: str
    arrival_ns: int
    prompt: int
    output: int
    priority: int
    emitted: list[str] = field(default_factory=list)
    kv: list[str] = field(default_factory=list)
    in_decode: bool = False
    parked: tuple[list[str], bool, int] | None = None
    """KV entries, phase and blocks in host memory."""

    @property
    def length(self) -> int:
        """Tokens known: prompt and emitted ones."""
        return self.prompt + len(self.emitted)

    @property
    def lacking(self) -> int:
        """Known tokens without KV entry."""
        return self.length - len(self.kv)

    @property
    def done(self) -> bool:
        """All tokens emitted."""
        return len(self.emitted) == self.output


@dataclass
class Plan:
    """What one scheduling call decided."""

    entries: list[tuple[NaiveRequest, int]] = field(default_factory=list)
    evicted: list[NaiveRequest] = field(default_factory=list)
    swapped: list[NaiveRequest] = field(default_factory=list)
    restored: list[NaiveRequest] = field(default_factory=list)
    moved_blocks: int = 0

    def total(self) -> int:
        """Tokens in the batch."""
        return sum(tokens for _, tokens in self.entries)


@dataclass(frozen=True)
class NaiveRun:
    """Schedule, and blocks owned during each batch."""

    schedule: Schedule
    held_blocks: list[int]


class Device:
    """All blocks, the two queues, and the clock."""

    def __init__(self, instance: Instance) -> None:
        self.clock_ns = 0
        self.size = instance.limits.block_tokens
        self.blocks = [Block() for _ in range(instance.limits.kv_blocks)]
        self.running: list[NaiveRequest] = []
        self.waiting: list[NaiveRequest] = []
        self.parked: list[NaiveRequest] = []
        self.host_blocks = instance.limits.host_kv_blocks

    def free(self) -> list[Block]:
        """Blocks without an owner."""
        return [block for block in self.blocks if block.owner is None]

    def owned(self, request: NaiveRequest) -> list[Block]:
        """Blocks of a request."""
        return [block for block in self.blocks if block.owner is request]

    def lacks(self, request: NaiveRequest, tokens: int) -> int:
        """Blocks to add until the KV cache of so many tokens fits."""
        return max(0, ceil(Fraction(tokens, self.size)) - len(self.owned(request)))

    def give(self, request: NaiveRequest, count: int) -> None:
        """Hand out free blocks."""
        free = self.free()
        assert count <= len(free)
        for block in free[:count]:
            block.owner = request

    def drop(self, request: NaiveRequest) -> None:
        """Take every block and KV entry away."""
        for block in self.owned(request):
            block.owner = None
        request.kv.clear()
        request.in_decode = False

    def host_room(self) -> int:
        """Blocks in host memory that no request uses."""
        return self.host_blocks - sum(request.parked[2] for request in self.parked if request.parked)

    def park(self, request: NaiveRequest, plan: Plan) -> None:
        """Move the blocks of a running request to host memory."""
        blocks = len(self.owned(request))
        request.parked = (list(request.kv), request.in_decode, blocks)
        self.drop(request)
        self.parked.append(request)
        plan.swapped.append(request)
        plan.moved_blocks += blocks

    def unpark(self, request: NaiveRequest, plan: Plan) -> None:
        """Bring them back."""
        assert request.parked is not None
        kv, in_decode, blocks = request.parked
        self.parked.remove(request)
        self.give(request, blocks)
        request.kv, request.in_decode, request.parked = kv, in_decode, None
        plan.restored.append(request)
        plan.moved_blocks += blocks


class NaivePolicy(Protocol):
    """A policy of the slow kind."""

    def enter(self, device: Device, request: NaiveRequest) -> None:
        """Queue an arrival."""

    def plan(self, device: Device) -> Plan:
        """Decide the next batch."""


@dataclass(kw_only=True)
class NaiveVllm:
    """vLLM V1 with its arguments."""

    max_tokens: int
    max_seqs: int
    threshold: int = 0
    chunked: bool = True
    full_isl: bool = True
    watermark: float = 0.0
    priority: bool = False

    def importance(self, request: NaiveRequest) -> tuple[int, int]:
        """Larger is evicted first."""
        return (request.priority, request.arrival_ns)

    def enter(self, device: Device, request: NaiveRequest) -> None:
        """A new request goes to the end of the queue."""
        device.waiting.append(request)

    def plan(self, device: Device) -> Plan:
        """Running pass, then waiting pass unless a request was preempted."""
        plan = Plan()
        threshold = self.threshold if len(device.running) + len(device.waiting) > 1 else 0
        for request in list(device.running):
            if plan.total() >= self.max_tokens:
                break
            if request not in device.running:
                continue
            tokens = min(self.cut(request.lacking, threshold), self.max_tokens - plan.total())
            while device.lacks(request, len(request.kv) + tokens) > len(device.free()):
                self.preempt(device, plan)
                if request not in device.running:
                    break
            if request in device.running:
                device.give(request, device.lacks(request, len(request.kv) + tokens))
                plan.entries.append((request, tokens))
            elif not self.priority:
                break
        if not plan.evicted:
            self.admit(device, plan, threshold)
        return plan

    @staticmethod
    def cut(tokens: int, threshold: int) -> int:
        """Long chunks are cut to the threshold, if there is one."""
        return threshold if 0 < threshold < tokens else tokens

    def preempt(self, device: Device, plan: Plan) -> None:
        """Evict the last admitted, or the least important; it goes to the front of the queue."""
        victim = device.running[-1]
        if self.priority:
            worst = max(map(self.importance, device.running))
            victim = next(request for request in device.running if self.importance(request) == worst)
        device.running.remove(victim)
        plan.entries = [entry for entry in plan.entries if entry[0] is not victim]
        device.drop(victim)
        device.waiting.insert(0, victim)
        plan.evicted.append(victim)

    def admit(self, device: Device, plan: Plan, threshold: int) -> None:
        """Take the head of the queue while it fits."""
        if self.priority:
            device.waiting.sort(key=lambda request: (*self.importance(request), request.name))
        while device.waiting and plan.total() < self.max_tokens and len(device.running) < self.max_seqs:
            head = device.waiting[0]
            tokens, left = self.cut(head.length, threshold), self.max_tokens - plan.total()
            if tokens > left and not self.chunked:
                return
            tokens = min(tokens, left)
            kept_free = int(self.watermark * (len(device.blocks) + 1)) if device.running else 0
            for wanted in [head.length, tokens] if self.full_isl else [tokens]:
                if device.lacks(head, wanted) + kept_free > len(device.free()):
                    return
            device.give(head, device.lacks(head, tokens))
            device.running.append(device.waiting.pop(0))
            plan.entries.append((head, tokens))


@dataclass(kw_only=True)
class NaiveSarathi:
    """Sarathi-Serve with its arguments."""

    chunk: int
    max_seqs: int
    watermark: float = 0.01

    def enter(self, device: Device, request: NaiveRequest) -> None:
        """A new request goes to the end of the queue."""
        device.waiting.append(request)

    def plan(self, device: Device) -> Plan:
        """Decodes, started prefills, then the queue; prefills come first in the log."""
        plan = Plan()
        decodes, started = self.decodes_and_started(device, plan)
        used = len(decodes)
        for request in started:
            tokens = min(request.lacking, self.chunk - used)
            if tokens:
                plan.entries.append((request, tokens))
                used += tokens
        device.running = decodes + started
        if not plan.evicted:
            self.admit(device, plan, used)
        plan.entries += [(request, 1) for request in decodes]
        return plan

    def decodes_and_started(
        self, device: Device, plan: Plan
    ) -> tuple[list[NaiveRequest], list[NaiveRequest]]:
        """Serve every decode in arrival order, each of which wants to see a free block."""
        to_visit = sorted(device.running, key=lambda request: request.arrival_ns)
        decodes: list[NaiveRequest] = []
        started: list[NaiveRequest] = []
        while to_visit:
            request = to_visit.pop(0)
            if not request.in_decode:
                started.append(request)
                continue
            alive = True
            while alive and not device.free():
                victim = to_visit.pop() if to_visit else request
                alive = victim is not request
                device.drop(victim)
                device.waiting.insert(0, victim)
                plan.evicted.append(victim)
            if alive:
                device.give(request, device.lacks(request, len(request.kv) + 1))
                decodes.append(request)
        return decodes, started

    def admit(self, device: Device, plan: Plan, used: int) -> None:
        """Take the head of the queue while its whole prompt fits above the watermark."""
        while device.waiting and used < self.chunk and len(device.running) < self.max_seqs:
            head = device.waiting[0]
            need = device.lacks(head, head.length)
            # An empty device waives the watermark, else the request would wait for ever.
            kept_free = int(self.watermark * len(device.blocks)) if device.running else 0
            if len(device.free()) - need < kept_free:
                return
            device.give(head, need)
            device.running.append(device.waiting.pop(0))
            tokens = min(head.length, self.chunk - used)
            plan.entries.append((head, tokens))
            used += tokens


def naive_simulate(instance: Instance, policy: NaivePolicy, max_batches: int | None = None) -> NaiveRun:
    """Run a policy over an instance until everything is done.

    Raises
    ------
    TimeoutError
        If that takes more than a number of batches.
    """
    requests = [
        NaiveRequest(i, row.request_id, row.arrival_ns, row.prompt_tokens, row.output_tokens, row.priority)
        for i, row in enumerate(instance.requests)
    ]
    device, clock = Device(instance), 0
    entered: set[NaiveRequest] = set()
    batches: list[list[tuple[int, int]]] = []
    starts: list[int] = []
    ends: list[int] = []
    held: list[int] = []
    evicted: list[list[int]] = [[]]
    swapped: list[list[int]] = [[]]
    restored: list[list[int]] = [[]]
    moved_blocks = 0
    while not all(request.done for request in requests):
        if len(batches) == max_batches:
            raise TimeoutError(f"not done after {max_batches} batches")
        for request in sorted(requests, key=lambda request: request.arrival_ns):
            if request.arrival_ns <= clock and request not in entered:
                entered.add(request)
                policy.enter(device, request)
        device.clock_ns = clock
        plan = policy.plan(device)
        for column, them in ((evicted, plan.evicted), (swapped, plan.swapped), (restored, plan.restored)):
            column[-1] += [request.index for request in them]
        moved_blocks += plan.moved_blocks
        if not plan.entries:
            if not plan.evicted and not plan.restored:
                clock = min(request.arrival_ns for request in requests if request not in entered)
            continue
        batches.append([(request.index, tokens) for request, tokens in plan.entries])
        clock += ceil(instance.cost.swap_block * moved_blocks)
        starts.append(clock)
        clock += naive_batch_time_ns(instance.cost, plan)
        ends.append(clock)
        held.append(sum(block.owner is not None for block in device.blocks))
        moved_blocks = 0
        for column in (evicted, swapped, restored):
            column.append([])
        run_batch(device, plan)
    boundaries = {"swapped": swapped[:-1], "restored": restored[:-1]}
    return NaiveRun(Schedule.from_batches(batches, evicted[:-1], starts, ends, **boundaries), held)


def run_batch(device: Device, plan: Plan) -> None:
    """Process the tokens, emit, and free what is done."""
    for request, tokens in plan.entries:
        request.kv += ["entry"] * tokens
        request.in_decode = request.lacking == 0
        if request.in_decode:
            request.emitted.append("token")
        if request.done:
            device.drop(request)
            device.running.remove(request)


def naive_batch_time_ns(cost: CostModel, plan: Plan) -> int:
    """The cost formula of the problem, term by term, each rounded up once."""
    prefills = [(len(r.kv), c) for r, c in plan.entries if not r.in_decode]
    decodes = [(len(r.kv), c) for r, c in plan.entries if r.in_decode]
    generating = sum(len(r.kv) + c == r.length for r, c in plan.entries)
    attention = sum(position for n, c in prefills for position in range(n + 1, n + c + 1))
    terms = [
        cost.step,
        value(cost.tokens, plan.total()),
        value(cost.prefill_attention, attention),
        value(cost.prefill_tokens, sum(c for _, c in prefills)),
        value(cost.prefill_context, sum(n for n, _ in prefills)),
        value(cost.decode_context, sum(n for n, _ in decodes)),
        value(cost.head, generating),
        cost.prefill_request * len(prefills),
        cost.decode_request * len(decodes),
        cost.prefill_batch if prefills else Fraction(0),
        value(cost.mixed_context, sum(n for n, _ in decodes)) if prefills else Fraction(0),
        cost.mixed_request * len(decodes) if prefills else Fraction(0),
        cost.decode_batch if decodes else Fraction(0),
    ]
    return sum(ceil(term) for term in terms)


def value(function: PiecewiseLinear, x: int) -> Fraction:
    """A piecewise-linear function, segment by segment."""
    total = Fraction(0)
    ends = [*function.knots[1:], max(x, function.knots[-1])]
    for start, end, slope in zip(function.knots, ends, function.slopes, strict=True):
        total += slope * max(0, min(x, end) - start)
    return total
