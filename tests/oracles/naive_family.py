"""Slow twins of vLLM V0 and of the sarathi-serve schedulers; run by `naive_simulator.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from tests.oracles.naive_simulator import Device, NaiveRequest, Plan


class RefusedError(Exception):
    """A prompt that the scheduler can never take, or a victim that host memory has no room for."""


def whole(request: NaiveRequest) -> int:
    """Reserve the known tokens."""
    return request.length


@dataclass(kw_only=True)
class NaiveFamily:
    """What the twins have in common; by default whole prompts, in pieces of `max_tokens` if they must."""

    max_tokens: int
    max_seqs: int
    watermark: float = 0.0
    longest_prompt: int = 10**9
    reserve: Callable[[NaiveRequest], int] = whole

    def enter(self, device: Device, request: NaiveRequest) -> None:
        """A new request goes to the end of the queue."""
        device.waiting.append(request)

    def cut(self, request: NaiveRequest, used: int) -> int:
        """Tokens of a prefill that go into a batch."""
        if request.kv:
            return min(request.lacking, self.max_tokens - used)
        if request.length > self.longest_prompt:
            raise RefusedError
        if request.length > self.max_tokens:
            return self.max_tokens if used == 0 else 0
        return request.length if used + request.length <= self.max_tokens else 0

    def go_on(self, plan: Plan, started: list[NaiveRequest], used: int) -> None:
        """Chunks of started prefills."""
        for request in started:
            tokens = self.cut(request, used + plan.total())
            if tokens > 0:
                plan.entries.append((request, tokens))

    def admit(self, device: Device, plan: Plan, used: int, allowed: Callable[[Device], bool]) -> None:
        """Take the head of the queue while it fits; those admitted run from the next batch on."""
        new: list[NaiveRequest] = []
        while device.waiting and allowed(device) and len(device.running) + len(new) < self.max_seqs:
            head = device.waiting[0]
            tokens = self.cut(head, used + plan.total())
            kept_free = int(self.watermark * len(device.blocks)) if device.running or new else 0
            need = min(device.lacks(head, self.reserve(head)), len(device.blocks))
            if tokens <= 0 or len(device.free()) - need < kept_free:
                break
            device.give(head, need)
            new.append(device.waiting.pop(0))
            plan.entries.append((head, tokens))
        device.running += new

    def keep_decodes(self, device: Device, plan: Plan, order: list[NaiveRequest]) -> list[NaiveRequest]:
        """Each decode wants to see a free block; who was not visited yet is evicted from the end."""
        visited: list[NaiveRequest] = []
        kept: list[NaiveRequest] = []
        for request in order:
            if request not in device.running:
                continue
            visited.append(request)
            if not request.in_decode:
                continue
            while not device.free() and request in device.running:
                self.evict(device, plan, [*(r for r in order if r in device.running and r not in visited)])
                if len(device.free()) == 0:
                    self.evict(device, plan, [request])
            if request in device.running:
                device.give(request, device.lacks(request, len(request.kv) + 1))
                kept.append(request)
        return kept

    def evict(self, device: Device, plan: Plan, candidates: list[NaiveRequest]) -> None:
        """Evict the last one of the candidates, if there is any, to the front of the queue."""
        for victim in candidates[-1:]:
            device.running.remove(victim)
            device.drop(victim)
            device.waiting.insert(0, victim)
            plan.evicted.append(victim)

    def prefill_batch(self, device: Device, plan: Plan, order: list[NaiveRequest]) -> None:
        """Prefills and nothing else."""
        self.go_on(plan, [request for request in order if not request.in_decode], 0)
        self.admit(device, plan, 0, lambda device: True)

    def decode_batch(self, device: Device, plan: Plan, order: list[NaiveRequest]) -> None:
        """Decodes and nothing else."""
        kept = self.keep_decodes(device, plan, order)
        device.running = kept + [r for r in order if r in device.running and r not in kept]
        plan.entries = [(request, 1) for request in kept]


def by_arrival(device: Device) -> list[NaiveRequest]:
    """Running requests, earliest first."""
    return sorted(device.running, key=lambda request: request.arrival_ns)


@dataclass(kw_only=True)
class NaiveSarathiVllm(NaiveFamily):
    """Prompts first, decodes if there is none."""

    def plan(self, device: Device) -> Plan:
        """One batch of either kind."""
        plan = Plan()
        self.prefill_batch(device, plan, by_arrival(device))
        if not plan.entries:
            self.decode_batch(device, plan, by_arrival(device))
        return plan


@dataclass(kw_only=True)
class NaiveSimpleChunking(NaiveFamily):
    """Turns of prefill and of decode."""

    turn: str = "prefill"

    def cut(self, request: NaiveRequest, used: int) -> int:
        """What the chunk leaves."""
        return min(request.lacking, self.max_tokens - used)

    def plan(self, device: Device) -> Plan:
        """The turn that is due; the other at once if it is empty."""
        plan = Plan()
        for _ in range(2):
            if self.turn == "prefill":
                started = [request for request in by_arrival(device) if not request.in_decode]
                self.go_on(plan, started, 0)
                if not plan.entries:
                    self.admit(device, plan, 0, lambda device: True)
                self.turn = "decode"
            else:
                self.decode_batch(device, plan, by_arrival(device))
                self.turn = "prefill"
            if plan.entries or plan.evicted:
                break
        return plan


@dataclass(kw_only=True)
class NaiveReserving(NaiveFamily):
    """Orca, or FasterTransformer if only an empty device admits."""

    only_when_empty: bool = False

    def plan(self, device: Device) -> Plan:
        """All decodes, and prompts in front of them."""
        plan = Plan()
        decodes = [request for request in device.running if request.in_decode]
        self.go_on(plan, [request for request in device.running if not request.in_decode], len(decodes))
        device.running.sort(key=lambda request: not request.in_decode)
        self.admit(device, plan, len(decodes), lambda device: not (self.only_when_empty and device.running))
        plan.entries += [(request, 1) for request in decodes]
        return plan


@dataclass(kw_only=True)
class NaiveDynamicSarathi(NaiveFamily):
    """Sarathi with the chunk of the stage that a prompt has reached."""

    stage_tokens: int
    sizes: list[int]

    def cut(self, request: NaiveRequest, used: int) -> int:
        """What the stage's chunk leaves; the last stage has no end."""
        stages = [*self.sizes, *[self.sizes[-1]] * len(request.kv)]
        return min(request.lacking, stages[len(request.kv) // self.stage_tokens] - used)

    def plan(self, device: Device) -> Plan:
        """Decodes take their token first, prefills stand first."""
        plan = Plan()
        order = by_arrival(device)
        decodes = self.keep_decodes(device, plan, order)
        started = [r for r in order if r in device.running and r not in decodes]
        self.go_on(plan, started, len(decodes))
        device.running = decodes + started
        if not plan.evicted:
            self.admit(device, plan, len(decodes), lambda device: True)
        plan.entries += [(request, 1) for request in decodes]
        return plan


@dataclass(kw_only=True)
class NaiveV0Swap(NaiveFamily):
    """What both modes of vLLM V0 do with the swapped queue."""

    swap: bool = False

    def evict(self, device: Device, plan: Plan, candidates: list[NaiveRequest]) -> None:
        """Evict the last one of the candidates to the end of the swapped queue."""
        if not self.swap:
            super().evict(device, plan, candidates)
            return
        for victim in candidates[-1:]:
            if ceil(Fraction(victim.length, device.size)) > device.host_room():
                raise RefusedError
            device.running.remove(victim)
            plan.evicted.append(victim)
            device.park(victim, plan)

    def returns(self, device: Device, num_running: int) -> NaiveRequest | None:
        """The head of the swapped queue, if blocks for all its tokens are there above the watermark."""
        kept_free = int(self.watermark * len(device.blocks)) if num_running else 0
        for head in device.parked[:1]:
            need = ceil(Fraction(head.length, device.size))
            if num_running < self.max_seqs and len(device.free()) - need >= kept_free:
                return head
        return None


@dataclass(kw_only=True)
class NaiveV0(NaiveV0Swap):
    """vLLM V0 by default: prompts first, with delay and priority."""

    delay_factor: float = 0.0
    priority: bool = False
    calls: list[tuple[int, bool]] = field(default_factory=list)
    """Clock of every call, and whether it scheduled prompts."""

    def latency_ns(self) -> int:
        """From the last call with prompts to the one that came next."""
        for (start, prompts), (end, _) in zip(self.calls[-2::-1], self.calls[:0:-1], strict=True):
            if prompts:
                return end - start
        return 0

    def has_delay_passed(self, device: Device) -> bool:
        """The earliest waiting request has waited for longer than the delay, or none runs."""
        waited = device.clock_ns - min(request.arrival_ns for request in device.waiting)
        passed = waited > self.delay_factor * self.latency_ns()
        return passed or not device.running or self.delay_factor == 0

    def plan(self, device: Device) -> Plan:
        """Prompts; else the decodes that priority leaves."""
        plan = Plan()
        self.calls.append((device.clock_ns, False))
        self.go_on(plan, [request for request in device.running if not request.in_decode], 0)
        if not device.parked:
            self.admit(device, plan, 0, self.has_delay_passed)
        self.calls[-1] = (device.clock_ns, bool(plan.entries))
        if not plan.entries:
            if self.priority:
                self.prefer_important(device, plan)
            forced = len(plan.evicted)
            self.decode_batch(device, plan, list(device.running))
            while len(plan.evicted) == forced and (head := self.returns(device, len(device.running))):
                device.unpark(head, plan)
                device.running.append(head)
                if head.in_decode:
                    device.give(head, device.lacks(head, head.length))
                    plan.entries.append((head, 1))
        return plan

    def prefer_important(self, device: Device, plan: Plan) -> None:
        """Evict who is less important than the head of the queue while that cannot be admitted."""

        def key(request: NaiveRequest) -> tuple[int, int]:
            return (request.priority, request.arrival_ns)

        device.running.sort(key=key)
        head = device.waiting[0] if device.waiting else None
        while head and device.running and key(device.running[-1]) > key(head):
            margin = len(device.free()) - device.lacks(head, head.length)
            if margin >= int(self.watermark * len(device.blocks)) and len(device.running) < self.max_seqs:
                break
            NaiveFamily.evict(self, device, plan, device.running)
        device.waiting.sort(key=key)


@dataclass(kw_only=True)
class NaiveV0Chunked(NaiveV0Swap):
    """vLLM V0 with chunked prefill, one or several prefills at a time."""

    max_partial: int = 1
    max_long: int = 1
    long_tokens: int = 0

    def is_long(self, request: NaiveRequest) -> bool:
        """A long prefill, which counts if several share the budget."""
        return self.max_partial > 1 and request.lacking > self.long_tokens

    def share(self, device: Device) -> int:
        """Tokens of one prefill: the budget over the prefills there are or may be."""
        running = [request for request in device.running if not request.in_decode]
        count, long = len(running), sum(map(self.is_long, running))
        for request in device.waiting:
            if count < self.max_partial and not (self.is_long(request) and long >= self.max_long):
                long += self.is_long(request)
                count += 1
        return max(1, self.max_tokens // max(1, min(count, self.max_partial)))

    def plan(self, device: Device) -> Plan:
        """Running requests in their order, then new ones, which stand first."""
        plan, share = Plan(), self.share(device)
        num_long = sum(self.is_long(request) for request in device.running if not request.in_decode)
        order, queue = list(device.running), list(device.waiting)
        decodes: list[NaiveRequest] = []
        chunks: list[tuple[NaiveRequest, int]] = []
        visited: list[NaiveRequest] = []
        for request in order:
            left = self.max_tokens - len(decodes) - sum(tokens for _, tokens in chunks)
            if request not in device.running or left == 0:
                continue
            visited.append(request)
            wants_block = request.in_decode or request.length % device.size != 0
            while wants_block and not device.free() and request in device.running:
                later = [r for r in order if r in device.running and r not in visited]
                if not request.in_decode and not later and not decodes and not chunks:
                    break
                self.evict(device, plan, later or [request])
            if request in device.running and not request.in_decode:
                chunks.append((request, min(request.lacking, left, share)))
            elif request in device.running:
                device.give(request, device.lacks(request, len(request.kv) + 1))
                decodes.append(request)
        unvisited = [r for r in order if r in device.running and r not in visited]
        used = len(decodes) + sum(tokens for _, tokens in chunks)
        back: list[tuple[NaiveRequest, int]] = []
        device.running = [r for r in order if r in device.running]
        while not plan.evicted and (head := self.returns(device, len(device.running))):
            assert head.parked is not None
            lacking, left = head.length - len(head.parked[0]), self.max_tokens - used
            tokens = self.max_tokens if lacking > self.max_tokens else lacking
            if tokens > left:
                break
            device.unpark(head, plan)
            device.running.append(head)
            device.give(head, device.lacks(head, len(head.kv) + tokens))
            back.append((head, tokens))
            used += tokens
        new = self.new_prefills(device, queue, used, share, num_long)
        done = [request for request, tokens in chunks if tokens == request.lacking]
        rest = [request for request, tokens in chunks if tokens < request.lacking]
        back_decodes = [(request, tokens) for request, tokens in back if request.in_decode]
        back_prefills = [(request, tokens) for request, tokens in back if not request.in_decode]
        returned = [request for request, _ in back_decodes + back_prefills]
        started = [*decodes, *done, *rest, *(request for request, _ in new)]
        device.running = [*unvisited, *returned, *started]
        device.waiting = [r for r in device.waiting if r not in device.running]
        plan.entries = [*new, *chunks, *back_prefills, *((r, 1) for r in decodes), *back_decodes]
        return plan

    def new_prefills(
        self, device: Device, queue: list[NaiveRequest], used: int, share: int, num_long: int
    ) -> list[tuple[NaiveRequest, int]]:
        """Those of the queue, as it was before this step, that start now."""
        new: list[tuple[NaiveRequest, int]] = []
        for request in queue:
            if self.is_long(request) and num_long >= self.max_long:
                continue
            tokens = min(request.length, self.max_tokens - used, share)
            need = device.lacks(request, request.length)
            kept_free = int(self.watermark * len(device.blocks)) if device.running or new else 0
            is_full = len(device.running) + len(new) >= self.max_seqs
            if not tokens or is_full or len(device.free()) - need < kept_free:
                break
            device.give(request, need)
            new.append((request, tokens))
            used += tokens
            num_long += self.is_long(request)
        return new
