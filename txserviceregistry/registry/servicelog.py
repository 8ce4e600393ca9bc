"""
A bounded number of log lines about services and locks.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.logs import Logger


class ServiceLog:
    """
    Logs one kind of event, in one line a second at most: ``Services registered: 123456/web1, 123456/web2 and 7 more``.

    :param clock: the reactor.
    :param what: the beginning of the line, such as ``Services registered``.
    """

    #: How many services are named in a line.
    NAMED = 5
    #: Seconds from one line to the next.
    INTERVAL = 1.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, what: str) -> None:
        self._clock = clock
        self._text = f"{what}: {{names}}"
        self._named: list[str] = []
        self._count = 0
        self._next = float("-inf")
        self._writing: IDelayedCall | None = None

    def add(self, tenant: str, id: str) -> None:
        """Note a service. The line follows after :meth:`flush`."""
        self._count += 1
        if len(self._named) < self.NAMED:
            self._named.append(f"{tenant}/{id.removeprefix('/')}")

    def flush(self) -> None:
        """Log what was added, as soon as a second has passed since the last line."""
        if self._writing is None:
            wait = self._next - self._clock.seconds()
            if wait > 0:
                self._writing = self._clock.callLater(wait, self._write)
            else:
                self._write()

    def stop(self) -> None:
        """Log the rest now, and leave nothing on the reactor."""
        if self._writing is not None:
            self._writing.cancel()
        self._write()

    def _write(self) -> None:
        self._writing = None
        if not self._count:
            return
        self._next = self._clock.seconds() + self.INTERVAL
        more = self._count - len(self._named)
        names = ", ".join(self._named) + (f" and {more} more" if more else "")
        self._log.info(self._text, names=names, count=self._count)
        self._named, self._count = [], 0
