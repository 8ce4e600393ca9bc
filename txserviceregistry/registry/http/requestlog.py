"""
The one place where every answer is noticed: it is counted, and the access log tells of it.

What is answered before a request is whole (a body that is too large, what is no HTTP) is noticed here too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from random import Random

import attrs
from twisted.internet.interfaces import IAddress
from twisted.web.server import Request

from ..limits import NO_HEADERS
from ..statistics import RequestStatistics
from .accesslog import Access, AccessLog

#: What stands for every route that is none.
OTHER = "other"
#: The route of those who wait for events: they are answered when there are some, which says nothing of how fast the
#: registry is.
WAITING = "/events?wait"
#: The code of a request whose client had gone away before it could be answered: nobody got one. (nginx began this.)
GONE = 499

# Any text can be a method. These have names of their own where they ask for what is not there.
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})
_OTHER_METHOD = b"other"

# Not those of the module `random`, which the application may seed, and whose sequence is its own.
_random = Random()
_getrandbits = _random.getrandbits
# A process that goes into the background is a copy, which would go on with the same ids.
os.register_at_fork(after_in_child=_random.seed)


def newTxnId() -> str:
    """An id for a request, which no other request has."""
    # A random UUID's worth, without the seven microseconds that making one takes. Nobody gains anything by a guess.
    return f"{_getrandbits(128):032x}"


@attrs.define
class RequestRecord:
    """
    A request that is being answered, and what has been found out about it so far.

    :ivar txnId: its id.
    :ivar started: when it had come in, in seconds.
    :ivar route: the pattern of its path; empty until it is known.
    :ivar tenant: who asks; empty until an auth token has told.
    :ivar isLate: whether it had to wait for something.
    :ivar isGone: whether the client has hung up.
    :ivar headers: headers of its response, whatever the response is.
    """

    request: Request
    txnId: str
    started: float
    route: str = ""
    tenant: str = ""
    isLate: bool = False
    isGone: bool = False
    headers: Mapping[str, str] = NO_HEADERS


class RequestLog:
    """
    Notices requests and their answers.

    :param accessLog: is told of each; none if ``None``.
    :param seconds: what times are measured with; monotonic.
    :param wallClock: seconds since the epoch, for the log.
    :ivar statistics: counts them.
    """

    def __init__(
        self,
        accessLog: AccessLog | None = None,
        *,
        seconds: Callable[[], float] = time.monotonic,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        self.statistics = RequestStatistics()
        self._accessLog = accessLog
        self._seconds = seconds
        self._wallClock = wallClock

    def begin(self, request: Request) -> RequestRecord:
        """A request has come in, as a whole."""
        return RequestRecord(request, newTxnId(), self._seconds())

    def end(self, record: RequestRecord, code: int) -> None:
        """It is answered."""
        request = record.request
        seconds = self._seconds() - record.started
        self._count(request.method, record.route, code, seconds)
        if self._accessLog is not None:
            self._tell(
                request.method, request.path, request.getClientAddress(), record.tenant, code, seconds, record.txnId
            )

    def refused(self, method: bytes, path: bytes, route: str, address: IAddress, code: int, txnId: str) -> None:
        """
        Something was refused before it was a request.

        :param method: as far as it is known; empty if it is not.
        :param path: the same.
        :param route: see :class:`RequestRecord`.
        """
        self._count(method, route, code, 0.0)
        if self._accessLog is not None:
            self._tell(method, path, address, "", code, 0.0, txnId)

    def _count(self, method: bytes, route: str, code: int, seconds: float) -> None:
        if not route:
            route = OTHER
            method = method if method in _METHODS else _OTHER_METHOD
        self.statistics.add(method, route, code, seconds)

    def _tell(
        self, method: bytes, path: bytes, address: IAddress, tenant: str, code: int, seconds: float, txnId: str
    ) -> None:
        assert self._accessLog is not None
        self._accessLog.add(Access(self._wallClock(), address, tenant, method, path, code, seconds, txnId))
