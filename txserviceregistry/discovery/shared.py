"""
The client and the directory that endpoint strings share, one for each reactor and registry. They are closed with the
last reference to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        self.leave: Callable[[], object] = lambda: None
        self._shared = shared

    @property
    def isOver(self) -> bool:
        """Whether everything is closed, or being closed, so that a new reference is needed."""
        return self._shared.ending is not None

    def onEnd(self, leave: Callable[[], object]) -> None:
        """Before everything is closed while this reference lasts, call *leave*, and wait for its Deferred."""
        self.leave = leave

    def release(self) -> Deferred[None]:
        """End it, once or more often; fires when everything that is closed because of it is closed."""
        return self._shared.release(self)


class _Shared:
    """One client, and one directory while a reference needs it."""

    def __init__(self, reactor: Any, key: object, settings: Settings) -> None:
        self.key = key
        self.client = Client(reactor=reactor, settings=settings)
        self.ending: Deferred[None] | None = None
        self._reactor = reactor
        self._references: list[Reference] = []
        self._directory: Directory | None = None
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            # A twistd application stops its servers in the same phase; those are waited for.
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self.end)

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
        if self.ending is None:
            self.ending = Deferred()
            self._end().chainDeferred(self.ending)
        return waitFor(self.ending)

    @returnsDeferred
    async def _end(self) -> None:
        def failed(failure: Any) -> None:
            _log.failure("Closing a shared client failed", failure)

        try:
            await gatherResults([maybeDeferred(each.leave).addErrback(failed) for each in self._references])
            await self._stopDirectory()
        finally:
            try:
                await self.client.close()
            finally:
                self._forget()

    @returnsDeferred
    async def _stopDirectory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            await directory.stopService()

    def _forget(self) -> None:
        _open[self._reactor].remove(self)
        if not _open[self._reactor]:
            del _open[self._reactor]
        if self._trigger is not None:
            try:
                self._reactor.removeSystemEventTrigger(self._trigger)
            except (KeyError, ValueError):
                # The shutdown has begun, and has removed it.
                pass


# By reactor, those that are not closed yet.
_open: dict[Any, list[_Shared]] = {}


def acquire(reactor: Any, *, hasDirectory: bool = False) -> Reference:
    """
    Refer to the shared client of the registry that the settings name, and to its directory if that is needed too.

    :raises InvalidSettings: if a setting can't be used, or there are no credentials.
    """
    settings = readSettings()
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
    for shared in _open.get(reactor, ()):
        if shared.key == key and shared.ending is None:
            return shared.acquire(hasDirectory)
    shared = _Shared(reactor, key, settings)
    _open.setdefault(reactor, []).append(shared)
    return shared.acquire(hasDirectory)


@returnsDeferred
async def closeShared(reactor: Any = None) -> None:
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
    await gatherResults([shared.end() for shared in list(_open.get(reactor, ()))])
