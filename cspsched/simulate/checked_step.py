"""A step for policies that are not ours: what is no request, or no whole number, is refused by name."""

from __future__ import annotations

from operator import index

from cspsched.errors import PolicyError
from cspsched.simulate.step import CachedPrefix, Step


class CheckedStep(Step):
    """The same decision, its arguments looked at: Python counts -1 from the end, and adds 0.5 to tokens."""

    __slots__ = ()

    def missing_blocks(self, request: int, tokens: int) -> int:
        """As `Step`."""
        return super().missing_blocks(self._position(request), self._whole(tokens, "tokens"))

    def find_cached(self, request: int) -> CachedPrefix:
        """As `Step`."""
        return super().find_cached(self._position(request))

    def reuse(self, request: int, cached: CachedPrefix) -> None:
        """As `Step`."""
        super().reuse(self._position(request), cached)

    def schedule(self, request: int, tokens: int, blocks: int) -> None:
        """As `Step`."""
        super().schedule(
            self._position(request), self._whole(tokens, "tokens"), self._whole(blocks, "KV blocks")
        )

    def preempt(self, request: int) -> int:
        """As `Step`."""
        return super().preempt(self._position(request))

    def restart_output(self, request: int) -> None:
        """As `Step`."""
        super().restart_output(self._position(request))

    def drop(self, request: int) -> None:
        """As `Step`."""
        super().drop(self._position(request))

    def swap_out(self, request: int) -> int:
        """As `Step`."""
        return super().swap_out(self._position(request))

    def swap_in(self, request: int) -> None:
        """As `Step`."""
        super().swap_in(self._position(request))

    def _position(self, request: int) -> int:
        """A request, if it is one."""
        position, count = self._whole(request, "request"), len(self.known_tokens)
        if not 0 <= position < count:
            raise PolicyError(
                f"policy {self._label}: request is {position}, expected a position from 0 to {count - 1}"
            )
        return position

    def _whole(self, value: int, what: str) -> int:
        """A number, if it is whole; one of numpy's becomes one of Python's."""
        try:
            return index(value)
        except TypeError:
            raise PolicyError(f"policy {self._label}: {what} is {value!r}, expected a whole number") from None
