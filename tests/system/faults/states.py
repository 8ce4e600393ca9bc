"""States of services that are set under faults, subscribers that read them from event streams, and what has to hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.system.processes import reactor
from txserviceregistry import Client
from txserviceregistry.discovery import EventsFeed
from txserviceregistry.errors import ServiceRegistryError
from txserviceregistry.util.deferred import returnsDeferred

from .faultcase import FaultCase

TYPES = ["service.state"]
#: Seconds from one write to the next.
_PACE = 0.03


class StateWriter:
    """
    Sets the states of a few services in turn, each time with another reason.

    :ivar acknowledged: the reasons of those writes that were acknowledged.
    """

    IDS = ("web1", "web2", "web3")

    def __init__(self, client: Client) -> None:
        self.acknowledged: list[str] = []
        self.attempts = 0
        self._client = client
        self._isEnded = False

    @returnsDeferred
    async def run(self) -> None:
        """Write, until :meth:`end`."""
        while not self._isEnded:
            self.attempts += 1
            reason, id = str(self.attempts), self.IDS[self.attempts % len(self.IDS)]
            try:
                await self._client.services.setState(id, "drain", reason)
            except ServiceRegistryError:
                pass
            else:
                self.acknowledged.append(reason)
            await deferLater(reactor, _PACE)

    def end(self) -> None:
        """Write no more."""
        self._isEnded = True

    async def hasWritten(self, after: int) -> bool:
        """Whether more than so many writes have been acknowledged."""
        return len(self.acknowledged) > after


class StreamReader:
    """
    Reads the states in an event stream.

    :ivar ids: the ids of their events, in the order in which they came.
    :ivar gaps: how often the feed lost its place.
    """

    def __init__(self, client: Client) -> None:
        self.ids: list[str] = []
        self.gaps = 0
        self._feed = EventsFeed(client, types=TYPES)
        self._feed.onEvent(lambda event: self.ids.append(event["id"]))
        self._feed.onGap(self._gap)
        self._feed.startService()

    def _gap(self) -> None:
        self.gaps += 1

    def stop(self) -> Deferred[None]:
        """Read no more."""
        return self._feed.stopService()


async def begin(case: FaultCase, readers: Iterable[StreamReader]) -> None:
    """Wait until each reader has an event: before its first response, it has no place in the feed to go on from."""
    for reader in readers:

        async def hasBegun(reader: StreamReader = reader) -> bool:
            return bool(reader.ids)

        await case.until(hasBegun)


async def _after(client: Client, marker: str | None) -> list[Any]:
    """The events after this one, or all."""
    events: list[Any] = []
    isLast = False
    while not isLast:
        page = await client.events.list(marker, limit=1000, types=TYPES)
        events += [event for event in page["values"] if event["id"] != marker]
        marker, isLast = events[-1]["id"] if events else marker, page["metadata"]["next_marker"] is None
    return events


async def check(case: FaultCase, client: Client, writer: StateWriter, readers: Iterable[StreamReader]) -> None:
    """
    Check that each acknowledged write has its event, that states are what the last events say, and that all readers
    have each event once and in order.
    """
    events: list[Any] = []
    states: list[Any] = []
    hasLater = True
    while hasLater:
        # A write that was sent again may still take effect.
        states = (await client.services.listStates())["values"]
        later = await _after(client, events[-1]["id"] if events else None)
        hasLater = bool(later)
        events += later
    reasons = [event["payload"]["reason"] for event in events]
    case.assertEqual(set(writer.acknowledged) - set(reasons), set())
    last = {event["payload"]["id"]: event["payload"]["reason"] for event in events}
    case.assertEqual({state["id"]: state["reason"] for state in states}, last)
    ids = [event["id"] for event in events]
    for reader in readers:

        async def hasAll(reader: StreamReader = reader) -> bool:
            return ids[-1] in reader.ids

        await case.until(hasAll)
        read = reader.ids[: reader.ids.index(ids[-1]) + 1]
        case.assertEqual((read, reader.gaps), (ids[-len(read) :], 0))
    case.tell("states acknowledged", len(writer.acknowledged))
    case.tell("states lost, events missed or delivered twice", "0, 0")
