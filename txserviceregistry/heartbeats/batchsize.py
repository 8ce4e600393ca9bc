"""
The size of heartbeat batches, where a proxy or the registry refuses larger ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import BadRequest, Forbidden, ForeignResponse, NotFound


def isRefusal(error: object) -> bool:
    """Whether a batch met an *error* that a smaller one may not meet: a 4xx other than 401 to the batch as a whole."""
    if isinstance(error, ForeignResponse):
        return error.status != 401
    return isinstance(error, (BadRequest, Forbidden, NotFound))


class BatchSize:
    """
    Halves the size of a batch that is refused, down to one heartbeat and then to none, and remembers the size that is
    accepted. It tries twice that size after each :data:`HOLD`.

    :param largest: heartbeats in a batch at most.
    :param seconds: the time.
    :ivar most: heartbeats in the next batch at most; 0 while batches are not used.
    """

    #: Seconds after a refusal in which no larger batch is tried.
    HOLD = 300.0

    def __init__(self, largest: int, seconds: Callable[[], float]) -> None:
        self.most = largest
        self._largest = largest
        self._seconds = seconds
        # The smallest that was refused, and the largest that was accepted since. Before any was refused, just that.
        self._refused = math.inf
        self._proven = 0
        self._heldUntil = 0.0

    @property
    def isLimited(self) -> bool:
        """Whether a batch was refused, and none of its size was accepted since."""
        return self._refused <= self._largest

    @property
    def isClosed(self) -> bool:
        """Whether not even a batch of one was accepted."""
        return self.most == 0

    def isProven(self, count: int) -> bool:
        """Whether a batch of *count* heartbeats was accepted, so that its size is not what one is refused for."""
        return count <= self._proven

    def isTrial(self, count: int) -> bool:
        """Whether a batch of *count* heartbeats is larger than those that are known to be accepted."""
        return self.isLimited and (self.isClosed or 0 < self._proven < count)

    @property
    def mayTry(self) -> bool:
        """Whether the time has come to try a larger batch."""
        return self._seconds() >= self._heldUntil

    def refused(self, count: int) -> None:
        """A batch of *count* heartbeats was refused as a whole."""
        self._refused = min(self._refused, count)
        if self.isProven(count):
            # What was accepted before the limit came, or became lower, may be refused now.
            self._proven = 0
        if not self.isClosed:
            self.most = max(1, int(self._refused) // 2)
        self._heldUntil = self._seconds() + self.HOLD

    def close(self) -> None:
        """Not even a batch of one is accepted."""
        self.most = self._proven = 0

    def accepted(self, count: int) -> None:
        """A batch of *count* heartbeats was accepted."""
        if count >= self._refused:
            self.most = self._largest
            self._refused = math.inf
            self._proven = count
            return
        self._proven = max(self._proven, count)
        if self.isLimited and count >= self.most and self.mayTry:
            self.most = min(self._largest, 2 * count)
