"""
Heartbeats that a node has taken and that etcd does not know of yet, and what the nodes tell each other of them.

A heartbeat counts from when a node took it. While more is asked of etcd than it can do, heartbeats wait for it, and
a lease may run out before the heartbeat that was in time for it gets there. So a node whose heartbeats wait says so
in its key, and as long as any of them says so a lease that is gone is no evidence.
"""

from __future__ import annotations

from itertools import count

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Backlog"]


class Backlog:
    """
    How long heartbeats wait for etcd, on this node and on the others.

    :param clock: the reactor.
    :param name: this node's.
    """

    #: Seconds of waiting after which leases are no evidence. Their margin less the time in which others hear of it.
    LIMIT = 1.0
    #: Seconds for which what another node has said is true: a node that is gone takes no heartbeats.
    FRESH = 1.2

    _log = Logger()

    def __init__(self, clock: IReactorTime, name: str) -> None:
        self._clock = clock
        self._name = name
        self._numbers = count()
        # When each was taken; the oldest is the first.
        self._waiting: dict[int, float] = {}
        # When each of the others was heard, of those that are behind.
        self._others: dict[str, float] = {}
        self._isTold = False

    def begin(self) -> int:
        """
        A heartbeat has been taken.

        :return: its number, for :meth:`end`.
        """
        number = next(self._numbers)
        self._waiting[number] = self._clock.seconds()
        return number

    def end(self, number: int) -> None:
        """etcd knows of a heartbeat, or it has been refused."""
        del self._waiting[number]

    def seconds(self) -> float:
        """How long the oldest heartbeat of this node has been waiting; 0 if none is."""
        for began in self._waiting.values():
            return max(0.0, self._clock.seconds() - began)
        return 0.0

    def heard(self, node: str, seconds: float) -> None:
        """Another node has said how long its oldest heartbeat has been waiting; what this one has said is known."""
        if seconds > self.LIMIT and node != self._name:
            self._others[node] = self._clock.seconds()
        else:
            self._others.pop(node, None)

    @property
    def isLong(self) -> bool:
        """Whether a heartbeat that was in time may have been waiting, on whichever node, for longer than a lease."""
        own = self.seconds()
        if own > self.LIMIT and not self._isTold:
            self._isTold = True
            self._log.warn(
                "Heartbeats have waited for etcd for {seconds:.1f} s, for more is asked of it than it can do: "
                "nobody times out while they do",
                seconds=own,
            )
        elif not own:
            self._isTold = False
        fresh = self._clock.seconds() - self.FRESH
        return own > self.LIMIT or any(heard > fresh for heard in self._others.values())
