"""The KV block pool: counts only, since without a prefix cache one block is as good as another."""

from __future__ import annotations

from cspsched.errors import CspschedError


class PoolError(CspschedError):
    """More blocks were asked for than are free, or blocks were returned that nobody holds."""


class BlockPool:
    """KV blocks of one device and who holds how many.

    Attributes
    ----------
    capacity
        Usable blocks.
    free
        Blocks that nobody holds.
    num_holders
        Requests that hold at least one block.
    held
        Blocks of every request, indexed by its position in the instance.
    """

    __slots__ = ("capacity", "free", "held", "num_holders")

    def __init__(self, *, capacity: int, num_requests: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self.num_holders = 0
        self.held = [0] * num_requests

    @property
    def used(self) -> int:
        """Blocks held by all requests together."""
        return self.capacity - self.free

    def take(self, request: int, blocks: int) -> None:
        """Give more blocks to a request.

        Raises
        ------
        PoolError
            If fewer are free, or the number is not at least 1.
        """
        self._require_free(blocks)
        if not self.held[request]:
            self.num_holders += 1
        self.held[request] += blocks
        self.free -= blocks

    def release(self, request: int) -> int:
        """Take all blocks of a request back and return how many they were.

        Raises
        ------
        PoolError
            If it holds none.
        """
        blocks = self.held[request]
        if not blocks:
            raise PoolError("no KV blocks to release")
        self.held[request] = 0
        self.free += blocks
        self.num_holders -= 1
        return blocks

    def _require_free(self, blocks: int) -> None:
        if not 1 <= blocks <= self.free:
            raise PoolError(f"{blocks} KV blocks asked for, {self.free} of {self.capacity} are free")
