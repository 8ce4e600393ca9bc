"""
The feed of events, followed: each event once and in order, whatever becomes of the registry meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.task import deferLater

from ...client import Client
from ...discovery.cursor import Cursor, isMarkerRefused
from ...errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MalformedResponse,
    RateLimited,
    RequestTimedOut,
    ServerError,
    ServiceRegistryError,
)
from ...types import Event, EventPage
from ...util.backoff import Backoff

# Seconds for which the registry is asked to hold its answer back until there is something new. A line that hangs is
# noticed that much later.
_WAIT = 30

# Seconds at least from one look at the feed to the next when there was nothing new: a registry may not be able to wait,
# and none does while it stops.
_INTERVAL = 1.0

# Seconds between two tries to reach a registry that is away.
_SHORTEST_RETRY = 0.5
_LONGEST_RETRY = 5.0

_LARGEST_PAGE = 1000

# What may be said of the waiting alone: by a proxy that does not bear it, or a registry that has no place to wait.
_MAYBE_OF_WAITING = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

_PASSING = (*_MAYBE_OF_WAITING, RateLimited)


class Feed:
    """
    Events from some point on.

    :param client: the registry.
    :param type: only events of this type; ``None`` for all.
    :param note: tells when the registry is lost, and when it is back.

    The registry is asked to answer when there is something new; where that can't be, once a second.
    """

    def __init__(self, client: Client, type: str | None, note: Callable[[str], None]) -> None:
        self._client = client
        self._type = type
        self._note = note
        self._marker: str | None = None
        self._markerIsKnown = False
        self._first: EventPage | None = None
        self._waitFrom = 0.0

    async def begin(self, since: str | None) -> None:
        """
        Find the place to begin at.

        :param since: the id of the first event that is wanted; ``None`` for none of those that are there already.
        :raises ServiceRegistryError: if the registry can't be asked, or does not take this marker.
        """
        if since is None:
            following: str | None = None
            while True:
                page = await self._client.events.list(following, _LARGEST_PAGE)
                if page["values"]:
                    self._marker = page["values"][-1]["id"]
                    self._markerIsKnown = True
                following = page["metadata"]["next_marker"]
                if following is None:
                    return
        self._marker = since
        self._first = await self._page()

    async def next(self) -> list[Event]:
        """
        Wait until there are new events.

        :return: them, oldest first, as many as are there at once.
        :raises ServiceRegistryError: if it makes no sense to try on.
        """
        clock = self._client.clock
        while True:
            began = clock.seconds()
            page, self._first = self._first or await self._patiently(), None
            # A page begins at its marker, and that one has been told of already.
            events = [event for event in page["values"] if not (self._markerIsKnown and event["id"] == self._marker)]
            if events:
                self._marker = events[-1]["id"]
                self._markerIsKnown = True
                return events
            await self._pause(max(0.0, began + _INTERVAL - clock.seconds()))

    async def _patiently(self) -> EventPage:
        """A page, from a registry that may be away for a while."""
        clock = self._client.clock
        backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, random.random)
        lostAt = clock.seconds()
        isStale = False
        while True:
            # After trouble one wants to know soon whether it is over.
            wait = _WAIT if backoff.failures == 0 and clock.seconds() >= self._waitFrom else None
            try:
                page = await self._page(wait)
            except ServiceRegistryError as error:
                if isMarkerRefused(error, Cursor(self._marker)):
                    # A registry takes every marker that it has given out. So this one has lost its events, and what it
                    # has now is new.
                    self._note(f"the registry does not know the last event any more, and is followed anew ({error})")
                    self._marker = None
                    self._markerIsKnown = False
                    continue
                if not self._isPassing(error):
                    raise
                if wait is not None and isinstance(error, _MAYBE_OF_WAITING):
                    # The next try, which is made at once, shows whether it is the registry.
                    self._waitFrom = clock.seconds() + _WAIT
                elif not isStale:
                    isStale = True
                    self._waitFrom = 0.0
                    self._note(f"registry unreachable, retrying: {error}")
                await self._pause(max(backoff.next(), _retryAfter(error)))
            else:
                if isStale:
                    self._note(f"registry reachable again after {clock.seconds() - lostAt:.0f} s")
                return page

    def _isPassing(self, error: ServiceRegistryError) -> bool:
        if isinstance(error, AuthenticationFailed):
            # The key has been changed, it may be, and will soon be so in its file.
            return self._client.settings.raxrcPath is not None
        return isinstance(error, _PASSING)

    async def _page(self, wait: int | None = None) -> EventPage:
        return await self._client.events.list(self._marker, _LARGEST_PAGE, self._type, wait=wait)

    async def _pause(self, seconds: float) -> None:
        await deferLater(self._client.clock, seconds)


def _retryAfter(error: ServiceRegistryError) -> float:
    return (error.retryAfter or _INTERVAL) if isinstance(error, RateLimited) else 0.0
