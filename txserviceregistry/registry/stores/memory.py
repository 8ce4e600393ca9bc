"""The store that keeps everything in memory: the tables of the SQLite store, without a file and without threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from ..statistics import StoreStatistics
from .interfaces import IOwnStore, StoreError, StoreUnavailable
from .sqlite.file import connectToMemory
from .sqlite.store import TableStore
from .sqlite.tables import Tables, Together

_C = TypeVar("_C")
_T = TypeVar("_T")


@implementer(IOwnStore)
class MemoryStore(TableStore):
    """
    See the module. Every Deferred that it returns has fired already. Its content lasts as long as the object. While it
    is *unavailable*, every operation except ``close`` fails with :class:`StoreUnavailable`.
    """

    name = "memory"

    def __init__(self, wallClock: Callable[[], float] = time.time) -> None:
        self.unavailable: bool = False
        self.statistics = StoreStatistics()
        self._isOpen = False
        self._tables = Tables(connectToMemory(), wallClock)
        self._lastSeen: dict[tuple[str, str, str], int] = {}

    def __del__(self) -> None:
        self._tables.close()  # newer versions of Python warn of connections that nothing has closed

    def open(self) -> Deferred[None]:
        self._isOpen = True
        return self.probe()

    def close(self) -> Deferred[None]:
        return execute(setattr, self, "_isOpen", False)

    def probe(self) -> Deferred[None]:
        return self._do(lambda tables: None, isWrite=False)

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        if not self.unavailable:
            self._lastSeen[tenant, id, incarnation] = lastSeen

    def _checked(self) -> Tables:
        """The tables, with the times of all heartbeats."""
        if self.unavailable:
            raise StoreUnavailable("the store is set to be unavailable")
        if not self._isOpen:
            raise StoreUnavailable("the store is not open")
        seen, self._lastSeen = self._lastSeen, {}
        self._tables.recordLastSeen(list(seen.items()))
        return self._tables

    def _submit(self, together: Together[_C, _T], change: _C, isWrite: bool = True) -> Deferred[_T]:
        def do() -> _T:
            tables = self._checked()
            with tables.transaction() if isWrite else nullcontext():
                (outcome,) = together(tables, [change])
                if isinstance(outcome, StoreError):
                    raise outcome
                return outcome

        return execute(do)
