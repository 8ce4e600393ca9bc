"""LockWatch: the events of locks, once for all that want them of one client."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import CancelledError

from ..discovery.cursor import Cursor, StaleCursor
from ..discovery.poller import EventPoller
from ..discovery.task import BackgroundTask
from ..errors import ServiceRegistryError
from ..util.backoff import Backoff
from ..util.listeners import Listeners
from ..util.logs import Logger
from ..util.outage import Outage

if TYPE_CHECKING:
    from ..client import Client

_TYPES = ("lock.acquire", "lock.expire", "lock.release")
# Seconds between two attempts to reach a registry that is unreachable; the first one is made at once.
_SHORTEST_RETRY, _LONGEST_RETRY = 0.5, 5.0


class LockWatch:
    """
    Reads the events of locks while there is a listener.

    :param client: sends the requests.
    """

    _log = Logger()

    def __init__(self, client: Client) -> None:
        self._client = client
        self._poller = EventPoller(client, types=_TYPES)
        self._listeners: Listeners[[str, Any]] = Listeners(self._log, "events of locks")
        self._task: BackgroundTask | None = None

    def add(self, listener: Callable[[str, Any], object]) -> Callable[[], None]:
        """
        Call *listener* with the type and the payload of each event from now on. The type is empty where the events
        begin, at the start and after a gap: the listener has to find out itself how things are.

        :return: a function that ends it.
        """
        forget = self._listeners.add(listener)
        if self._task is None:
            self._task = BackgroundTask()
            self._task.begin(self._watch).addErrback(lambda failure: failure.trap(ServiceRegistryError))
        else:
            listener("", None)

        def end() -> None:
            forget()
            if not self._listeners and self._task is not None:
                task, self._task = self._task, None
                task.stop()

        return end

    async def _watch(self, task: BackgroundTask) -> None:
        with self._poller.used():
            await self._run(task)

    async def _run(self, task: BackgroundTask) -> None:
        backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, randomModule.random)
        outage = Outage(self._log, self._client.clock, "Events of locks are unreachable (retrying): {reason}", after=2)
        cursor: Cursor | None = None
        resets = 0
        while not task.isStopping:
            try:
                if cursor is None:
                    resets = self._poller.resets
                    cursor = await self._poller.readToEnd(Cursor(), [])
                    self._call(task, "", None)
                page = await self._poller.after(cursor, outage.succeeded, resets=None if cursor.seen else resets)
                if cursor.isStale(page):
                    raise StaleCursor()
            except StaleCursor:
                cursor = None
            except (ServiceRegistryError, CancelledError) as error:
                if task.isStopping:
                    return
                outage.failed(reason=str(error))
                await self._client.pause(backoff.next())
            else:
                backoff.reset()
                for event in cursor.newer(page):
                    cursor = Cursor.after(event)
                    if event["type"] in _TYPES:
                        # A registry is asked for all types until it has named its extensions.
                        self._call(task, event["type"], event["payload"])

    def _call(self, task: BackgroundTask, type: str, payload: Any) -> None:
        with task.callingOut():
            self._listeners.call(type, payload)


_watches: WeakKeyDictionary[Client, LockWatch] = WeakKeyDictionary()


def lockWatchOf(client: Client) -> LockWatch:
    """The one :class:`LockWatch` of a client."""
    watch = _watches.get(client)
    if watch is None:
        watch = _watches[client] = LockWatch(client)
    return watch
