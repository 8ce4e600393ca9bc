"""``raxsr events follow``: events as they happen."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ...errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MalformedResponse,
    RateLimited,
    RequestTimedOut,
    ServerError,
    ServiceRegistryError,
)
from ...util.backoff import Backoff
from .base import FollowCommand
from .events import COLUMNS, addType, typesOf
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client
    from ...types import Event

# Seconds from one request to the next where the registry can't wait for events.
_INTERVAL = 1.0
# Seconds between two tries while the registry is unreachable.
_SHORTEST_RETRY = 0.5
_LONGEST_RETRY = 5.0

_GAP = "the registry no longer has the last event: events may be missing"
_TEMPORARY = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError, RateLimited)


class Follow(FollowCommand):
    """
    Show events as they happen, until Ctrl-C.

    With -f json each event is one object on one line. The command goes on when the registry is restarted.
    """

    example = "raxsr events follow --type service.timeout -f json"
    columns = COLUMNS

    def addArguments(self, parser: Parser) -> None:
        addType(parser)
        parser.add_argument("--since", metavar="MARKER", help="begin at the event with this id (default: new events)")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        types = await typesOf(client, parsed.type)
        await follow(client, types, parsed.since, self.app.note, lambda: self.writer(parsed))


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
    from ...discovery.cursor import Cursor, StaleCursor
    from ...discovery.poller import PAGE, PLAIN, EventPoller

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
    if since is None:
        events: list[Event] = []
        try:
            cursor = await poller.readToEnd(cursor, [])
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
                await client.pause(max(backoff.next(), _retryAfter(error)))
                continue
            reached()
            if cursor.isStale(page):
                note(_GAP)
            events = cursor.newer(page)
            if not events:
                cursor = Cursor(cursor.marker)


def _isTemporary(error: ServiceRegistryError, client: Client) -> bool:
    if isinstance(error, AuthenticationFailed):
        # The file of the credentials may get a new key.
        return client.settings.raxrcPath is not None
    return isinstance(error, _TEMPORARY)


def _retryAfter(error: ServiceRegistryError) -> float:
    return (error.retryAfter or _INTERVAL) if isinstance(error, RateLimited) else 0.0
