"""
The client and the directory that endpoint strings share, one for each reactor and registry. They are closed with the
last reference to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorCore

from ..client import Client
from ..settings import Settings, readSettings
from ..util.deferred import returnsDeferred, waitFor
from ..util.logs import Logger
from .directory import Directory

_log = Logger()


class Reference:
    """A reference to the client, and to the directory if it was acquired with that, until :meth:`release`."""

    def __init__(self, shared: _Shared, directory: Directory | None) -> None:
        self.client = shared.client
        self.directory = directory
        self._shared = shared
        self._leave: Callable[[], object] | None = None

    @property
    def isOver(self) -> bool:
        """Whether everything is closed, or being closed, so that a new reference is needed."""
        return self._shared.ending is not None

    def onEnd(self, leave: Callable[[], object]) -> None:
        """Before everything is closed while this reference lasts, call *leave*, and wait for its Deferred."""
        self._leave = leave

    def leave(self) -> Deferred[object]:
        """Do what has to be done before the client is closed; what fails is logged."""
        left: Deferred[object] = succeed(None) if self._leave is None else maybeDeferred(self._leave)
        return left.addErrback(_logFailure)

    def release(self) -> Deferred[None]:
        """End it, once or more often; fires when everything that is closed because of it is closed."""
        return self._shared.release(self)


class _Shared:
    """One client, and one directory while a reference needs it."""

    def __init__(self, client: Client, onEnd: Callable[[Deferred[None]], None]) -> None:
        self.client = client
        self.ending: Deferred[None] | None = None
        self._onEnd = onEnd
        self._references: list[Reference] = []
        self._directory: Directory | None = None

    def acquire(self, hasDirectory: bool) -> Reference:
        if hasDirectory and self._directory is None:
            self._directory = Directory(self.client)
            self._directory.startService()
        reference = Reference(self, self._directory if hasDirectory else None)
        self._references.append(reference)
        return reference

    def release(self, reference: Reference) -> Deferred[None]:
        if self.ending is not None:
            return waitFor(self.ending)
        if reference not in self._references:
            return succeed(None)
        self._references.remove(reference)
        if not self._references:
            return self.end()
        if all(other.directory is None for other in self._references):
            return self._stopDirectory()
        return succeed(None)

    def end(self) -> Deferred[None]:
        """Close everything, after all references have left."""
        self.ending = ending = Deferred[None]()
        self._onEnd(ending)
        self._end().chainDeferred(ending)
        return waitFor(ending)

    @returnsDeferred
    async def _end(self) -> None:
        try:
            await gatherResults([reference.leave() for reference in self._references])
            await self._stopDirectory()
        finally:
            await self.client.close()

    @returnsDeferred
    async def _stopDirectory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            await directory.stopService()


def _logFailure(failure: Any) -> None:
    _log.failure("Closing a shared client failed", failure)


class _OnReactor:
    """All that is shared on one reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._open: dict[tuple[object, ...], _Shared] = {}
        self._ending: list[Deferred[None]] = []
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            # A twistd application stops its servers in the same phase; those are waited for.
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self.close)

    def acquire(self, settings: Settings, hasDirectory: bool) -> Reference:
        key = (
            settings.username,
            # A client rereads the key in a file.
            settings.raxrcPath or settings.apiKey,
            settings.baseUrls,
            settings.authUrls,
            settings.region,
            settings.verify,
            settings.caFile,
        )
        if key not in self._open:
            self._open[key] = _Shared(Client(reactor=self._reactor, settings=settings), partial(self._ends, key))
        return self._open[key].acquire(hasDirectory)

    @returnsDeferred
    async def close(self) -> None:
        for shared in list(self._open.values()):
            shared.end().addErrback(_logFailure)
        await gatherResults([waitFor(ending) for ending in list(self._ending)])

    def _ends(self, key: tuple[object, ...], ending: Deferred[None]) -> None:
        def ended(result: Any) -> Any:
            self._ending.remove(ending)
            if not self._open and not self._ending:
                self._forget()
            return result

        del self._open[key]
        self._ending.append(ending)
        ending.addBoth(ended)

    def _forget(self) -> None:
        _reactors.pop(self._reactor, None)
        trigger, self._trigger = self._trigger, None
        if trigger is not None:
            try:
                self._reactor.removeSystemEventTrigger(trigger)
            except (KeyError, ValueError):
                # The shutdown has begun, and has removed it.
                pass


_reactors: WeakKeyDictionary[Any, _OnReactor] = WeakKeyDictionary()


def acquire(reactor: Any, *, hasDirectory: bool = False) -> Reference:
    """
    Refer to the shared client of the registry that the settings name, and to its directory if that is needed too.

    :raises InvalidSettings: if a setting can't be used, or there are no credentials.
    """
    settings = readSettings()
    onReactor = _reactors.get(reactor) or _OnReactor(reactor)
    reference = onReactor.acquire(settings, hasDirectory)
    _reactors[reactor] = onReactor
    return reference


def closeShared(reactor: Any = None) -> Deferred[None]:
    """
    Close what endpoint strings share, at the end of a test that has used such strings. (A reactor that shuts down does
    it by itself.)

    Servers of ``registered:…`` that still listen are deregistered first; their ports stay open. A server that is being
    deregistered is waited for. Endpoints that are used again afterwards begin anew.

    :param reactor: the reactor; the global one if it is not given.
    :return: fires with ``None`` when nothing is left on the reactor.
    """
    if reactor is None:
        from twisted.internet import reactor
    onReactor = _reactors.get(reactor)
    return succeed(None) if onReactor is None else onReactor.close()
