"""A second referee: problem.md section 2 read literally, one dict and one loop at a time.

Shares the values (instance, schedule) with the package and nothing else: no history, no referee, not even the
evaluation of the cost model, which is done here in fractions.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

from cspsched.problem.cost import CostModel, PiecewiseLinear
from cspsched.problem.instance import Instance
from cspsched.problem.schedule import Schedule

Chunk = tuple[int, int]
"""KV entries carried, tokens processed."""


def height(function: PiecewiseLinear, x: int) -> Fraction:
    """Exact value of a piecewise-linear term: the slopes times the lengths that they cover up to x."""
    ends = [*function.knots[1:], max(x, function.knots[-1])]
    value = Fraction(0)
    for begin, end, slope in zip(function.knots, ends, function.slopes, strict=True):
        value += slope * max(0, min(end, x) - begin)
    return value


def naive_duration(cost: CostModel, chunks: list[Chunk], contexts: list[int], generating: int) -> int:
    """Duration of a batch of prefill chunks and of decodes that read so many KV entries (section 4)."""
    terms = [
        Fraction(cost.step),
        height(cost.tokens, sum(c for _, c in chunks) + len(contexts)),
        # W(n + c) - W(n): the k-th token of a prompt looks at k tokens.
        height(cost.prefill_attention, sum(sum(range(n + 1, n + c + 1)) for n, c in chunks)),
        height(cost.prefill_tokens, sum(c for _, c in chunks)),
        height(cost.prefill_context, sum(n for n, _ in chunks)),
        height(cost.decode_context, sum(contexts)),
        height(cost.head, generating),
        cost.prefill_request * len(chunks),
        cost.decode_request * len(contexts),
        cost.prefill_batch if chunks else Fraction(0),
        height(cost.mixed_context, sum(contexts)) if chunks else Fraction(0),
        cost.mixed_request * len(contexts) if chunks else Fraction(0),
        cost.decode_batch if contexts else Fraction(0),
    ]
    return sum(ceil(term) for term in terms)


def broken_rules(instance: Instance, schedule: Schedule) -> set[str]:
    """Names of the rules that a schedule breaks, in the referee's words; empty if it is feasible."""
    batches = _batches(schedule)
    evictions = list(zip(schedule.evicted_batch.tolist(), schedule.evicted_request.tolist(), strict=True))
    to_host = schedule.evicted_to_host.tolist()
    returns = list(zip(schedule.restored_batch.tolist(), schedule.restored_request.tolist(), strict=True))
    if _is_malformed(instance, batches, evictions) or _is_malformed(instance, batches, returns):
        return {"form"}
    broken: set[str] = set()
    allowed = instance.switches.preemption.value
    on_host: dict[int, tuple[int, bool]] = {}
    indices = range(len(instance.requests))
    memory = dict.fromkeys(indices, 0)
    generated = dict.fromkeys(indices, 0)
    decoding = dict.fromkeys(indices, False)
    finished = dict.fromkeys(indices, False)
    clock = 0
    for j, entries in enumerate(batches):
        moved = 0
        for (batch, i), swaps in zip(evictions, to_host, strict=True):
            if batch == j:
                if allowed not in ("swap" if swaps else "recompute", "either"):
                    broken.add("preemption")
                if memory[i] == 0 or finished[i]:
                    broken.add("preemption")
                if swaps:
                    on_host[i] = (memory[i], decoding[i])
                    moved += _block_count(instance, memory[i])
                memory[i] = 0
                decoding[i] = False
        for batch, i in returns:
            if batch == j:
                if on_host.get(i, (0, False))[0] == 0:
                    broken.add("swap")
                memory[i], decoding[i] = on_host.pop(i, (0, False))
                moved += _block_count(instance, memory[i])
        if sum(_block_count(instance, held) for held, _ in on_host.values()) > instance.limits.host_kv_blocks:
            broken.add("swap")
        residents = {i for i in indices if memory[i] > 0}
        chunks, contexts, generating, leaving = [], [], 0, []
        for i, tokens, stated in entries:
            request = instance.requests[i]
            known = request.prompt_tokens + generated[i]
            if finished[i]:
                broken.add("completion")
            if on_host.get(i, (0, False))[0]:
                broken.add("swap")
            if memory[i] + tokens > known:
                broken.add("known tokens")
            if decoding[i]:
                contexts.append(memory[i])
            else:
                chunks.append((memory[i], tokens))
            memory[i] += tokens
            if stated != memory[i]:
                broken.add("memory")
            decoding[i] = memory[i] == known
            if memory[i] == known:
                generating += 1
                generated[i] += 1
                if generated[i] == request.output_tokens:
                    leaving.append(i)
            elif not instance.switches.chunked_prefill:
                broken.add("chunked prefill")
            if int(schedule.start_ns[j]) < request.arrival_ns:
                broken.add("time")
        if _blocks(instance, memory) > instance.limits.kv_blocks:
            broken.add("capacity")
        if sum(tokens for _, tokens, _ in entries) > instance.limits.max_batch_tokens:
            broken.add("budget")
        if len(entries) > instance.limits.max_batch_requests:
            broken.add("budget")
        if not instance.switches.hybrid_batches and chunks and contexts:
            broken.add("hybrid batches")
        if not instance.switches.holding and residents - {i for i, _, _ in entries}:
            broken.add("holding")
        start, end = int(schedule.start_ns[j]), int(schedule.end_ns[j])
        # Nothing else happens while KV blocks move.
        earliest = clock + ceil(instance.cost.swap_block * moved)
        if start < earliest or end - start != naive_duration(instance.cost, chunks, contexts, generating):
            broken.add("time")
        clock = end
        for i in leaving:
            finished[i] = True
            memory[i] = 0
    if any(generated[i] != instance.requests[i].output_tokens for i in indices):
        broken.add("completion")
    return broken


def _batches(schedule: Schedule) -> list[list[tuple[int, int, int]]]:
    rows = list(
        zip(schedule.request.tolist(), schedule.tokens.tolist(), schedule.kv_tokens.tolist(), strict=True)
    )
    offsets = schedule.first_entry.tolist()
    return [rows[begin:end] for begin, end in pairwise(offsets)]


def _is_malformed(
    instance: Instance, batches: list[list[tuple[int, int, int]]], evictions: list[tuple[int, int]]
) -> bool:
    indices = range(len(instance.requests))
    if len(set(evictions)) < len(evictions):
        return True
    if any(j not in range(len(batches)) or i not in indices for j, i in evictions):
        return True
    for entries in batches:
        names = [i for i, _, _ in entries]
        if not names or len(set(names)) < len(names):
            return True
        if any(i not in indices or tokens < 1 for i, tokens, _ in entries):
            return True
    return False


def _block_count(instance: Instance, tokens: int) -> int:
    return ceil(Fraction(tokens, instance.limits.block_tokens))


def _blocks(instance: Instance, memory: dict[int, int]) -> int:
    """Blocks of all residents; under reservation every one of them occupies its peak."""
    total = 0
    for i, held in memory.items():
        if held and instance.switches.reservation:
            held = instance.requests[i].prompt_tokens + instance.requests[i].output_tokens - 1
        total += _block_count(instance, held)
    return total
