"""A limit on concurrent requests with priorities: for heartbeats to a registry, and its requests to etcd."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

from twisted.internet.defer import Deferred, succeed


class PrioritySemaphore:
    """
    Up to *most* requests at a time; the others wait, and the one with the nearest deadline is next.

    The timeout of a request begins when it is sent. Of ten thousand that are sent together, all would time out while
    they wait for each other, and would be retried together.
    """

    def __init__(self, most: int = 100) -> None:
        self._free = most
        self._isGiving = False
        # Requests with the same deadline keep their order.
        self._waiting: list[tuple[float, int, Deferred[None]]] = []
        self._order = count()

    def take(self, deadline: float) -> Deferred[None]:
        """
        Wait for a place, to be given back. May be cancelled.

        :param deadline: in seconds of one clock for all; infinity for none.
        """
        if self._free and not self._isGiving:
            self._free -= 1
            return succeed(None)
        turn: Deferred[None] = Deferred()
        heappush(self._waiting, (deadline, next(self._order), turn))
        return turn

    def give(self) -> None:
        """Give back a place."""
        self._free += 1
        # Requests that are answered at once (in memory) come back here while they are sent: one loop is enough.
        if self._isGiving:
            return
        self._isGiving = True
        try:
            while self._free and self._waiting:
                _, _, turn = heappop(self._waiting)
                # One that was cancelled has been called too.
                if not turn.called:
                    self._free -= 1
                    turn.callback(None)
        finally:
            self._isGiving = False
