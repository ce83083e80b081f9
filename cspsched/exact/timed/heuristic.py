"""What is still to pay from a timed state at least: the heuristic of the timed state search.

Every unfinished request needs at least what it needs alone on the machine, from its local state and from its
arrival or the clock on, whichever is later (batch times grow with every feature). And the machine has to find
the time: let q(move) be prices of moves such that those in a batch never sum to more than its batch time. The
processing times p_i, the least sums of q on the way to a token, are then packed one after the other into the
time of the machine, and shortest remaining time first makes the k-th of those tokens as early as it can be,
for every k at once. The k-th token is no earlier than the k-th smallest of the lone ones either.

q shares the price per batch of a minorant by memory, seats or tokens, or by two of them, and what a prefill
adds to a batch by seats; the rest is what the move adds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from cspsched.bounds.parts.minorant import Minorant, minorants
from cspsched.exact.timed.moves import LocalStates, Move
from cspsched.problem.cost import BatchFeatures
from cspsched.problem.instance import Instance

SHARES = ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1))
"""Halves of the price per batch that memory, seats and tokens share."""
MOST_TABLES = 3
"""Tables of processing times that are kept: those with the largest sums."""


class Rests(NamedTuple):
    """Least times from each local state to a token, by request and local state, in nanoseconds."""

    alone: list[list[int]]
    """Until that token if the request is alone."""
    shares: list[list[list[int]]]
    """Time of the machine that the way to it takes, by table."""


def rests_until(instance: Instance, locals_: Sequence[LocalStates], tokens: Sequence[int]) -> Rests:
    """Tables until each request has generated so many tokens."""

    def times(price: Callable[[Move], int], scale: int = 1) -> list[list[int]]:
        ways = (states.rest(price, until) for states, until in zip(locals_, tokens, strict=True))
        return [[value // scale for value in way] for way in ways]

    steepest = minorants(instance)
    shared = [
        times(*_share(instance, minorant, share))
        for minorant in dict.fromkeys((steepest[0], steepest[-1]))
        for share in SHARES
    ]
    shared.sort(key=lambda table: -sum(way[0] for way in table))
    return Rests(alone=times(lambda move: lone_time_ns(instance, move)), shares=shared[:MOST_TABLES])


def lone_time_ns(instance: Instance, move: Move) -> int:
    """Duration of a batch that holds one move only."""
    return instance.cost.batch_time_ns(
        BatchFeatures(
            tokens=move.tokens,
            prefill_attention=move.attention,
            prefill_tokens=move.tokens * move.is_prefill,
            prefill_context=move.context * move.is_prefill,
            decode_context=move.context * move.is_decode,
            num_generating=move.generates,
            num_prefills=move.is_prefill,
            num_decodes=move.is_decode,
        )
    )


def _share(
    instance: Instance, minorant: Minorant, halves: tuple[int, int, int]
) -> tuple[Callable[[Move], int], int]:
    """Price q of a move, times a common denominator, and that denominator."""
    limits = instance.limits
    seats = min(limits.max_batch_requests, limits.max_batch_tokens, len(instance.requests))
    by_block = minorant.batch * Fraction(halves[0], 2 * limits.kv_blocks)
    by_seat = minorant.batch * Fraction(halves[1], 2 * seats)
    by_token = minorant.tokens + minorant.batch * Fraction(halves[2], 2 * limits.max_batch_tokens)
    by_prefill = minorant.prefill_request + minorant.prefill_batch / seats
    scale = lcm(minorant.scale, *(one.denominator for one in (by_block, by_seat, by_token, by_prefill)))
    block, seat, token, attention, prefill_token, prefill_context, decode_context, head, prefill, decode = (
        int(price * scale)
        for price in (
            by_block,
            by_seat,
            by_token,
            minorant.prefill_attention,
            minorant.prefill_tokens,
            minorant.prefill_context,
            minorant.decode_context,
            minorant.head,
            by_prefill,
            minorant.decode_request,
        )
    )

    def price(move: Move) -> int:
        total = block * move.blocks + seat + token * move.tokens + head * move.generates
        if move.is_decode:
            return total + decode_context * move.context + decode
        return (
            total
            + attention * move.attention
            + prefill_token * move.tokens
            + prefill_context * move.context
            + prefill
        )

    return price, scale


def earliest_ends(releases: Sequence[int], processing: Sequence[int]) -> list[int]:
    """Ends of requests on one machine, ascending, the shortest remaining one first (preemptive).

    Both in the order of the releases, which ascend.
    """
    ends, waiting, clock, k = list[int](), list[int](), releases[0], 0
    while waiting or k < len(releases):
        if not waiting:
            clock = max(clock, releases[k])
        while k < len(releases) and releases[k] <= clock:
            heapq.heappush(waiting, processing[k])
            k += 1
        rest = waiting[0]
        if k < len(releases) and clock + rest > releases[k]:
            heapq.heapreplace(waiting, rest - (releases[k] - clock))
            clock = releases[k]
        else:
            heapq.heappop(waiting)
            clock += rest
            ends.append(clock)
    return ends
