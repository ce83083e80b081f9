"""A slow vLLM V1 with every switch: blocks and tokens are objects in lists, everything is found by looking.

Follows the written rules of the engine word by word, with its placeholders and its block queue, and shares
nothing with the package but the instance. A batch takes 7 ns, 1 ns a token and 1 ns a token computed before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from cspsched.problem.instance import Instance
from cspsched.problem.request import Request

Token = tuple[str, int]
STEP_NS = 7


@dataclass(eq=False)
class Block:
    """A KV block: how many hold it, and the tokens up to its end if it is in the cache."""

    holders: int = 0
    text: tuple[Token, ...] | None = None


@dataclass(eq=False)
class Sequence:
    """A request as the engine sees it."""

    index: int
    row: Request
    tokens: list[Token]
    arrival: int
    computed: int = 0
    placeholders: int = 0
    generated: int = 0
    blocks: list[Block] = field(default_factory=list)
    num_entered: int = 0
    is_prefill_chunk: bool = False

    @property
    def importance(self) -> tuple[int, int]:
        """Larger is preempted first."""
        return (self.row.priority, self.arrival)


@dataclass
class Decision:
    """What a call of schedule decided, and when it ran."""

    entries: list[tuple[Sequence, int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    hits: list[tuple[int, int]] = field(default_factory=list)
    used: int = 0
    start: int = 0
    end: int = 0

    def row(self) -> tuple[object, ...]:
        """What is compared."""
        entries = [(sequence.index, tokens, before) for sequence, tokens, before in self.entries]
        return (entries, [one.index for one in self.preempted], self.hits, self.used, self.start, self.end)


def text_of(row: Request, index: int) -> list[Token]:
    """Tokens of a prompt."""
    tokens = [(stream, offset) for stream, count in row.prefix for offset in range(count)]
    return tokens + [(f"own {index}", p) for p in range(len(tokens), row.prompt_tokens)]


@dataclass(kw_only=True)
class NaiveVllmV1:
    """The engine's arguments, as it calls them, and its state."""

    instance: Instance
    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool = True
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    policy: str = "fcfs"
    async_scheduling: bool = False
    enable_prefix_caching: bool = False
    prefill_schedule_interval: int = 1
    num_lookahead_tokens: int = 0

    def __post_init__(self) -> None:
        self.size = self.instance.limits.block_tokens
        self.longest = self.instance.limits.max_model_len or 10**9
        self.all_blocks = [Block() for _ in range(self.instance.limits.kv_blocks)]
        self.queue = list(self.all_blocks)
        self.entered: list[Block] = []
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.steps, self.last_prefill = 0, -self.prefill_schedule_interval
        self.capacity_bound = False

    def used(self) -> int:
        """Blocks that a sequence holds."""
        return sum(block.holders > 0 for block in self.all_blocks)

    def take(self, sequence: Sequence, count: int) -> None:
        """Blocks from the front of the queue; they forget."""
        for _ in range(count):
            block = self.queue.pop(0)
            if block.text is not None:
                self.entered.remove(block)
                block.text = None
            block.holders = 1
            sequence.blocks.append(block)

    def free(self, sequence: Sequence) -> None:
        """Last block first: those in the cache to the end of the queue, the others to its front."""
        for block in reversed(sequence.blocks):
            block.holders -= 1
            if block.holders == 0 and block.text is not None:
                self.queue.append(block)
            elif block.holders == 0:
                self.queue.insert(0, block)
        sequence.blocks, sequence.num_entered = [], 0

    def enter(self, sequence: Sequence, count: int) -> None:
        """Put full blocks of the first tokens into the cache."""
        if not self.enable_prefix_caching:
            return
        for k in range(sequence.num_entered, count // self.size):
            sequence.blocks[k].text = tuple(sequence.tokens[: (k + 1) * self.size])
            self.entered.append(sequence.blocks[k])
            sequence.num_entered = k + 1

    def lookup(self, sequence: Sequence) -> list[Block]:
        """The longest run of blocks in the cache, but for the last token."""
        found: list[Block] = []
        while self.enable_prefix_caching and len(found) < (len(sequence.tokens) - 1) // self.size:
            text = tuple(sequence.tokens[: (len(found) + 1) * self.size])
            block = next((block for block in self.entered if block.text == text), None)
            if block is None:
                break
            found.append(block)
        return found

    def schedule(self) -> Decision:
        """One call of the scheduler."""
        decision = Decision()
        eligible = len(self.running) + len(self.waiting)
        threshold = self.long_prefill_token_threshold if eligible > 1 else 0
        if self.long_prefill_token_threshold_adaptive and threshold:
            threshold = max(threshold, self.max_num_batched_tokens // eligible)
        defer = (
            self.prefill_schedule_interval > 1
            and not self.capacity_bound
            and self.steps + 1 - self.last_prefill < self.prefill_schedule_interval
            and any(not sequence.is_prefill_chunk for sequence in self.running)
        )
        self.pass_running(decision, threshold, defer=defer)
        has_prefill = any(sequence.is_prefill_chunk for sequence, _, _ in decision.entries)
        if not decision.preempted:
            has_prefill |= self.pass_waiting(decision, threshold, defer=defer)
            if not defer:
                self.capacity_bound = bool(self.waiting)
        for sequence, tokens, _ in decision.entries:
            sequence.computed += tokens
            known = len(sequence.tokens) + sequence.placeholders
            sequence.is_prefill_chunk = sequence.computed < known
            if self.async_scheduling and not sequence.is_prefill_chunk:
                sequence.placeholders += 1
        if decision.entries:
            self.steps += 1
            if has_prefill:
                self.last_prefill = self.steps
        decision.used = self.used()
        return decision

    def budget_left(self, decision: Decision) -> int:
        """Tokens that still fit into the step."""
        return self.max_num_batched_tokens - sum(tokens for _, tokens, _ in decision.entries)

    def pass_running(self, decision: Decision, threshold: int, *, defer: bool) -> None:
        """Rule 3."""
        index = 0
        while index < len(self.running) and self.budget_left(decision) > 0:
            sequence = self.running[index]
            final = sequence.row.prompt_tokens + sequence.row.output_tokens
            if sequence.placeholders > 0 and sequence.computed + 2 - sequence.placeholders >= final:
                index += 1
                continue
            if defer and sequence.is_prefill_chunk:
                index += 1
                continue
            tokens = len(sequence.tokens) + sequence.placeholders - sequence.computed
            if 0 < threshold < tokens:
                tokens = threshold
            tokens = min(tokens, self.budget_left(decision))
            if tokens == 0:
                index += 1
                continue
            wanted = min(sequence.computed + tokens + self.num_lookahead_tokens, self.longest)
            need = ceil(wanted / self.size) - len(sequence.blocks)
            gone = False
            while need > len(self.queue) and not gone:
                victim = self.pick_victim()
                if self.running.index(victim) < index:
                    index -= 1
                self.running.remove(victim)
                decision.entries = [entry for entry in decision.entries if entry[0] is not victim]
                self.free(victim)
                victim.computed = 0
                victim.is_prefill_chunk = False
                self.waiting.insert(0, victim)
                decision.preempted.append(victim)
                gone = victim is sequence
            if gone and self.policy == "fcfs":
                break
            if gone:
                continue
            self.take(sequence, max(need, 0))
            self.enter(sequence, min(sequence.computed + tokens, len(sequence.tokens)))
            decision.entries.append((sequence, tokens, sequence.computed))
            index += 1

    def pick_victim(self) -> Sequence:
        """Last admitted, or the first of the largest (priority, arrival)."""
        if self.policy == "fcfs":
            return self.running[-1]
        worst = max(sequence.importance for sequence in self.running)
        return next(sequence for sequence in self.running if sequence.importance == worst)

    def pass_waiting(self, decision: Decision, threshold: int, *, defer: bool) -> bool:
        """Rule 4; returns whether a prefill was admitted."""
        most = self.max_num_active_seqs or self.max_num_seqs
        has_prefill = False
        if self.policy == "priority":
            self.waiting.sort(key=lambda one: (*one.importance, one.row.request_id))
        while self.budget_left(decision) > 0 and len(self.running) < most and self.waiting:
            sequence = self.waiting[0]
            assert sequence.placeholders == 0
            hits = self.lookup(sequence)
            start = len(hits) * self.size
            if defer and start < len(sequence.tokens) - 1:
                break
            tokens = len(sequence.tokens) - start
            if 0 < threshold < tokens:
                tokens = threshold
            if not self.enable_chunked_prefill and tokens > self.budget_left(decision):
                break
            tokens = min(tokens, self.budget_left(decision))
            unheld = sum(block.holders == 0 for block in hits)
            kept = int(self.watermark * (len(self.all_blocks) + 1)) if self.running else 0
            whole = ceil(min(len(sequence.tokens), self.longest) / self.size) - len(hits)
            if self.scheduler_reserve_full_isl and whole + unheld + kept > len(self.queue):
                break
            wanted = min(start + tokens + self.num_lookahead_tokens, self.longest)
            need = ceil(wanted / self.size) - len(hits)
            if need + unheld + kept > len(self.queue):
                break
            for block in hits:
                if block.holders == 0:
                    self.queue.remove(block)
                block.holders += 1
            sequence.blocks, sequence.num_entered = list(hits), len(hits)
            self.take(sequence, max(need, 0))
            self.enter(sequence, min(start + tokens, len(sequence.tokens)))
            sequence.computed = start
            if hits:
                decision.hits.append((sequence.index, start))
            self.running.append(self.waiting.pop(0))
            decision.entries.append((sequence, tokens, start))
            has_prefill |= len(sequence.tokens) - start > 1
        return has_prefill

    def update(self, decision: Decision, chunks: set[int]) -> list[Sequence]:
        """Give every request that is not a prefill chunk its token; returns who is finished."""
        finished = []
        for sequence, _, _ in decision.entries:
            if sequence.index in chunks:
                continue
            if self.async_scheduling:
                sequence.placeholders -= 1
            sequence.tokens.append((f"own {sequence.index}", len(sequence.tokens)))
            sequence.generated += 1
            is_running = sequence in self.running
            if self.async_scheduling and is_running:
                self.enter(sequence, sequence.computed - sequence.placeholders)
            if sequence.generated == sequence.row.output_tokens:
                self.free(sequence)
                (self.running if is_running else self.waiting).remove(sequence)
                finished.append(sequence)
        return finished

    def run(self, max_steps: int = 100_000) -> list[Decision]:
        """All steps with a batch; what an empty one preempted is told with the next.

        Raises
        ------
        TimeoutError
            If it goes on for ever or stops with requests left.
        """
        rows = self.instance.requests
        to_come = sorted(range(len(rows)), key=lambda i: rows[i].arrival_ns)
        flight: list[tuple[Decision, set[int]]] = []
        done: list[Decision] = []
        clock = busy = num_finished = 0
        carried: list[Sequence] = []
        for _ in range(max_steps):
            if num_finished == len(rows):
                return done
            while to_come and rows[to_come[0]].arrival_ns <= clock:
                i = to_come.pop(0)
                self.waiting.append(Sequence(i, rows[i], text_of(rows[i], i), rows[i].arrival_ns))
            decision = self.schedule()
            carried += decision.preempted
            if decision.entries:
                decision.preempted, carried = carried, []
                context = sum(before for _, _, before in decision.entries)
                tokens = sum(tokens for _, tokens, _ in decision.entries)
                decision.start = max(clock, busy)
                decision.end = busy = decision.start + STEP_NS + tokens + context
                chunks = {one.index for one, _, _ in decision.entries if one.is_prefill_chunk}
                flight.append((decision, chunks))
                done.append(decision)
            if flight and (not decision.entries or len(flight) == 1 + self.async_scheduling):
                ended, chunks = flight.pop(0)
                clock = ended.end
                num_finished += len(self.update(ended, chunks))
            elif not flight and not decision.preempted:
                if not to_come:
                    break
                clock = rows[to_come[0]].arrival_ns
        raise TimeoutError("the naive engine does not come to an end")
