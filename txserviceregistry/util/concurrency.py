"""
Turns: what a great many that ask at once need (heartbeats to a registry, a registry's requests to etcd), so that they
don't keep each other from getting anywhere.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

from twisted.internet.defer import Deferred, succeed


class PrioritySemaphore:
    """
    So many at once may ask a server; the others wait, and the one with the nearest deadline is next.

    The time of a request begins when it is made. Ten thousand that are made together spend it on waiting for each
    other, so that all of them fail, and are made again together. Those that wait here have not begun.

    :param most: how many at once: enough to keep the connections busy, and few enough to be made, and answered, well
        within the time of a request.
    """

    def __init__(self, most: int = 100) -> None:
        self._free = most
        self._isGiving = False
        self._waiting: list[tuple[float, int, Deferred[None]]] = []
        # Among those with the same deadline, who came first goes first.
        self._order = count()

    def take(self, deadline: float) -> Deferred[None]:
        """
        Wait for a turn.

        :param deadline: in seconds of one clock for all; infinity for who has none.
        :return: fires with ``None`` when it has come; :meth:`give` it back then. May be cancelled before.
        """
        if self._free and not self._isGiving:
            self._free -= 1
            return succeed(None)
        turn: Deferred[None] = Deferred()
        heappush(self._waiting, (deadline, next(self._order), turn))
        return turn

    def give(self) -> None:
        """End a turn."""
        self._free += 1
        # Requests that are answered at once (in memory) come back here while they are made: one loop is enough.
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
