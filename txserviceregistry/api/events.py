"""``client.events``: what has happened to the account's services and configuration values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from ..errors import ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError
from ..http.messages import Lane
from ..types import Event, EventPage
from ..util.deferred import returnsDeferred
from ..util.suspend import SuspendWatch
from .eventstream import EventStreams
from .shapes import readEventPage
from .transport import EVENT_TYPES, EVENTS_WAIT, APIGroup, Transport


class EventsClient(APIGroup):
    """
    The account's feed of events.

    :param suspends: after a suspend of the machine, streams are interrupted.
    :ivar streams: the streams that subscribers have open.
    """

    def __init__(self, transport: Transport, suspends: SuspendWatch) -> None:
        super().__init__(transport)
        self.streams = EventStreams(transport.stream, suspends)

    @returnsDeferred
    async def list(
        self,
        marker: str | None = None,
        limit: int | None = None,
        type: str | None = None,
        *,
        wait: int | None = None,
        types: Iterable[str] | None = None,
    ) -> EventPage:
        """
        One page of the feed, oldest first.

        :param marker: the id of the first event; without it, the page has the events of the last hour.
        :param limit: the most events, 1 to 1000; 100 by default.
        :param type: only events of this type, such as ``service.join``.
        :param wait: seconds, 1 to 60, to wait for an event that is newer than the *marker*. The page comes as soon as
            there is one, or after that time. The client's timeout counts from then. Such a request has a connection of
            its own. When its server fails meanwhile, the current page comes from another server.
        :param types: only events of these types, instead of *type*. Only such a request gets events that version 1.0
            does not have, such as ``service.update``.
        :return: fires with ``{"values": [event, …], "metadata": {…}}``. Fails with a
            :class:`~txserviceregistry.errors.ServiceRegistryError`, ``BadRequest`` if the marker is not accepted.

        *wait* and *types* are the registry's extensions ``events-wait`` and ``event-types``. They are ignored without
        these in :attr:`Client.extensions <txserviceregistry.Client.extensions>`.
        """
        if EVENTS_WAIT not in self._transport.extensions:
            wait = None
        query: dict[str, object] = {"marker": marker, "limit": limit, "type": type, "wait": wait}
        if types is not None and EVENT_TYPES in self._transport.extensions:
            query |= {"type": None, "types": ",".join(types)}
        lane = Lane.ORDINARY if wait is None else Lane.WAITING
        try:
            return await self._get("/events", readEventPage, query=query, wait=wait, lane=lane)
        except (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError):
            if wait is None or self._transport.servers < 2 or self._transport.isClosed:
                raise
            # The time to wait is over.
            return await self._get("/events", readEventPage, query={**query, "wait": None})

    def iterate(self, marker: str | None = None) -> AsyncIterator[Event]:
        """
        The events from *marker* to the current end of the feed, page by page as they are needed::

            async for event in client.events.iterate():
                print(event["type"], event["payload"])

        :param marker: see :meth:`list`.
        """
        return self._pages("/events", readEventPage, marker=marker)
