"""``raxsr events list``: what has happened. (:mod:`.follow` shows events as they happen.)"""

from __future__ import annotations

import argparse
from collections import deque
from typing import TYPE_CHECKING, Any, get_args

from ...api.transport import EVENT_TYPES
from ...types import EventType, PlainEventType
from ..outcome import CommandFailed
from .base import ListCommand, addPaging
from .output import Column, Payload, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client

COLUMNS = {
    "id": Column("Event ID", width=36),
    "timestamp": Column("Timestamp", Timestamp, width=19),
    "type": Column("Event Type", width=26),
    "payload": Column("Payload", Payload),
}

# How many events a list shows without --limit: the API's own number.
_DEFAULT_LIMIT = 100


def addType(parser: Parser) -> None:
    """Add ``--type``."""
    types = get_args(EventType)
    parser.add_argument("--type", choices=types, metavar="TYPE", help=f"only events of this type: {', '.join(types)}")


async def typesOf(client: Client, type: str | None) -> list[str] | None:
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
    columns = COLUMNS
    important = ("payload", "id")

    def addArguments(self, parser: Parser) -> None:
        addType(parser)
        addPaging(parser, "events")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        types = await typesOf(client, parsed.type)

        async def page(marker: str | None, limit: int | None) -> Any:
            return await client.events.list(marker, limit, parsed.type, types=types)

        if parsed.all or parsed.marker is not None:
            return (await self.onePageOrAll(parsed, "events", page))[::-1]
        # The first page has the oldest events.
        count = 0
        newest: deque[Any] = deque(maxlen=parsed.limit or _DEFAULT_LIMIT)
        async for event in self.allPages("events", page):
            newest.append(event)
            count += 1
        if count > len(newest):
            self.app.note(f"there are {count - len(newest)} older events in the last hour: --all shows all")
        return reversed(newest)
