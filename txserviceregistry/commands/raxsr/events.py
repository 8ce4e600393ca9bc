"""
``raxsr events list``: what has happened. (What happens from now on is in :mod:`.follow`.)
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import TYPE_CHECKING, Any, get_args

from ...types import Event, EventType
from .base import ListCommand, Progress, addPaging, collect, turnPages
from .output import Payload, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client

COLUMNS = {"id": "Event ID", "timestamp": "Timestamp", "type": "Event Type", "payload": "Payload"}

# How many events a list shows when nobody says: the protocol's own number.
_DEFAULT_LIMIT = 100


def row(event: Event) -> tuple[Any, ...]:
    """An event's cells."""
    return event["id"], Timestamp(event["timestamp"]), event["type"], Payload(event["payload"])


def addType(parser: Parser) -> None:
    """Add ``--type``."""
    types = get_args(EventType)
    parser.add_argument("--type", choices=types, metavar="TYPE", help=f"only events of this type: {', '.join(types)}")


class List(ListCommand):
    """
    Show events, the newest first.

    These are the newest events of the last hour; with --marker, the events from that one on.
    """

    example = "raxsr events list --type service.timeout --limit 10"
    columns = COLUMNS
    important = ("payload", "id")

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addType(parser)
        addPaging(parser, "events")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""

        async def events(client: Client, progress: Progress) -> list[Event]:
            async def page(marker: str | None, limit: int | None) -> Any:
                return await client.events.list(marker, limit, parsed_args.type)

            if parsed_args.all or parsed_args.marker is not None:
                return await collect(self, progress, parsed_args, "events", page)
            # A page has the oldest events that there are: the newest come last.
            count = 0
            newest: deque[Event] = deque(maxlen=parsed_args.limit or _DEFAULT_LIMIT)
            async for event in turnPages(progress, None, "events", page):
                newest.append(event)
                count += 1
            if count > len(newest):
                self.app.note(f"there are {count - len(newest)} older events in the last hour: --all shows all")
            return list(newest)

        return list(self.columns), [row(event) for event in reversed(self.ask(events))]
