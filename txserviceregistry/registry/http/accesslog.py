"""
The access log: a line of JSON for each request.

It tells who asked for what, and what came of it: never a token, never a value, and of the URL the path alone, because
anything may stand in a query. Lines are gathered for a second and written by a thread of their own, so that no request
ever waits for a disk or a pipe; where they can't be written they are lost, and the requests go on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from ...util.deferred import returnsDeferred, waitFor
from ...util.logs import Logger
from ...util.ownership import checkPath

#: The target that stands for the standard output.
STDOUT = "-"

#: Seconds that a line waits at most before it is handed over to be written.
FLUSH_SECONDS = 1.0
#: How many lines may wait while the target takes none; those that are too many are lost.
MOST_WAITING = 50_000
#: Of a path that is longer, so many bytes are told.
LONGEST_PATH = 2_000
#: Seconds that the end of a registry waits for its last lines.
END_SECONDS = 2.0

_STDOUT_FILE = 1


@attrs.frozen(slots=True)
class Access:
    """
    What a line tells.

    :ivar moment: when it was answered, in seconds since the epoch.
    :ivar address: the client's.
    :ivar tenant: who asked; empty if no auth token has told.
    :ivar path: as the client wrote it.
    :ivar seconds: how long the answer took, from the moment that the request was there.
    """

    moment: float
    address: IAddress
    tenant: str
    method: bytes
    path: bytes
    code: int
    seconds: float
    txnId: str


def line(access: Access) -> str:
    """
    One line of the log, without its end. Whatever a client sends is escaped: all of it is printable ASCII.
    """
    whole, milliseconds = divmod(int(access.moment * 1000), 1000)
    return json.dumps(
        {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z",
            "client": getattr(access.address, "host", None),
            "tenant": access.tenant or None,
            "method": _text(access.method),
            "path": _text(access.path),
            "code": access.code,
            "milliseconds": round(access.seconds * 1000, 3),
            "txnId": access.txnId,
        }
    )


def _text(raw: bytes) -> str | None:
    # What is not UTF-8 is told as well as it can be.
    return raw[:LONGEST_PATH].decode("utf-8", "backslashreplace") or None


class _File:
    """
    What lines are written to; used in the thread.

    The file is opened anew when it is no longer the one under its name: so it can be rotated by moving it away.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._file: int | None = _STDOUT_FILE if target == STDOUT else None
        self._isTorn = False

    def write(self, accesses: Sequence[Access]) -> None:
        """
        :raises OSError: if not all could be written.
        """
        file = self._opened()
        # After half a line, whatever follows begins on a line of its own.
        data = b"\n" if self._isTorn and accesses else b""
        data += "".join([line(access) + "\n" for access in accesses]).encode("ascii")
        try:
            while data:
                written = os.write(file, data)
                self._isTorn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None and self._target != STDOUT:
            file, self._file = self._file, None
            os.close(file)

    def _opened(self) -> int:
        if self._target != STDOUT and self._file is not None and not self._isInPlace(self._file):
            self.close()
            self._isTorn = False
        if self._file is None:
            self._file = self._open()
        return self._file

    def _open(self) -> int:
        # Looked at first: what is there then, and is nobody else's, nobody else can put something else in place of.
        exclusive = 0 if os.path.lexists(self._target) else os.O_EXCL
        checkPath(self._target)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        # Addresses are nobody else's business.
        return os.open(self._target, flags | exclusive, 0o600)

    def _isInPlace(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._target), os.fstat(file))
        except FileNotFoundError:
            return False


class ILogThread(Protocol):
    """Where something that may block is done; see :class:`LogThread`."""

    def run(self, work: Callable[[], None]) -> Deferred[None]: ...

    def stop(self) -> None: ...


class AccessLog:
    """
    Writes the log.

    :param target: the path of a file, which is added to; or ``-`` for the standard output.
    :param clock: the reactor.
    :param thread: where it is written; it ends with the log.
    :ivar lost: how many lines could not be written.
    """

    _log = Logger()

    def __init__(self, target: str, clock: IReactorTime, thread: ILogThread) -> None:
        self.lost = 0
        self._target = target
        self._clock = clock
        self._thread = thread
        self._file = _File(target)
        self._waiting: list[Access] = []
        self._next: IDelayedCall | None = None
        self._writing: Deferred[None] = succeed(None)
        self._lostBefore: int | None = None
        self._isStopped = False

    def start(self) -> None:
        """Open the file, so that the operations log tells at once if that can't be done."""
        self._flush()

    def add(self, access: Access) -> None:
        """Tell of a request, within a second or so."""
        if len(self._waiting) >= MOST_WAITING:
            self.lost += 1
            self._trouble("writing is too slow")
            return
        self._waiting.append(access)
        self._schedule()

    @returnsDeferred
    async def stop(self) -> None:
        """
        :return: fires when all lines are written and the file is closed, or after two seconds.
        """
        self._isStopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        try:
            await waitFor(Deferred.fromCoroutine(self._finish())).addTimeout(END_SECONDS, self._clock)
        except TimeoutError:
            self._trouble("writing is too slow")

    def _schedule(self) -> None:
        if self._next is None and self._writing.called and not self._isStopped:
            self._next = self._clock.callLater(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._next = None
        self._writing = Deferred.fromCoroutine(self._write())
        self._writing.addCallback(lambda _: self._schedule() if self._waiting else None)

    async def _write(self) -> None:
        accesses, self._waiting = self._waiting, []
        try:
            await self._thread.run(partial(self._file.write, accesses))
        except OSError as error:
            self.lost += len(accesses)
            self._trouble(error.strerror or str(error))
        except Exception:
            self.lost += len(accesses)
            self._log.failure("Internal error while writing the access log")
        else:
            self._recovered()

    async def _finish(self) -> None:
        await waitFor(self._writing)
        await self._write()
        await self._thread.run(self._file.close)
        self._thread.stop()

    def _trouble(self, reason: str) -> None:
        if self._lostBefore is None:
            self._lostBefore = self.lost
            self._log.error(
                "The access log {target} can't be written: {reason}. Requests go on; its lines are lost",
                target=self._target,
                reason=reason,
            )

    def _recovered(self) -> None:
        if self._lostBefore is not None:
            self._lostBefore = None
            self._log.info(
                "The access log {target} can be written again; {lost} of its lines are lost by now",
                target=self._target,
                lost=self.lost,
            )


class _Daemon(Thread):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "daemon": True})


class _DaemonPool(ThreadPool):
    threadFactory: type[Thread] = _Daemon


class LogThread:
    """
    A thread for one log. It keeps no process from ending: a pipe that nobody reads may hold it for ever.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = _DaemonPool(0, 1, name="txserviceregistry access log")
        self._pool.start()

    def run(self, work: Callable[[], None]) -> Deferred[None]:
        """
        :return: fires when *work* has been done in the thread, after all that was given before.
        """
        return deferToThreadPool(self._reactor, self._pool, work)

    def stop(self) -> None:
        """End; nothing is under way any more."""
        self._pool.stop()
