"""What one request can do at a boundary and in a batch, listed once: the moves of the timed state search.

A local state is (KV entries, tokens generated, decoding?, in host memory?). Rules 1 to 3, 6 and 8 of the
problem and the switches that look at one request are in the lists; what requests share is for the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from cspsched.problem.cost import triangle
from cspsched.problem.instance import Instance
from cspsched.problem.request import Request

NO_WAY = 2**200
"""Price where no way leads on: a refill beyond the token budget that may not be cut. More than any sum."""


class Event(IntEnum):
    """What happens to the KV cache of a request at a boundary."""

    STAY = 0
    DROP = 1
    SWAP = 2
    RESTORE = 3


class Local(NamedTuple):
    """State of one request; the KV cache may be in host memory."""

    kv_tokens: int
    generated: int
    decodes: bool
    on_host: bool


class Move(NamedTuple):
    """What a request does at a boundary and in the batch after it."""

    event: Event
    tokens: int
    following: int
    """Position of the local state that it leads to."""
    blocks: int
    """Occupied on the device during the batch."""
    host_blocks: int
    moved_blocks: int
    kept_blocks: int
    """What it would occupy if it were not dropped: above 0 for drops that are not processed."""
    is_prefill: int
    is_decode: int
    attention: int
    context: int
    """KV entries read, of a prefill or a decode."""
    generates: int


class LocalStates:
    """All local states of a request and the moves out of each; the first is the one before anything."""

    def __init__(self, instance: Instance, request: Request) -> None:
        self._instance, self._request = instance, request
        self.states = [Local(0, 0, decodes=False, on_host=False)]
        self.moves: list[list[Move]] = []
        self._positions = {self.states[0]: 0}
        # The list grows while it is read: every state that a move leads to is listed once.
        for state in self.states:
            self.moves.append(list(self._moves(state)))

    def generated(self, position: int) -> int:
        """Output tokens in a local state."""
        return self.states[position].generated

    def is_done(self, position: int) -> bool:
        """Whether the request has finished."""
        return self.states[position].generated == self._request.output_tokens

    def rest(self, price: Callable[[Move], int], until: int) -> list[int]:
        """Least sum of prices from each local state until so many tokens are generated, the request alone.

        Prices are at least 0. What it costs to move KV caches between device and host is left out.
        """
        least = [0] * len(self.states)
        for generated in range(until - 1, -1, -1):
            level = [k for k, state in enumerate(self.states) if state.generated == generated]
            # Chunks lead to more KV entries; who is in host memory comes back as it was.
            for k in sorted(level, key=lambda k: (self.states[k].on_host, -self.states[k].kv_tokens)):
                least[k] = self._rest_of(k, price, least)
            if self._instance.switches.preemption.recomputes:
                again = least[self._positions[Local(0, generated, decodes=False, on_host=False)]]
                for k in level:
                    least[k] = least[k] if self.states[k].on_host else min(least[k], again)
        return least

    def _rest_of(self, position: int, price: Callable[[Move], int], least: list[int]) -> int:
        state = self.states[position]
        if state.on_host:
            return least[self._positions[state._replace(on_host=False)]]
        ways = (
            price(move) + least[move.following]
            for move in self.moves[position]
            if move.tokens and move.event is Event.STAY
        )
        return min(ways, default=NO_WAY)

    def _moves(self, state: Local) -> Iterator[Move]:
        """Moves out of a local state, most tokens first."""
        if state.generated == self._request.output_tokens:
            return
        held, preemption = state.kv_tokens, self._instance.switches.preemption
        goes_on = Event.RESTORE if state.on_host else Event.STAY
        may_sit_out = held == 0 or self._instance.switches.holding
        for tokens in self._amounts(state, held):
            yield self._move(state, goes_on, tokens)
        if held and preemption.recomputes and not state.on_host:
            for tokens in self._amounts(state._replace(decodes=False), 0):
                yield self._move(state, Event.DROP, tokens)
            yield self._move(state, Event.DROP, 0)
        if state.on_host:
            yield self._move(state, Event.STAY, 0)
        if may_sit_out:
            yield self._move(state, goes_on, 0)
        if held and preemption.swaps and not state.on_host:
            yield self._move(state, Event.SWAP, 0)

    def _amounts(self, state: Local, held: int) -> Iterator[int]:
        """Tokens that may be processed on top of those held, none left out."""
        missing = self._request.prompt_tokens + state.generated - held
        most = min(missing, self._instance.limits.max_batch_tokens)
        least = 1 if self._instance.switches.chunked_prefill or state.decodes else missing
        yield from range(most, least - 1, -1)

    def _move(self, state: Local, event: Event, tokens: int) -> Move:
        held = 0 if event is Event.DROP else state.kv_tokens
        leaves = event is Event.SWAP or (state.on_host and event is not Event.RESTORE)
        decodes = state.decodes and event is not Event.DROP
        kv = held + tokens
        generates = tokens > 0 and kv == self._request.prompt_tokens + state.generated
        is_last = generates and state.generated + 1 == self._request.output_tokens
        after = Local(
            kv_tokens=0 if is_last else kv,
            generated=state.generated + generates,
            decodes=not is_last if generates else decodes,
            on_host=leaves,
        )
        is_prefill = tokens > 0 and not decodes
        return Move(
            event=event,
            tokens=tokens,
            following=self._position_of(after),
            blocks=0 if leaves else self._occupied(kv),
            host_blocks=self._blocks(kv) if leaves else 0,
            moved_blocks=self._blocks(state.kv_tokens) if event >= Event.SWAP else 0,
            kept_blocks=self._occupied(state.kv_tokens) if event is Event.DROP and not tokens else 0,
            is_prefill=int(is_prefill),
            is_decode=int(tokens > 0 and decodes),
            attention=triangle(kv) - triangle(held) if is_prefill else 0,
            context=held if tokens else 0,
            generates=int(generates),
        )

    def _position_of(self, state: Local) -> int:
        if state not in self._positions:
            self._positions[state] = len(self.states)
            self.states.append(state)
        return self._positions[state]

    def _blocks(self, tokens: int) -> int:
        return self._instance.limits.blocks_of(tokens)

    def _occupied(self, tokens: int) -> int:
        """Blocks on the device of a request with so many tokens."""
        reserves = tokens > 0 and self._instance.switches.reservation
        return self._blocks(self._request.peak_kv_tokens if reserves else tokens)
