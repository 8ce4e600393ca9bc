"""
How the access log and the audit log are written: a line of JSON for each request.

Lines are gathered for a second and written by a thread of their own, so that no request waits for a disk or a pipe.
Lines that can't be written are lost.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogLevel

from ...util.concurrency import DaemonThreadPool
from ...util.deferred import returnsDeferred, waitFor
from ...util.files import checkPath
from ...util.logs import Logger, Outage

#: The target that stands for the standard output.
STDOUT = "-"

#: Seconds that a line waits at most before it is handed over to be written.
FLUSH_SECONDS = 1.0
#: How many lines may wait to be written; more of them are lost.
MOST_WAITING = 50_000
#: Seconds that the end of a registry waits for its last lines.
END_SECONDS = 2.0

_TOO_SLOW = "writing is too slow"


def timeText(moment: float) -> str:
    """A time, in seconds since the epoch, as in the lines of logs."""
    whole, milliseconds = divmod(int(moment * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def lineOf(moment: float, fields: Mapping[str, Any]) -> str:
    """A line, without its end. Whatever a client sends is escaped: all of it is printable ASCII."""
    return json.dumps({"time": timeText(moment), **fields})


class _File:
    """
    The file that lines are written to; used in the thread. It is opened again when it is no longer the one under its
    name, so it can be rotated by moving it away.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._file: int | None = 1 if target == STDOUT else None
        self._isTorn = False

    def write(self, lines: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
        """Raises OSError if not all could be written."""
        file = self._opened()
        # After half a line, whatever follows begins on a line of its own.
        data = b"\n" if self._isTorn and lines else b""
        data += "".join([lineOf(*line) + "\n" for line in lines]).encode("ascii")
        try:
            while data:
                written = os.write(file, data)
                self._isTorn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._file is not None and self._target != STDOUT:
            file, self._file = self._file, None
            os.close(file)

    def _opened(self) -> int:
        if self._target != STDOUT and self._file is not None and not self._isInPlace(self._file):
            self.close()
            self._isTorn = False
        if self._file is None:
            # Checked first: a file that is there then, and that another user can't replace, stays in its place.
            exclusive = 0 if os.path.lexists(self._target) else os.O_EXCL
            checkPath(self._target)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            # Other users must not read the addresses of clients.
            self._file = os.open(self._target, flags | exclusive, 0o600)
        return self._file

    def _isInPlace(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._target), os.fstat(file))
        except FileNotFoundError:
            return False


class LogThread:
    """A thread for one log. It keeps no process from ending, though writing to a pipe may never return."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = DaemonThreadPool(0, 1, name="txserviceregistry log")
        self._pool.start()

    def run(self, work: Callable[[], None]) -> Deferred[None]:
        """Do *work* in the thread, after all that was given before."""
        return deferToThreadPool(self._reactor, self._pool, work)

    def stop(self) -> None:
        """End; nothing is under way any more."""
        self._pool.stop()


class LogFile:
    """
    Writes a log.

    :param target: the path of a file, which is added to; or ``-`` for the standard output.
    :param thread: writes the lines; it ends with the log.
    :ivar lost: how many lines could not be written.
    """

    _log = Logger()

    def __init__(self, target: str, clock: IReactorTime, thread: LogThread, name: str = "access log") -> None:
        self.lost = 0
        self._clock = clock
        self._thread = thread
        self._file = _File(target)
        self._name = name
        self._waiting: list[tuple[float, Mapping[str, Any]]] = []
        self._next: IDelayedCall | None = None
        self._writing: Deferred[None] = succeed(None)
        self._isStopped = False
        self._outage = Outage(
            self._log,
            clock,
            "The {name} {target} can't be written: {reason}. Requests go on; its lines are lost",
            "The {name} {target} can be written again; {lost} of its lines are lost",
            level=LogLevel.error,
            name=name,
            target=target,
        )

    def start(self) -> None:
        """Open the file, so that a file that can't be written is logged at once."""
        self._flush()

    def add(self, moment: float, fields: Mapping[str, Any]) -> None:
        """Write a line with these fields, and the moment in seconds since the epoch, within a second or so."""
        if len(self._waiting) >= MOST_WAITING:
            self._lose(1, _TOO_SLOW)
            return
        self._waiting.append((moment, fields))
        self._schedule()

    @returnsDeferred
    async def stop(self) -> None:
        """Write all lines and close the file, in two seconds at most."""
        self._isStopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        try:
            await waitFor(Deferred.fromCoroutine(self._finish())).addTimeout(END_SECONDS, self._clock)
        except TimeoutError:
            self._outage.failed(reason=_TOO_SLOW)

    def _schedule(self) -> None:
        if self._waiting and self._next is None and self._writing.called and not self._isStopped:
            self._next = self._clock.callLater(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._next = None
        self._writing = Deferred.fromCoroutine(self._write())
        self._writing.addCallback(lambda _: self._schedule())

    async def _write(self) -> None:
        lines, self._waiting = self._waiting, []
        try:
            await self._thread.run(partial(self._file.write, lines))
        except OSError as error:
            self._lose(len(lines), error.strerror or str(error))
        except Exception:
            self.lost += len(lines)
            self._log.failure("Internal error while writing the {name}", name=self._name)
        else:
            self._outage.succeeded(lost=self.lost)

    def _lose(self, count: int, reason: str) -> None:
        self.lost += count
        self._outage.failed(reason=reason)

    async def _finish(self) -> None:
        await waitFor(self._writing)
        await self._write()
        await self._thread.run(self._file.close)
        self._thread.stop()
