"""The referee: every rule of the problem as one plain check, from decisions alone.

It imports neither solver nor simulator nor policy. `find_violations` is empty exactly when the schedule is
feasible for the instance with the times and memory that it states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from cspsched.errors import CostError
from cspsched.problem.cost import INT64_SAFE, IntArray
from cspsched.problem.instance import Instance
from cspsched.problem.request import MAX_TOKENS
from cspsched.problem.schedule import Schedule
from cspsched.referee.boundary import check_preemption, check_prefix_cache, check_swap
from cspsched.referee.history import History, follow
from cspsched.referee.prefix import shared_occupancy
from cspsched.referee.violation import Violation, about, count_rest, first, report, report_batches
from cspsched.referee.walk import BoolArray

__all__ = ["Violation", "find_violations"]


def find_violations(instance: Instance, schedule: Schedule) -> list[Violation]:
    """All rules that a schedule breaks; empty if it is feasible and its times and memory are right.

    A rule that is broken more than 20 times lists the first 20 and says how many more there are. Checks that
    would be meaningless on a malformed schedule are not made.
    """
    malformed = list(check_form(instance, schedule))
    return malformed or violations_of(follow(instance, schedule))


def violations_of(history: History) -> list[Violation]:
    """All rules that a well-formed schedule breaks, from what its decisions imply."""
    return [violation for check in CHECKS for violation in check(history)]


def check_form(instance: Instance, schedule: Schedule) -> Iterator[Violation]:
    """Requests and batches exist, batches are not empty, no request is twice in a batch or evicted twice."""
    count, batches = len(instance.requests), schedule.num_batches
    in_range = (schedule.request >= 0) & (schedule.request < count)
    yield from _entries_where(schedule, ~in_range, "request index {value} does not exist", schedule.request)
    # More tokens than any request may have would not even add up in 64 bits.
    absurd = (schedule.tokens < 1) | (schedule.tokens > 2 * MAX_TOKENS)
    yield from _entries_where(schedule, absurd, "processes {value} tokens", schedule.tokens)
    empty = np.diff(schedule.first_entry) == 0
    yield from report_batches("form", empty, lambda j: f"batch {j} is empty")
    yield from _check_hits_form(schedule)
    seen = [("processed", schedule.batch_of_entry[in_range], schedule.request[in_range])]
    for what, event, batch, request in (
        ("evicted", "eviction", schedule.evicted_batch, schedule.evicted_request),
        ("restored", "restoration", schedule.restored_batch, schedule.restored_request),
        ("given cached tokens", "prefix cache hit", schedule.hit_batch, schedule.hit_request),
    ):
        exists = (request >= 0) & (request < count) & (batch >= 0) & (batch < batches)
        for k in first(~exists):
            message = f"{event} of request index {request[k]} before batch {batch[k]} does not exist"
            yield Violation(rule="form", message=message)
        yield from count_rest("form", ~exists, f"{event}s do not exist")
        seen.append((what, batch[exists], request[exists]))
    for what, batch, request in seen:
        keys, counts = np.unique(batch * count + request, return_counts=True)
        for k in first(counts > 1):
            j, i = divmod(int(keys[k]), count)
            message = f"request index {i} is {what} twice in batch {j}"
            yield Violation(rule="form", batch=j, message=message)
        yield from count_rest("form", counts > 1, f"requests are {what} twice in a batch")


def _check_hits_form(schedule: Schedule) -> Iterator[Violation]:
    absurd = (schedule.hit_tokens < 1) | (schedule.hit_tokens > 2 * MAX_TOKENS)
    for k in first(absurd):
        yield Violation(rule="form", message=f"prefix cache hit {k} has {schedule.hit_tokens[k]} tokens")
    yield from count_rest("form", absurd, "prefix cache hits have such numbers")


def check_known_tokens(history: History) -> Iterator[Violation]:
    """Rule 1: n_ij + c_ij <= I_i + G_ij."""
    known = _prompts(history) + history.generated_before
    yield from report(
        "known tokens",
        history,
        history.kv_after > known,
        lambda e: (
            f"holds {history.kv_before[e]} and processes {history.schedule.tokens[e]} tokens, "
            f"only {known[e]} are known"
        ),
    )


def check_memory(history: History) -> Iterator[Violation]:
    """Rule 3: m_ij = n_ij + c_ij."""
    stated = history.schedule.kv_tokens
    yield from report(
        "memory",
        history,
        stated != history.kv_after,
        lambda e: (
            f"states {stated[e]} KV entries, expected {history.kv_before[e]} carried + "
            f"{history.schedule.tokens[e]} processed"
        ),
    )


def check_capacity(history: History) -> Iterator[Violation]:
    """Rule 4: the blocks of all residents fit on the device, in every batch."""
    occupied = occupied_blocks(history)
    capacity = history.instance.limits.kv_blocks
    yield from report_batches(
        "capacity",
        occupied > capacity,
        lambda j: f"batch {j} occupies {occupied[j]} KV blocks, the device offers {capacity}",
    )


def occupied_blocks(history: History) -> IntArray:
    """KV blocks of all residents during every batch, shape (num_batches,).

    A finished request releases its blocks before the next batch. Blocks that the prefix cache shares are
    counted once. Under reservation a resident occupies the
    blocks of I + O - 1 tokens from its first batch on.
    """
    if history.schedule.uses_prefix_cache:
        return shared_occupancy(history)
    block = history.instance.limits.block_tokens
    after = -(-history.kv_after // block)
    before = -(-history.kv_before // block)
    lost = -(-history.kv_evicted // block)
    restored = -(-history.kv_restored // block)
    if history.instance.switches.reservation:
        peaks = history.instance.columns.peak_kv_tokens
        after = -(-peaks[history.schedule.request] // block)
        before = after * (history.kv_before > 0)
        lost = -(-peaks[history.schedule.evicted_request] // block) * (history.kv_evicted > 0)
        restored = -(-peaks[history.schedule.restored_request] // block) * (history.kv_restored > 0)
    return _resident_total(history, gained=after - before, released=after, lost=lost, restored=restored)


def _resident_total(
    history: History, *, gained: IntArray, released: IntArray, lost: IntArray, restored: IntArray
) -> IntArray:
    """Running total per batch of what entries and restorations gain, finished and evicted requests lose."""
    schedule = history.schedule
    change = np.zeros(schedule.num_batches + 1, dtype=np.int64)
    np.add.at(change, schedule.batch_of_entry, gained)
    np.add.at(change, schedule.batch_of_entry[history.finishes] + 1, -released[history.finishes])
    np.add.at(change, schedule.evicted_batch, -lost)
    np.add.at(change, schedule.restored_batch, restored)
    return np.cumsum(change)[:-1]


def check_budget(history: History) -> Iterator[Violation]:
    """Rule 5: at most C tokens and R requests in a batch."""
    limits, features = history.instance.limits, history.features
    tokens, requests = features.tokens, features.num_prefills + features.num_decodes
    yield from report_batches(
        "budget",
        tokens > limits.max_batch_tokens,
        lambda j: f"batch {j} processes {tokens[j]} tokens, the limit is {limits.max_batch_tokens}",
    )
    yield from report_batches(
        "budget",
        requests > limits.max_batch_requests,
        lambda j: f"batch {j} processes {requests[j]} requests, the limit is {limits.max_batch_requests}",
    )


def check_completion(history: History) -> Iterator[Violation]:
    """Rules 2 and 6: every request generates exactly O tokens, and is not processed after that."""
    outputs = history.instance.columns.output_tokens
    generated = np.bincount(history.schedule.request[history.generates], minlength=len(outputs))
    wrong = generated != outputs
    for i in first(wrong):
        message = f"generates {generated[i]} tokens, expected {outputs[i]}"
        yield about(history, "completion", message, request=i)
    yield from count_rest("completion", wrong, "requests generate another number of tokens")
    finished_before = history.generated_before >= outputs[history.schedule.request]
    yield from report("completion", history, finished_before, lambda e: "is processed after its last token")


def check_time(history: History) -> Iterator[Violation]:
    """Rules 7 and 8: batches wait for each other, for swaps and arrivals, and take their time."""
    schedule, cost = history.schedule, history.instance.cost
    moved = history.moved_blocks
    swap_ns = np.zeros(len(moved), dtype=np.int64)
    for j in np.flatnonzero(moved).tolist():
        swap_ns[j] = min(cost.swap_time_ns(int(moved[j])), INT64_SAFE)
    ready = np.concatenate(([0], schedule.end_ns[:-1]))
    earliest = ready + swap_ns
    yield from report_batches(
        "time",
        schedule.start_ns < earliest,
        lambda j: f"batch {j} starts at {schedule.start_ns[j]} ns, before {earliest[j]} ns",
    )
    yield from _check_durations(history)
    arrivals = history.instance.columns.arrival_ns[schedule.request]
    starts = schedule.start_ns[schedule.batch_of_entry]
    yield from report(
        "time",
        history,
        starts < arrivals,
        lambda e: f"arrives at {arrivals[e]} ns, its batch starts at {starts[e]} ns",
    )


def _check_durations(history: History) -> Iterator[Violation]:
    start, end = history.schedule.start_ns, history.schedule.end_ns
    try:
        expected = history.instance.cost.batch_times_ns(history.features)
    except CostError as error:
        yield Violation(rule="time", message=str(error))
        return
    # The difference of two 64-bit times may wrap around to the right number, so their order counts too.
    yield from report_batches(
        "time",
        (end - start != expected) | (end < start),
        lambda j: f"batch {j} takes {int(end[j]) - int(start[j])} ns, its composition costs {expected[j]} ns",
    )


def check_chunking(history: History) -> Iterator[Violation]:
    """Without chunked prefill a prompt or refill is processed in one batch."""
    if not history.instance.switches.chunked_prefill:
        partial = ~history.decodes & ~history.generates
        yield from report("chunked prefill", history, partial, lambda e: "gets a chunk, but chunking is off")


def _starts(history: History) -> BoolArray:
    """The entry is the first of its request since it holds KV entries, cached ones included."""
    schedule, count = history.schedule, len(history.instance.requests)
    hits = schedule.hit_batch * count + schedule.hit_request
    is_hit = np.isin(schedule.batch_of_entry * count + schedule.request, hits)
    starts: BoolArray = is_hit | (history.kv_before == 0)
    return starts


def check_hybrid(history: History) -> Iterator[Violation]:
    """Without hybrid batches a batch holds prefills or decodes, not both."""
    if not history.instance.switches.hybrid_batches:
        prefills, decodes = history.features.num_prefills, history.features.num_decodes
        yield from report_batches(
            "hybrid batches",
            (prefills > 0) & (decodes > 0),
            lambda j: f"batch {j} mixes {prefills[j]} prefills with {decodes[j]} decodes",
        )


def check_holding(history: History) -> Iterator[Violation]:
    """Without holding every resident request is processed in every batch."""
    if not history.instance.switches.holding:
        admitted = _starts(history).astype(np.int64)
        residents = _resident_total(
            history,
            gained=admitted,
            released=np.ones(len(admitted), dtype=np.int64),
            lost=(history.kv_evicted > 0).astype(np.int64),
            restored=(history.kv_restored > 0).astype(np.int64),
        )
        processed = np.diff(history.schedule.first_entry)
        yield from report_batches(
            "holding",
            residents > processed,
            lambda j: f"batch {j} processes {processed[j]} of {residents[j]} resident requests",
        )


CHECKS: tuple[Callable[[History], Iterator[Violation]], ...] = (
    check_known_tokens,
    check_memory,
    check_capacity,
    check_budget,
    check_completion,
    check_time,
    check_preemption,
    check_swap,
    check_prefix_cache,
    check_chunking,
    check_hybrid,
    check_holding,
)


def _prompts(history: History) -> IntArray:
    return history.instance.columns.prompt_tokens[history.schedule.request]


def _entries_where(
    schedule: Schedule, broken: npt.NDArray[np.bool_], template: str, values: IntArray
) -> Iterator[Violation]:
    for entry in first(broken):
        j = int(np.searchsorted(schedule.first_entry, entry, side="right")) - 1
        text = template.format(value=values[entry])
        yield Violation(rule="form", batch=j, message=f"entry {entry} of batch {j}: {text}")
    yield from count_rest("form", broken, "entries break this rule")
