"""LockWatch: the events of locks, once for all that want them of one client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from ..discovery.cursor import Cursor, StaleCursor
from ..discovery.poller import sharedBy
from ..discovery.subscriber import Subscriber
from ..discovery.task import BackgroundTask
from ..http.jsontransport import ClientClosed
from ..util.logs import Listeners

if TYPE_CHECKING:
    from ..client import Client

_TYPES = ("lock.acquire", "lock.expire", "lock.release")


class LockWatch(Subscriber):
    """Reads the events of locks while there is a listener."""

    what = "locks"
    outageBegins = "Events of locks are unreachable (retrying): {reason}"

    def __init__(self, client: Client) -> None:
        super().__init__(client, None, random.random, time.time, _TYPES)
        self._listeners: Listeners[[str, Any]] = Listeners(self._log, "events of locks")
        self._cursor: Cursor | None = None
        self._resets = 0

    def add(self, listener: Callable[[str, Any], object]) -> Callable[[], None]:
        """
        Call *listener* with the type and the payload of each event from now on. The type is empty where the events
        begin, at the start and after a gap: the listener has to find out itself how things are.

        :return: a function that removes the listener.
        """
        forget = self._listeners.add(listener)
        if self.running:
            listener("", None)
        else:
            self.startService()

        def end() -> None:
            forget()
            if not self._listeners and self.running:
                self.stopService()

        return end

    def _load(self) -> None:
        self._cursor = None

    async def _run(self, run: BackgroundTask) -> None:
        try:
            await super()._run(run)
        except ClientClosed:
            # Holders of locks of a closed client have lost them, and end by themselves, without a stop of this.
            pass

    def _pause(self, seconds: float) -> Deferred[None]:
        return self._client.pause(seconds)

    async def _step(self, run: BackgroundTask) -> None:
        if self._cursor is None:
            self._resets = self._poller.resets
            self._cursor = await self._poller.end()
            self._listeners.call("", None)
            return
        cursor = self._cursor
        page = await self._poller.after(cursor, self._succeeded, resets=None if cursor.seen else self._resets)
        if cursor.isStale(page):
            raise StaleCursor()
        for event in cursor.newer(page):
            self._cursor = Cursor.after(event)
            if event["type"] in _TYPES:
                # A registry is asked for all types until it has named its extensions.
                self._listeners.call(event["type"], event["payload"])
            if run.isStopping:
                return

    def _positionLost(self) -> None:
        self._cursor = None


def lockWatchOf(client: Client) -> LockWatch:
    """The one :class:`LockWatch` of a client."""
    return sharedBy(client, LockWatch, partial(LockWatch, client))
