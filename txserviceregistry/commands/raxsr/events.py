"""``raxsr events``: lists past events, and shows new ones."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, get_args

from ...api.transport import EVENT_TYPES
from ...errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MalformedResponse,
    RateLimited,
    RequestTimedOut,
    ServerError,
    ServiceRegistryError,
)
from ...types import EventType, PlainEventType
from ...util.backoff import Backoff
from ..outcome import CommandFailed
from .base import FollowCommand, ListCommand
from .output import Column, payload, timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client
    from ...types import Event

_COLUMNS = {
    "id": Column("Event ID", width=36),
    "timestamp": timestamp("Timestamp", width=19),
    "type": Column("Event Type", width=26),
    "payload": payload("Payload"),
}

# How many events a list shows without --limit: the API's own number.
_DEFAULT_LIMIT = 100
# Seconds from one request to the next where the registry can't wait for events.
_INTERVAL = 1.0
# Seconds between two tries while the registry is unreachable.
_SHORTEST_RETRY = 0.5
_LONGEST_RETRY = 5.0

_GAP = "the registry no longer has the last event: events may be missing"
_TEMPORARY = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError, RateLimited)


def _addType(parser: Parser) -> None:
    types = get_args(EventType)
    parser.add_argument("--type", choices=types, metavar="TYPE", help=f"only events of this type: {', '.join(types)}")


async def _typesOf(client: Client, type: str | None) -> list[str] | None:
    """
    The types of events that ``--type`` names; ``None`` without it.

    :raises CommandFailed: if the registry does not have such events.
    """
    if type is None:
        return None
    if type not in get_args(PlainEventType):
        await client.account.getLimits()
        if EVENT_TYPES not in client.extensions:
            raise CommandFailed(f"the registry has no events of type {type}: it has no extension {EVENT_TYPES}")
    return [type]


class List(ListCommand):
    """
    Show events, the newest first.

    These are the newest events of the last hour; with --marker, the events from that one on.
    """

    example = "raxsr events list --type service.timeout --limit 10"
    columns = _COLUMNS
    important = ("payload", "id")
    paged = "events"

    def addArguments(self, parser: Parser) -> None:
        _addType(parser)

    async def perform(self) -> Any:
        types = await _typesOf(self.client, self.parsed.type)

        async def page(marker: str | None, limit: int | None) -> Any:
            return await self.client.events.list(marker, limit, self.parsed.type, types=types)

        if self.parsed.all or self.parsed.marker is not None:
            return (await self.onePageOrAll(page))[::-1]
        # The first page has the oldest events.
        count = 0
        newest: deque[Any] = deque(maxlen=self.parsed.limit or _DEFAULT_LIMIT)
        async for event in self.allPages("events", page):
            newest.append(event)
            count += 1
        if count > len(newest):
            self.program.note(f"there are {count - len(newest)} older events in the last hour: --all shows all")
        return reversed(newest)


class Follow(FollowCommand):
    """
    Show events as they happen, until Ctrl-C.

    With -f json each event is one object on one line. The command goes on when the registry is restarted.
    """

    example = "raxsr events follow --type service.timeout -f json"
    columns = _COLUMNS

    def addArguments(self, parser: Parser) -> None:
        _addType(parser)
        parser.add_argument("--since", metavar="MARKER", help="begin at the event with this id (default: new events)")

    async def perform(self) -> Any:
        types = await _typesOf(self.client, self.parsed.type)
        await follow(self.client, types, self.parsed.since, self.program.note, self.writer)


async def follow(
    client: Client,
    types: Collection[str] | None,
    since: str | None,
    note: Callable[[str], None],
    begin: Callable[[], Callable[[Event], None]],
) -> None:
    """
    Show each event once and in order, until it is cancelled.

    :param types: only events of these types; ``None`` for those of version 1.0.
    :param since: the id of the first event; ``None`` for new events.
    :param begin: called after the first request; returns the function that shows an event.
    :raises ServiceRegistryError: if the first request fails, or a later one for a reason that is not temporary.
    """
    from ...discovery.cursor import PAGE, Cursor, StaleCursor
    from ...discovery.poller import PLAIN, EventPoller

    clock = client.clock
    poller = EventPoller(client, types=PLAIN if types is None else types, interval=_INTERVAL)
    backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, random.random)
    lostAt: float | None = None

    def reached() -> None:
        nonlocal lostAt
        backoff.reset()
        if lostAt is not None:
            note(f"registry reachable again after {clock.seconds() - lostAt:.0f} s")
            lostAt = None

    cursor = Cursor(since)
    events: Sequence[Event] = []
    if since is None:
        try:
            cursor = await poller.end()
        except StaleCursor:
            raise MalformedResponse("The event feed does not have the event that it ended with a moment ago") from None
    else:
        type = None if types is None else next(iter(types))
        events = (await client.events.list(since, PAGE, type, types=types))["values"]
    show = begin()
    with poller.used():
        while True:
            for event in events:
                show(event)
                cursor = cursor.after(event)
            events = []
            try:
                page = await poller.after(cursor, reached)
            except StaleCursor:
                note(_GAP)
                cursor = Cursor()
                continue
            except ServiceRegistryError as error:
                if not _isTemporary(error, client):
                    raise
                if lostAt is None:
                    lostAt = clock.seconds()
                    note(f"registry unreachable, retrying: {error}")
                least = (error.retryAfter or _INTERVAL) if isinstance(error, RateLimited) else 0.0
                await client.pause(max(backoff.next(), least))
                continue
            reached()
            if page.isStale:
                note(_GAP)
            events = page.events
            if not events:
                cursor = Cursor(cursor.marker)


def _isTemporary(error: ServiceRegistryError, client: Client) -> bool:
    if isinstance(error, AuthenticationFailed):
        # The file of the credentials may get a new key.
        return client.settings.raxrcPath is not None
    return isinstance(error, _TEMPORARY)
