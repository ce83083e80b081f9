"""Lower bound on what the objective still grows from a state, compiled: the heuristic of the state search."""

from __future__ import annotations

from cspsched.compiled.jit import inner, outer
from cspsched.exact.prices.resident_states import state_of
from cspsched.exact.states.heuristic_tables import HeuristicTables
from cspsched.exact.states.space import Shape
from cspsched.problem.cost import IntArray


@inner
def insert_sorted(values: IntArray, size: int, value: int) -> None:
    """Put a value into an ascending array of some size."""
    k = size
    while k and values[k - 1] > value:
        values[k] = values[k - 1]
        k -= 1
    values[k] = value


@outer
def heuristic_on_rest(
    shape: Shape, tables: HeuristicTables, generated: IntArray, resident: int, work: IntArray
) -> int:
    """Lower bound on the growth of the objective.

    Parameters
    ----------
    generated, resident
        Tokens generated of each request, and the bits of those on the device.
    work
        Scratch, shape (4, requests + 1).
    """
    waiting, absent = 0, 0
    who = work[0]
    for i in range(len(generated)):
        if generated[i] < tables.targets[i]:
            who[waiting] = i
            waiting += 1
            absent += 1 - ((resident >> i) & 1)
    if waiting == 0:
        return 0
    known = _resident_state(shape, tables, generated, resident)
    if shape.counted < 0:
        return _makespan(tables, generated, resident, who, waiting, absent, known)
    return _sum_of_waits(tables, generated, resident, work, waiting, absent, known)


@inner
def _resident_state(shape: Shape, tables: HeuristicTables, generated: IntArray, resident: int) -> int:
    """Number of the resident state, if there are values for them."""
    if len(tables.path_values) == 0:
        return 0
    code = 0
    for i in range(len(generated)):
        if (resident >> i) & 1 and generated[i] < tables.targets[i]:
            code += generated[i] * shape.strides[i]
    return state_of(tables.resident_slots, tables.resident_codes, code)


@inner
def _makespan(
    tables: HeuristicTables,
    generated: IntArray,
    resident: int,
    who: IntArray,
    waiting: int,
    absent: int,
    known: int,
) -> int:
    """Batches that are needed times what one takes, and work; or the prices of all tokens to come."""
    batches, prefill_batches = 0, 1 if absent else 0
    for k in range(waiting):
        batches = max(batches, tables.targets[who[k]] - generated[who[k]])
    for function in range(len(tables.capacities)):
        total, missing = 0, 0
        for k in range(waiting):
            i = who[k]
            total += tables.areas[function, i, generated[i]]
            if not (resident >> i) & 1:
                missing += tables.sizes[function, i, generated[i]]
        capacity = tables.capacities[function]
        batches = max(batches, -(-total // capacity))
        prefill_batches = max(prefill_batches, -(-missing // capacity))
    best = 0
    for m in range(len(tables.alphas)):
        rest = tables.alphas[m] * batches + tables.surcharges[m] * prefill_batches
        for k in range(waiting):
            i = who[k]
            rest += tables.work[m, i, generated[i]]
            if not (resident >> i) & 1:
                rest += tables.refill[m, i, generated[i]]
        best = max(best, rest)
    for m in range(len(tables.prices)):
        rest = 0
        for k in range(waiting):
            i = who[k]
            rest += tables.prices[m, i, generated[i]]
            if not (resident >> i) & 1:
                rest += tables.price_refill[m, i, generated[i]]
        best = max(best, rest)
    for m in range(len(tables.path_values)):
        rest = tables.path_values[m, known]
        for k in range(waiting):
            rest += tables.resident_path_prices[m, who[k], generated[who[k]]]
        best = max(best, rest)
    return best


@inner
def _sum_of_waits(
    tables: HeuristicTables,
    generated: IntArray,
    resident: int,
    scratch: IntArray,
    waiting: int,
    absent: int,
    known: int,
) -> int:
    """Bounds on the time of the k-th last token, summed over k.

    It needs at least as many batches as the k-th shortest request has tokens left, as the k smallest sums of
    sizes fill, and the k smallest amounts of work on top; and at least the k smallest prices.
    """
    who, batches, ordered, times = scratch[0], scratch[1], scratch[2], scratch[3]
    for k in range(waiting):
        insert_sorted(batches, k, tables.targets[who[k]] - generated[who[k]])
        times[k] = 0
    for function in range(len(tables.capacities)):
        for k in range(waiting):
            insert_sorted(ordered, k, tables.areas[function, who[k], generated[who[k]]])
        total, capacity = 0, tables.capacities[function]
        for k in range(waiting):
            total += ordered[k]
            batches[k] = max(batches[k], -(-total // capacity))
    for m in range(len(tables.alphas) + len(tables.prices)):
        priced = m - len(tables.alphas)
        for k in range(waiting):
            i = who[k]
            g = generated[i]
            amount = tables.work[m, i, g] if priced < 0 else tables.prices[priced, i, g]
            if not (resident >> i) & 1:
                amount += tables.refill[m, i, g] if priced < 0 else tables.price_refill[priced, i, g]
            insert_sorted(ordered, k, amount)
        total = 0
        for k in range(waiting):
            total += ordered[k]
            bound = total
            if priced < 0:
                bound += tables.alphas[m] * batches[k]
                # More last tokens than requests on the device: one of them came after a prefill.
                if k + 1 > waiting - absent:
                    bound += tables.surcharges[m]
            times[k] = max(times[k], bound)
    for m in range(len(tables.path_values)):
        for k in range(waiting):
            insert_sorted(ordered, k, tables.resident_path_prices[m, who[k], generated[who[k]]])
        total = tables.path_values[m, known]
        for k in range(waiting):
            total += ordered[k]
            times[k] = max(times[k], total)
    best = 0
    for k in range(waiting):
        best += times[k]
    return best
