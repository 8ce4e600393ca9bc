"""A bounded number of log lines about services and locks, and warnings when unusually many services expire."""

from __future__ import annotations

from collections.abc import Callable, Collection

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.deferred import cancel
from ..util.logs import Logger
from .model import isLockScope, tenantOf


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

    def add(self, *names: tuple[str, str]) -> None:
        """Log these scopes and ids, as soon as a second has passed since the last line."""
        self._added += [f"{tenantOf(scope)}/{id.removeprefix('/')}" for scope, id in names]
        wait = self._next - self._clock.seconds()
        if wait <= 0:
            self._write()
        elif self._added and self._writing is None:
            self._writing = self._clock.callLater(wait, self._write)

    def stop(self) -> None:
        """Log the rest now, and leave nothing on the reactor."""
        cancel(self._writing)
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


@attrs.define(slots=False)
class ExpiryLog:
    """
    Logs the services and locks that expire, and warns when there are unusually many services, which rarely means that
    so many have stopped. Services that lose their network expire one by one, over the length of their timeouts; so what
    counts is their number within a minute.
    """

    #: Seconds that are looked at together.
    WINDOW = 60.0
    #: How many services have to expire, and which part of all, before there is a warning.
    FEWEST = 20
    SHARE = 0.1

    _log = Logger()

    _clock: IReactorTime
    _population: Callable[[], int]
    _new: list[tuple[str, str]] = attrs.field(init=False, factory=list)
    _began: float = attrs.field(init=False, default=float("-inf"))

    def __attrs_post_init__(self) -> None:
        self._services = ServiceLog(self._clock, "Services expired")
        self._locks = ServiceLog(self._clock, "Locks expired")

    def add(self, names: Collection[tuple[str, str]], isLast: bool) -> None:
        """Note scopes and ids of some that have expired. The lines follow with the last ones for now."""
        self._new += names
        if not isLast:
            return
        services, locks = ([name for name in self._new if isLockScope(name[0]) == isLock] for isLock in (False, True))
        self._new = []
        self._services.add(*services)
        self._locks.add(*locks)
        if not services:
            return
        now, new = self._clock.seconds(), len(services)
        if now - self._began >= self.WINDOW:
            self._began, self._count, self._before = now, 0, self._population() + new
            # The number at which the next warning is due.
            self._threshold = max(self.FEWEST, self.SHARE * self._before)
        self._count += new
        if self._count >= self._threshold:
            # Some of them may have been registered since.
            self._before = max(self._before, self._population() + self._count)
            self._threshold = 2 * self._count
            self._log.warn(
                "{count} of {before} services expired within {seconds:.0f} s; "
                "check the network between them and this registry, and their machines",
                count=self._count,
                before=self._before,
                seconds=max(now - self._began, 1.0),
            )

    def stop(self) -> None:
        self.add((), isLast=True)
        self._services.stop()
        self._locks.stop()
