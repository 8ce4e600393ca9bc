"""
The requests that are answered: each is counted, and added to the access log and, if it changes something, to the audit
log. A line never has a token or a value, and of the URL only the path, because a query may contain anything.

Requests that are refused before they are complete (a body that is too large, invalid HTTP) are counted too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.interfaces import IAddress
from twisted.web.server import Request

from ...util.parsing import validTraceparent
from ..limits import NO_HEADERS
from ..statistics import RequestStatistics
from .accesslog import LogFile

#: The route of all paths that are no resource.
OTHER = "other"
#: The route of requests that wait for events, whose times say nothing of how fast the registry is.
WAITING = "/events?wait"
#: The same of those that wait for a lock.
LOCK_WAITING = "/locks?wait"
#: The route of event streams.
STREAM = "/events/stream"
#: The code, as in nginx, of a request whose client was gone before it could be answered.
GONE = 499

# How many bytes of a path are logged, and how many characters of an id or key: all of one that is valid.
_LONGEST_PATH = 2_000
_LONGEST_OBJECT = 500
# Any text can be a method. These are counted under their names where the route is OTHER.
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})


def newTxnId() -> str:
    # As random as a UUID, whose making takes six microseconds instead of one.
    return os.urandom(16).hex()


@attrs.define
class RequestRecord:
    """
    A request that is being answered.

    :ivar started: when it had come in, in seconds.
    :ivar route: the path of its operation or page; empty if it is neither.
    :ivar change: the name of its operation if the audit log has it, else empty.
    :ivar object: the id, key or name of the object that the request is about; empty if it has none.
    :ivar user: empty until the request is authenticated; so is the tenant.
    :ivar isLate: whether it had to wait for something.
    :ivar isGone: whether the client has hung up.
    :ivar headers: headers of its response, whatever the response is.
    """

    request: Request
    txnId: str
    started: float
    route: str = ""
    change: str = ""
    object: str = ""
    user: str = ""
    tenant: str = ""
    isLate: bool = False
    isGone: bool = False
    headers: Mapping[str, str] = NO_HEADERS

    @property
    def traceparent(self) -> str | None:
        """The trace that the client has named, if it has."""
        return validTraceparent(self.request.getHeader("traceparent"))

    @property
    def name(self) -> str:
        """The request in a line of the log."""
        trace = self.traceparent
        return self.txnId if trace is None else f"{self.txnId} (traceparent {trace})"


@attrs.define(eq=False, slots=False)
class RequestLog:
    """Counts every response, and adds it to the access log and the audit log."""

    _accessLog: LogFile | None = None
    _auditLog: LogFile | None = None
    _seconds: Callable[[], float] = time.monotonic
    _wallClock: Callable[[], float] = time.time
    statistics: RequestStatistics = attrs.field(init=False, factory=RequestStatistics)

    def begin(self, request: Request) -> RequestRecord:
        """A request has come in, as a whole."""
        return RequestRecord(request, newTxnId(), self._seconds())

    def end(self, record: RequestRecord, code: int, result: int | None = None) -> None:
        """It is answered; *result* is the code that the response would have if the client were not gone."""
        request, seconds = record.request, self._seconds() - record.started
        self._count(request.method, record.route, code, seconds)
        user, tenant, txnId = record.user or None, record.tenant or None, record.txnId
        if self._accessLog is not None:
            fields = accessFields(
                request.getClientAddress(), request.method, request.path, code, txnId, user, tenant, seconds
            )
            trace = record.traceparent
            self._accessLog.add(self._wallClock(), fields if trace is None else {**fields, "traceparent": trace})
        if self._auditLog is not None and record.change:
            change = {
                "user": user,
                "tenant": tenant,
                "operation": record.change,
                "object": record.object[:_LONGEST_OBJECT] or None,
                "result": result or code,
                "txnId": txnId,
            }
            self._auditLog.add(self._wallClock(), change)

    def refused(self, method: bytes, path: bytes, route: str, address: IAddress, code: int, txnId: str) -> None:
        """Incoming data was refused before it was a request. Unknown parts are empty."""
        self._count(method, route, code, 0.0)
        if self._accessLog is not None:
            self._accessLog.add(self._wallClock(), accessFields(address, method, path, code, txnId))

    def _count(self, method: bytes, route: str, code: int, seconds: float) -> None:
        if not route:
            route = OTHER
            method = method if method in _METHODS else b"other"
        self.statistics.add(method, route, code, seconds)


def accessFields(
    address: IAddress,
    method: bytes,
    path: bytes,
    code: int,
    txnId: str,
    user: str | None = None,
    tenant: str | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """The content of a line of the access log. The seconds count from when the whole request was there."""
    return {
        "client": getattr(address, "host", None),
        "user": user,
        "tenant": tenant,
        "method": _text(method),
        "path": _text(path),
        "code": code,
        "milliseconds": round(seconds * 1000, 3),
        "txnId": txnId,
    }


def _text(raw: bytes) -> str | None:
    return raw[:_LONGEST_PATH].decode("utf-8", "backslashreplace") or None
