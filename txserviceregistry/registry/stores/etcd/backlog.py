"""
Heartbeats that a node has taken and that are not in etcd yet, and what the nodes report to each other about them.

A heartbeat counts from when a node took it. While more is asked of etcd than it can do, heartbeats wait for it, and
a lease may run out before the heartbeat that was in time for it gets there. So each node reports in its key, all the
time, how long its oldest one has been waiting. While that is too long on any of them, or unknown, a lease that is gone
is not evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import attrs
from twisted.internet.interfaces import IReactorTime

from ....util.logs import Logger


@attrs.frozen
class _Report:
    """
    What another node has reported.

    :ivar received: when, in seconds of the clock.
    :ivar seconds: how long its oldest heartbeat had been waiting then; 0 if none was.
    """

    received: float
    seconds: float


class Backlog:
    """
    How long heartbeats wait for etcd, on this node and on the others.

    :param clock: the reactor.
    :param name: this node's.
    """

    #: Seconds of waiting after which leases are not evidence. Their margin is two, of which the next report of a node
    #: may take the other one.
    LIMIT = 1.0
    #: Seconds without this node's own reports, which come back to it as those of the others come, after which nothing
    #: is known of these.
    DEAF = 1.0
    #: Seconds for which a report is valid, if no other follows: of a node that is not behind, and of one that is. A
    #: node that is gone takes no heartbeats; one that is behind may be slow to report that it still is.
    FRESH = 1.2
    LASTING = 5.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, name: str) -> None:
        self._clock = clock
        self._name = name
        self._numbers = count()
        # When each was taken; the oldest is the first.
        self._waiting: dict[int, float] = {}
        self._reports: dict[str, _Report] = {}
        self._ownReceived: float | None = None
        self._isLogged = False

    def begin(self) -> int:
        """
        A heartbeat has been taken.

        :return: its number, for :meth:`end`.
        """
        number = next(self._numbers)
        self._waiting[number] = self._clock.seconds()
        return number

    def end(self, number: int) -> None:
        """
        A heartbeat is in etcd, or has been refused.

        :param number: what :meth:`begin` gave for it.
        """
        del self._waiting[number]

    def report(self) -> float:
        """
        What this node reports: how many seconds its oldest heartbeat has been waiting; 0 if none is. When that is too
        long, it is logged.
        """
        seconds = self._seconds()
        if seconds > self.LIMIT and not self._isLogged:
            self._isLogged = True
            self._log.warn(
                "etcd overloaded: heartbeats have waited for {seconds:.1f} s; no service expires meanwhile",
                seconds=seconds,
            )
        elif not seconds:
            self._isLogged = False
        return seconds

    def _seconds(self) -> float:
        for began in self._waiting.values():
            return max(0.0, self._clock.seconds() - began)
        return 0.0

    def listen(self) -> None:
        """From now on the reports of all nodes come in, this one's too."""
        self._ownReceived = self._clock.seconds()

    def received(self, node: str, seconds: float) -> None:
        """
        A node has reported.

        :param node: its name.
        :param seconds: its :meth:`report`.
        """
        now = self._clock.seconds()
        if node == self._name:
            # It knows its own state better by now.
            self._ownReceived = now
        else:
            self._reports[node] = _Report(now, seconds)

    def gone(self, node: str) -> None:
        """A node is gone."""
        self._reports.pop(node, None)

    def receivedAll(self, reports: Mapping[str, float]) -> None:
        """These are all the nodes that there are, with the last report of each."""
        self._reports.clear()
        for node, seconds in reports.items():
            self.received(node, seconds)

    @property
    def mayBeLong(self) -> bool:
        """Whether a heartbeat that was in time may have waited, on whichever node, for most of a lease's margin."""
        now = self._clock.seconds()
        if self._ownReceived is not None and now - self._ownReceived > self.DEAF:
            return True
        return self._seconds() > self.LIMIT or any(self._mayBeBehind(each, now) for each in self._reports.values())

    def _mayBeBehind(self, report: _Report, now: float) -> bool:
        # What waited then may still be waiting.
        age = now - report.received
        isValid = age <= (self.LASTING if report.seconds > self.LIMIT else self.FRESH)
        return isValid and report.seconds > 0 and report.seconds + age > self.LIMIT
