"""
Reactions to failed heartbeat batches: they may be too large, not accepted at all, or there may be an outage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from ..errors import BadRequest, Forbidden, ForeignResponse, NotFound, RequestTimedOut, isUnknown
from ..util.backoff import LONGEST_DELAY, Backoff
from ..util.logs import Logger
from .heartbeater import HeartBeater

# After so many failures in a row a batch that is refused is split although one of its size was accepted before, and
# after so many one that fails in another way.
_MANY_REFUSALS = 2
_MANY_FAILURES = 5
# For each single heartbeat that is accepted while batches fail, so many more services send single heartbeats.
_MORE_ALONE = 4


def isRefusal(error: object) -> bool:
    """Whether a batch met an *error* that a smaller one may not meet: a 4xx other than 401 to the batch as a whole."""
    if isinstance(error, ForeignResponse):
        return error.status != 401
    return isinstance(error, (BadRequest, Forbidden, NotFound))


class BatchSize:
    """
    Halves the size of a batch that is refused, down to one heartbeat and then to none, and remembers the size that is
    accepted. It tries twice that size after each :data:`HOLD`.

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

    def isProven(self, count: int) -> bool:
        """Whether a batch of *count* heartbeats was accepted, so that its size is not what one is refused for."""
        return count <= self._proven

    def isTrial(self, count: int) -> bool:
        """Whether a batch of *count* heartbeats is larger than those that are known to be accepted."""
        return self.isLimited and (self.most == 0 or 0 < self._proven < count)

    @property
    def mayTry(self) -> bool:
        """Whether the time has come to try a larger batch."""
        return self._seconds() >= self._heldUntil

    def refused(self, count: int) -> None:
        """A batch of *count* heartbeats was refused as a whole."""
        self._refused = min(self._refused, count)
        if self.isProven(count):
            # A size that was accepted before the limit came, or became lower, may be refused now.
            self._proven = 0
        if self.most:
            self.most = max(1, int(self._refused) // 2)
        self._heldUntil = self._seconds() + self.HOLD

    def close(self) -> None:
        """Not even a batch of one is accepted."""
        self.most = self._proven = 0

    def accepted(self, count: int) -> None:
        """A batch of *count* heartbeats was accepted."""
        if count >= self._refused:
            self.most, self._refused, self._proven = self._largest, math.inf, count
            return
        self._proven = max(self._proven, count)
        if self.isLimited and count >= self.most and self.mayTry:
            self.most = min(self._largest, 2 * count)


class Action(Enum):
    """A reaction for the services of a batch that has failed."""

    #: Send smaller batches at once.
    SPLIT = "split"
    #: Send single heartbeats for all services: not even a batch of one is accepted.
    DISSOLVE = "dissolve"
    #: Send them again in a batch, after a delay.
    RETRY = "retry"


class BatchProbe:
    """
    Decides the reaction to batches that fail.

    While batches fail and nothing else is known, one service sends a single heartbeat. If it comes back, its heartbeat
    was accepted: then more services follow it, and batches become smaller. If it does not come back, it is an outage.

    :ivar alone: the services that send single heartbeats for this.
    """

    _log = Logger()

    def __init__(self, size: BatchSize, largest: int, random: Callable[[], float]) -> None:
        self.alone: set[HeartBeater] = set()
        self._size = size
        self._largest = largest
        self._backoff = Backoff(0.1, LONGEST_DELAY, random)
        # How many came back since a batch was accepted.
        self._backAlone = 0
        # How many heartbeats the last batch had that failed, and why it did.
        self._failedCount = 0
        self._failedFor = ""

    @property
    def failures(self) -> int:
        """How many batches have failed in a row."""
        return self._backoff.failures

    @property
    def most(self) -> int:
        """Heartbeats in the next batch at most."""
        # A size of one is that of an outage, as long as no service that was sent alone is back.
        return self._largest if self.alone and self._size.most <= 1 else max(1, self._size.most)

    def isBack(self, service: HeartBeater) -> bool:
        """A service joins. Whether it sent single heartbeats, one of which was accepted."""
        if service not in self.alone:
            return False
        self.alone.discard(service)
        self._backAlone += 1
        return True

    def accepted(self, count: int) -> None:
        """A batch of *count* heartbeats was accepted."""
        failures, wasLimited = self.failures, self._size.isLimited
        self._backoff.reset()
        if self._backAlone and failures > _MANY_REFUSALS and count < self._failedCount:
            # A smaller one is accepted, and single ones are.
            self.refused(self._failedCount, self._failedFor)
            wasLimited = True
        self._backAlone = 0
        if count >= self._failedCount or wasLimited:
            self.alone.clear()
        self._size.accepted(count)
        if wasLimited and not self._size.isLimited:
            self._log.info("A batch of {count} heartbeats is accepted again", count=count)

    def refused(self, count: int, reason: str) -> None:
        """A batch of *count* heartbeats was too large."""
        if not self._size.isLimited:
            text = "A batch of {count} heartbeats was refused, smaller ones are sent: {reason}"
            self._log.warn(text, count=count, reason=reason)
        self._size.refused(count)

    def failed(self, error: BaseException, count: int, reason: str) -> tuple[Action, float, int]:
        """
        A batch of *count* heartbeats failed.

        :return: the reaction, the seconds until it, and the number of services that send single heartbeats.
        """
        self._failedCount, self._failedFor = count, reason
        isRefused = isRefusal(error)
        mayBeBatch = isRefused or isUnknown(error)
        if mayBeBatch and self._isItsSize(isRefused, count):
            self.refused(count, reason)
            if count > 1:
                return Action.SPLIT, 0.0, 0
            if self._backAlone or not self._size.most:
                self._size.close()
                return Action.DISSOLVE, 0.0, 0
        delay = self._backoff.next()
        mayFindOut = mayBeBatch and (isRefused or self._backAlone > 0 or not self.alone)
        isEarly = self.failures == 1 and (not isRefused or self._size.isProven(count))
        if isEarly or not mayFindOut:
            return Action.RETRY, delay, 0
        # After another try that takes as long as one that hangs it would be too late for the others.
        more = count if isinstance(error, RequestTimedOut) else _MORE_ALONE
        return Action.RETRY, delay, max(1, more * self._backAlone)

    def _isItsSize(self, isRefused: bool, count: int) -> bool:
        """Whether a batch that failed may have been too large, rather than met an outage."""
        if self._backAlone and self.failures >= _MANY_FAILURES:
            # Single heartbeats are accepted meanwhile.
            return True
        if self.alone and not self._backAlone:
            return False
        if isRefused and (not self._size.isProven(count) or self.failures >= _MANY_REFUSALS):
            return True
        return self._size.isTrial(count)
