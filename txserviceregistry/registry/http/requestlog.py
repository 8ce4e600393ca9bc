"""The requests that are answered: each is counted and added to the access log, each write to the audit log too."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogLevel
from twisted.web.server import Request

from ...util.deferred import DaemonThreadPool, returnsDeferred, waitFor
from ...util.fields import validTraceparent
from ...util.files import checkPath
from ...util.logs import Logger, Outage
from ..limits import NO_HEADERS
from ..statistics import RouteStatistics

#: The route of all paths that are no resource.
OTHER = "other"
#: The routes of requests that wait for events and for a lock, whose times say nothing of how fast the registry is.
WAITING = "/events?wait"
LOCK_WAITING = "/locks?wait"
#: The route of event streams.
STREAM = "/events/stream"
#: The code, as in nginx, of a request whose client was gone before it could be answered.
GONE = 499

#: The target of a log that stands for the standard output.
STDOUT = "-"
#: Seconds from one write to the next.
FLUSH_SECONDS = 1.0
#: How many lines may wait to be written; more of them are lost.
MOST_WAITING = 50_000
#: Seconds that the end of a registry waits for its last lines.
END_SECONDS = 2.0

# How many bytes of a path are logged, and how many characters of an id or key: all of one that is valid.
_LONGEST_PATH = 2_000
_LONGEST_OBJECT = 500
# Any text can be a method. These are counted under their names.
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})
_TOO_SLOW = "writing is too slow"


def newTxnId() -> str:
    # As random as a UUID, whose making takes six microseconds instead of one.
    return os.urandom(16).hex()


@attrs.define(repr=False)
class RequestRecord:
    """A request that is being answered."""

    request: Any
    txnId: str
    started: float
    route: str = ""  # the path of its operation or page; empty if it is neither
    change: str = ""  # the name of its operation if the audit log has it
    object: str = ""  # the id, key or name of the object that it is about, if it has one
    user: str = ""
    tenant: str = ""
    isLate: bool = False  # it had to wait for something
    isGone: bool = False  # the client has hung up
    headers: Mapping[str, str] = NO_HEADERS  # of its response, whatever the response is

    @property
    def traceparent(self) -> str | None:
        return validTraceparent(self.request.getHeader("traceparent"))

    @property
    def name(self) -> str:
        trace = self.traceparent
        return self.txnId if trace is None else f"{self.txnId} (traceparent {trace})"


@attrs.define(eq=False, slots=False)
class RequestLog:
    """A line never has a token or a value, and of the URL only the path, because a query may contain anything."""

    accessLog: LogFile | None = None
    auditLog: LogFile | None = None
    _seconds: Callable[[], float] = time.monotonic
    _wallClock: Callable[[], float] = time.time
    # By method and route (one for all paths that clients make up).
    routes: dict[tuple[bytes, str], RouteStatistics] = attrs.field(
        init=False, factory=partial(defaultdict, RouteStatistics)
    )

    def begin(self, request: Request) -> RequestRecord:
        return RequestRecord(request, newTxnId(), self._seconds())

    def end(self, record: RequestRecord, code: int, result: int | None = None) -> None:
        """It is answered; *result* is the code that the response would have if the client were not gone."""
        request = record.request
        self._add(record, code, request.method, request.path, request.getClientAddress())
        if self.auditLog is not None and record.change:
            change = {
                "user": record.user or None,
                "tenant": record.tenant or None,
                "operation": record.change,
                "object": record.object[:_LONGEST_OBJECT] or None,
                "result": result or code,
                "txnId": record.txnId,
            }
            self.auditLog.add(self._wallClock(), change)

    def refused(self, method: bytes, path: bytes, route: str, address: IAddress, code: int, txnId: str) -> None:
        """Incoming data was refused before it was a request. Unknown parts are empty."""
        self._add(RequestRecord(None, txnId, self._seconds(), route), code, method, path, address)

    def _add(self, record: RequestRecord, code: int, method: bytes, path: bytes, client: IAddress) -> None:
        seconds = self._seconds() - record.started
        counted = method if method in _METHODS else b"other"
        self.routes[counted, record.route or OTHER].add(code, seconds)
        if self.accessLog is not None:
            fields: dict[str, Any] = {
                "client": getattr(client, "host", None),
                "user": record.user or None,
                "tenant": record.tenant or None,
                "method": method[:_LONGEST_PATH].decode("utf-8", "backslashreplace") or None,
                "path": path[:_LONGEST_PATH].decode("utf-8", "backslashreplace") or None,
                "code": code,
                "milliseconds": round(seconds * 1000, 3),
                "txnId": record.txnId,
            }
            if record.request is not None and record.traceparent is not None:
                fields["traceparent"] = record.traceparent
            self.accessLog.add(self._wallClock(), fields)


def timeText(moment: float) -> str:
    """A time, in seconds since the epoch, as in the lines of logs."""
    whole, milliseconds = divmod(int(moment * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def lineOf(moment: float, fields: Mapping[str, Any]) -> str:
    """A line, without its end. Text from a client is escaped: all of it is printable ASCII."""
    return json.dumps({"time": timeText(moment), **fields})


class LogFile:
    """Writes lines of JSON to a path or, if *target* is ``-``, the standard output. Those that it can't are *lost*."""

    # A thread writes what has gathered in a second, so that no request waits for a disk or a pipe. The file is opened
    # for each write, so that it can be rotated by moving it away.

    _log = Logger()

    def __init__(self, target: str, reactor: Any, name: str = "access log") -> None:
        self.lost = 0
        self._target = target
        self._reactor = reactor
        self._waiting: list[tuple[float, Mapping[str, Any]]] = []
        self._isTorn = False
        self._loop = LoopingCall(self._write)
        self._loop.clock = reactor
        # It keeps no process from ending, though writing to a pipe may never return.
        self._pool = DaemonThreadPool(0, 1, name="txserviceregistry log")
        self._pool.start()
        begins = "The {name} {target} can't be written: {reason}. Requests go on; its lines are lost"
        ends = "The {name} {target} can be written again; {lost} of its lines are lost"
        self._outage = Outage(self._log, reactor, begins, ends, level=LogLevel.error, name=name, target=target)

    def start(self) -> None:
        """Begin to write. A file that can't be opened is logged at once."""
        self._loop.start(FLUSH_SECONDS)

    def add(self, moment: float, fields: Mapping[str, Any]) -> None:
        """Write a line with these fields, and the moment in seconds since the epoch, within a second or so."""
        if len(self._waiting) >= MOST_WAITING:
            self._lose(1, _TOO_SLOW)
        else:
            self._waiting.append((moment, fields))

    @returnsDeferred
    async def stop(self) -> None:
        """Write all lines, in two seconds at most."""
        self._loop.stop()
        try:
            await waitFor(self._write()).addTimeout(END_SECONDS, self._reactor)
        except TimeoutError:
            self._outage.failed(reason=_TOO_SLOW)
        else:
            self._pool.stop()

    @returnsDeferred
    async def _write(self) -> None:
        lines, self._waiting = self._waiting, []
        try:
            await self.inThread(partial(self._append, lines))
        except OSError as error:
            self._lose(len(lines), error.strerror or str(error))
        except Exception:
            self.lost += len(lines)
            self._log.failure("Internal error while writing the log {target}", target=self._target)
        else:
            self._outage.succeeded(lost=self.lost)

    def _lose(self, count: int, reason: str) -> None:
        self.lost += count
        self._outage.failed(reason=reason)

    def inThread(self, work: Callable[[], None]) -> Deferred[None]:
        """Do *work* in the thread, after all that was given before."""
        return deferToThreadPool(self._reactor, self._pool, work)

    def _append(self, lines: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
        # After half a line, whatever follows begins on a line of its own.
        data = b"\n" if self._isTorn and lines else b""
        data += "".join([lineOf(*line) + "\n" for line in lines]).encode("ascii")
        file = 1
        if self._target != STDOUT:
            # Checked first: a file that is there then, and that another user can't replace, stays in its place.
            exclusive = 0 if os.path.lexists(self._target) else os.O_EXCL
            checkPath(self._target)
            # Other users must not read the addresses of clients.
            file = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | exclusive, 0o600)
        try:
            while data:
                written = os.write(file, data)
                self._isTorn = not data[:written].endswith(b"\n")
                data = data[written:]
        finally:
            if file != 1:
                os.close(file)
