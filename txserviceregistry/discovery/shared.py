"""
The client and the directory that endpoint strings share, one for each reactor and registry. They are closed with the
last of their users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorCore

from ..client import Client
from ..settings import Settings, readSettings
from ..util.deferred import returnsDeferred, waitFor
from ..util.logs import Logger
from .directory import Directory

_log = Logger()


class SharedUser:
    """
    The use of a shared client and directory by one endpoint.

    :ivar leave: is called before everything is closed during this use; its Deferred is waited for.
    """

    def __init__(self, shared: _Shared) -> None:
        self.client = shared.client
        self.leave: Callable[[], object] = lambda: None
        self._shared = shared

    @property
    def directory(self) -> Directory:
        """The directory, which is started with its first use."""
        return self._shared.directory()

    @property
    def isOver(self) -> bool:
        """Whether everything is closed, or being closed, so that a new use has to begin."""
        return self._shared.ending is not None

    def release(self) -> Deferred[None]:
        """End the use, once or more often; fires when everything that is closed because of it is closed."""
        shared = self._shared
        if shared.ending is None:
            shared.users.pop(self, None)
        return shared.end() if self.isOver or not shared.users else succeed(None)


class _Shared:
    """One client, and one directory."""

    def __init__(self, reactor: Any, key: object, settings: Settings) -> None:
        self.key = key
        self.client = Client(reactor=reactor, settings=settings)
        self.users: dict[SharedUser, None] = {}
        self.ending: Deferred[None] | None = None
        self._reactor = reactor
        self._directory: Directory | None = None
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            # A twistd application stops its servers in the same phase; those are waited for.
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self.end)

    def directory(self) -> Directory:
        if self._directory is None:
            self._directory = Directory(self.client)
            self._directory.startService()
        return self._directory

    def end(self) -> Deferred[None]:
        """Close everything, after all users have left."""
        if self.ending is None:
            self.ending = Deferred()
            self._end().chainDeferred(self.ending)
        return waitFor(self.ending)

    @returnsDeferred
    async def _end(self) -> None:
        def failed(failure: Any) -> None:
            _log.failure("Closing a shared client failed", failure)

        await gatherResults([maybeDeferred(user.leave).addErrback(failed) for user in self.users])
        if self._directory is not None:
            await self._directory.stopService()
        await self.client.close().addErrback(failed)
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


def share(reactor: Any) -> SharedUser:
    """
    Begin to use the shared client of the registry that the settings name.

    :raises InvalidSettings: if a setting can't be used, or there are no credentials.
    """
    settings = readSettings()
    # A client rereads the key in a file.
    key = attrs.evolve(settings, apiKey="" if settings.raxrcPath else settings.apiKey)
    for shared in _open.get(reactor, ()):
        if shared.key == key and shared.ending is None:
            break
    else:
        shared = _Shared(reactor, key, settings)
        _open.setdefault(reactor, []).append(shared)
    user = SharedUser(shared)
    shared.users[user] = None
    return user


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
