"""A bounded number of log lines about services and locks."""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.logs import Logger


@attrs.define(slots=False)
class ServiceLog:
    """Logs *what* happens, in one line a second at most: ``Services registered: 1234/web1, 1234/web2 and 7 more``."""

    #: How many services are named in a line.
    NAMED = 5
    #: Seconds from one line to the next.
    INTERVAL = 1.0

    _log = Logger()

    _clock: IReactorTime
    _what: str
    _added: list[str] = attrs.field(init=False, factory=list)
    _next: float = attrs.field(init=False, default=float("-inf"))
    _writing: IDelayedCall | None = attrs.field(init=False, default=None)

    def add(self, tenant: str, id: str) -> None:
        self._added.append(f"{tenant}/{id.removeprefix('/')}")

    def flush(self) -> None:
        """Log what was added, as soon as a second has passed since the last line."""
        wait = self._next - self._clock.seconds()
        if wait <= 0:
            self._write()
        elif self._writing is None:
            self._writing = self._clock.callLater(wait, self._write)

    def stop(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._write()

    def _write(self) -> None:
        self._writing = None
        if not self._added:
            return
        self._next = self._clock.seconds() + self.INTERVAL
        more = f" and {len(self._added) - self.NAMED} more" if self._added[self.NAMED :] else ""
        names = ", ".join(self._added[: self.NAMED]) + more
        self._log.info("{what}: {names}", what=self._what, names=names, count=len(self._added))
        self._added = []
