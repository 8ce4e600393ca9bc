"""
What the endpoints out of strings share: one client and one directory for each reactor and registry, which are there as
long as they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorCore

from ..client import Client
from ..settings import Settings, readSettings
from ..util.deferred import returnsDeferred, waitFor
from ..util.logs import Logger
from .directory import Directory

_Key = tuple[object, ...]
_log = Logger()


class Loan:
    """
    Somebody's use of what is shared, from :func:`borrow` to :meth:`release`.

    :ivar client: the :class:`~txserviceregistry.Client`.
    """

    def __init__(self, shared: _Shared, directory: Directory | None) -> None:
        self.client = shared.client
        self._shared = shared
        self._directory = directory
        self._atEnd: Callable[[], object] | None = None

    @property
    def directory(self) -> Directory:
        """The directory of all services; only for who has asked for it."""
        assert self._directory is not None
        return self._directory

    @property
    def reads(self) -> bool:
        """Whether this is a use of the directory."""
        return self._directory is not None

    @property
    def isOver(self) -> bool:
        """Whether all is closed, or being closed: there is something new to be borrowed then."""
        return self._shared.ending is not None

    def onEnd(self, leave: Callable[[], object]) -> None:
        """When everything is to be closed while this loan lasts, call *leave* first, and wait for its Deferred."""
        self._atEnd = leave

    def leave(self) -> Deferred[object]:
        """Do what has to be done before the client is closed."""
        return succeed(None) if self._atEnd is None else maybeDeferred(self._atEnd)

    def release(self) -> Deferred[None]:
        """
        Give back what was borrowed. Once is enough, and more does nothing.

        :return: fires when whatever is closed because of it is closed.
        """
        return self._shared.release(self)


class _Shared:
    """One client, and one directory while there are readers."""

    def __init__(self, client: Client, onEnd: Callable[[_Shared, Deferred[None]], None]) -> None:
        self.client = client
        self.ending: Deferred[None] | None = None
        self._onEnd = onEnd
        self._loans: list[Loan] = []
        self._directory: Directory | None = None

    def lend(self, reads: bool) -> Loan:
        if reads and self._directory is None:
            self._directory = Directory(self.client)
            self._directory.startService()
        loan = Loan(self, self._directory if reads else None)
        self._loans.append(loan)
        return loan

    def release(self, loan: Loan) -> Deferred[None]:
        if self.ending is not None:
            return waitFor(self.ending)
        if loan not in self._loans:
            return succeed(None)
        self._loans.remove(loan)
        if not self._loans:
            return self.end()
        if not any(other.reads for other in self._loans):
            return self._stopDirectory()
        return succeed(None)

    def end(self) -> Deferred[None]:
        """Close everything, after all who use it have left."""
        self.ending = ending = Deferred[None]()
        self._onEnd(self, ending)
        self._end().chainDeferred(ending)
        return waitFor(ending)

    @returnsDeferred
    async def _end(self) -> None:
        try:
            await gatherResults([loan.leave().addErrback(_logFailure) for loan in self._loans])
            await self._stopDirectory()
        finally:
            await self.client.close()

    @returnsDeferred
    async def _stopDirectory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            await maybeDeferred(directory.stopService)


def _logFailure(failure: Any) -> None:
    _log.failure("Leaving failed", failure)


class _OnReactor:
    """All that is shared on one reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._open: dict[_Key, _Shared] = {}
        self._ending: list[Deferred[None]] = []
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            # Who runs a twistd application stops its servers in the same phase; those are waited for.
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self.close)

    def borrow(self, settings: Settings, reads: bool) -> Loan:
        key = (
            settings.username,
            # A client takes up the key that the file has by now.
            settings.raxrcPath or settings.apiKey,
            settings.baseUrls,
            settings.authUrls,
            settings.region,
            settings.verify,
            settings.caFile,
        )
        shared = self._open.get(key)
        if shared is None:
            client = Client(reactor=self._reactor, settings=settings)

            def onEnd(shared: _Shared, ending: Deferred[None]) -> None:
                del self._open[key]
                self._ending.append(ending)
                ending.addBoth(ended, ending)

            def ended(result: Any, ending: Deferred[None]) -> Any:
                self._ending.remove(ending)
                self._forgetIfUnused()
                return result

            shared = self._open[key] = _Shared(client, onEnd)
        return shared.lend(reads)

    @returnsDeferred
    async def close(self) -> None:
        for shared in list(self._open.values()):
            shared.end().addErrback(_logFailure)
        await gatherResults([waitFor(ending) for ending in list(self._ending)])

    def _forgetIfUnused(self) -> None:
        if self._open or self._ending:
            return
        _reactors.pop(self._reactor, None)
        if self._trigger is not None:
            trigger, self._trigger = self._trigger, None
            try:
                self._reactor.removeSystemEventTrigger(trigger)
            except (KeyError, ValueError):
                # The shutdown that it was for has begun, so that it is not there any more.
                pass


_reactors: WeakKeyDictionary[Any, _OnReactor] = WeakKeyDictionary()


def borrow(reactor: Any, *, reads: bool = False) -> Loan:
    """
    Use the client, and if you like the directory, of the registry that this machine's settings name.

    :param reactor: the reactor.
    :param reads: whether the directory is wanted too.
    :raises InvalidSettings: if a setting can't be used, or there are no credentials.
    """
    settings = readSettings()
    onReactor = _reactors.get(reactor)
    if onReactor is None:
        onReactor = _OnReactor(reactor)
    loan = onReactor.borrow(settings, reads)
    _reactors[reactor] = onReactor
    return loan


def closeShared(reactor: Any = None) -> Deferred[None]:
    """
    Close what the endpoints out of strings share: for the end of a test that has used such strings. (A reactor that
    shuts down does it by itself.)

    Servers out of ``registered:…`` that still listen leave the registry first; their ports stay open. Nothing is closed
    under one that is just leaving. Endpoints that are used again after it begin anew.

    :param reactor: the reactor; the global one if it is not given.
    :return: fires with ``None`` when nothing is left on the reactor.
    """
    if reactor is None:
        from twisted.internet import reactor
    onReactor = _reactors.get(reactor)
    return succeed(None) if onReactor is None else onReactor.close()
