"""What a schedule with prefix cache hits needs, found by writing every token out and looking everywhere."""

from __future__ import annotations

from math import ceil

from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule
from tests.oracles.naive_vllm import Token, text_of

Text = tuple[Token, ...]


def texts(instance: Instance) -> list[list[Token]]:
    """All tokens of every request, generated ones included."""
    written = []
    for i, row in enumerate(instance.requests):
        tokens = text_of(row, i)
        tokens += [(f"own {i}", p) for p in range(row.prompt_tokens, row.prompt_tokens + row.output_tokens)]
        written.append(tokens)
    return written


class NaiveBlocks:
    """Batch by batch: texts of the full blocks that are computed, and of all blocks that are held.

    Attributes
    ----------
    has_unknown_hit
        Some request starts with text that no request has computed by then.
    occupied
        Fewest blocks in every batch.
    """

    def __init__(self, instance: Instance, schedule: Schedule) -> None:
        self.size, self.written = instance.limits.block_tokens, texts(instance)
        kv = [0] * len(instance.requests)
        generated = [0] * len(instance.requests)
        computed: set[Text] = set()
        held: list[set[Text]] = []
        wanted: list[set[Text]] = []
        self.has_unknown_hit = False
        for j in range(schedule.num_batches):
            for i in schedule.evicted_request[schedule.evicted_batch == j].tolist():
                kv[i] = 0
            here = schedule.hit_batch == j
            hits = list(
                zip(schedule.hit_request[here].tolist(), schedule.hit_tokens[here].tolist(), strict=True)
            )
            for i, tokens in hits:
                kv[i] = tokens
            entries = range(int(schedule.first_entry[j]), int(schedule.first_entry[j + 1]))
            begun: set[Text] = set()
            for e in entries:
                i, tokens = int(schedule.request[e]), int(schedule.tokens[e])
                begun |= self.blocks(i, kv[i] + tokens) - self.blocks(i, kv[i])
                ends = range(self.size, len(self.written[i]) + 1, self.size)
                computed |= {tuple(self.written[i][:end]) for end in ends if kv[i] < end <= kv[i] + tokens}
                kv[i] += tokens
            wanted.append({text for i, tokens in hits for text in self.blocks(i, tokens)})
            self.has_unknown_hit |= not wanted[-1] <= computed
            # What a request begins to compute in this batch need not have been kept for it.
            wanted[-1] -= begun
            held.append({text for i, tokens in enumerate(kv) for text in self.blocks(i, tokens)})
            for e in entries:
                i = int(schedule.request[e])
                generated[i] += kv[i] == instance.requests[i].prompt_tokens + generated[i]
                if generated[i] == instance.requests[i].output_tokens:
                    kv[i] = 0
        self.occupied = [len(held[j] | self.kept(held, wanted, j)) for j in range(schedule.num_batches)]

    def blocks(self, request: int, tokens: int) -> set[Text]:
        """Texts of a request's blocks, the last perhaps not full yet."""
        ends = [self.size * (k + 1) for k in range(ceil(tokens / self.size))]
        return {tuple((self.written[request] + [(f"pad {request}", 0)] * self.size)[:end]) for end in ends}

    @staticmethod
    def kept(held: list[set[Text]], wanted: list[set[Text]], j: int) -> set[Text]:
        """Texts that no request holds in batch j, but that were there before and are found again later."""
        kept = set()
        for later in range(j + 1, len(held)):
            for text in wanted[later]:
                last_held = [k for k in range(later) if text in held[k]]
                if last_held and last_held[-1] <= j:
                    kept.add(text)
        return kept
