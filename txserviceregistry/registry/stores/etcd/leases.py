"""
The leases of services: kept alive together, and asked what is left of them.

A lease is evidence of a service's last heartbeat, on whichever node that was. It is granted for the heartbeat timeout
and a margin, so that it outlives the deadline by the margin, and what is left of it shows where the deadline is.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from .gateway import KEEP_ALIVES, Etcd

#: Seconds that a lease is granted beyond the heartbeat timeout. Two, so that what etcd returns in whole seconds
#: distinguishes the second after the deadline from the lease's end.
MARGIN = 2
#: Requests under way at once; heartbeats that come meanwhile share the next one.
_REQUESTS = 2
_LEASE_BITS = 62


def newLease() -> int:
    """An id for a lease that no other has."""
    return secrets.randbits(_LEASE_BITS) | 1


def secondsLeft(left: int, granted: int, timeout: int) -> float:
    """
    How long it is to the deadline at the least.

    :param left: whole seconds that are left of the lease, rounded down; below zero if it is gone.
    :param granted: seconds that it was granted; more than was asked for where etcd's elections take long.
    :param timeout: the heartbeat timeout in seconds.
    :return: seconds; 0 where the deadline is less than one second away; below zero when it has surely passed.
    """
    return -1.0 if left < 0 else float(left - (granted - timeout))


class KeepAlives:
    """
    Keeps leases alive; those that fall due together share requests.

    :param etcd: whose leases they are.
    :param clock: the reactor.
    """

    def __init__(self, etcd: Etcd, clock: IReactorTime) -> None:
        self._etcd = etcd
        self._clock = clock
        # What waits for each lease's turn: a heartbeat that is sent again because the first one waits goes with it.
        self._waiting: dict[int, list[Deferred[bool]]] = {}
        self._underWay = 0
        self._isDue = False
        self._isSending = False

    def keep(self, lease: int) -> Deferred[bool]:
        """
        Let a lease begin anew.

        :return: fires with whether it was there.
        """
        kept: Deferred[bool] = Deferred()
        self._waiting.setdefault(lease, []).append(kept)
        if not self._isDue and self._underWay < _REQUESTS:
            # The next turn: what comes in this one goes along.
            self._isDue = True
            self._clock.callLater(0, self._send)
        return kept

    def _send(self) -> None:
        self._isDue = False
        if self._isSending:
            # The loop below goes on by itself: calling it from within overflows the stack when thousands wait, and
            # all of them are refused at once.
            return
        self._isSending = True
        while self._waiting and self._underWay < _REQUESTS:
            leases = list(islice(self._waiting, KEEP_ALIVES))
            group = [self._waiting.pop(lease) for lease in leases]
            self._underWay += 1
            self._etcd.keepAlive(leases).addBoth(self._answered, group)
        self._isSending = False

    def _answered(self, result: list[bool] | Failure, group: Sequence[Sequence[Deferred[bool]]]) -> None:
        self._underWay -= 1
        self._send()
        for number, waiting in enumerate(group):
            for kept in waiting:
                if isinstance(result, Failure):
                    kept.errback(result)
                else:
                    kept.callback(result[number])
