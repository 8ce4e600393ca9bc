"""
``raxsr events follow``: what happens, as it happens.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .base import FollowCommand, Progress
from .events import COLUMNS, addType, row
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client


class Follow(FollowCommand):
    """
    Show events as they come, until Ctrl-C.

    With -f json each event is one object on one line. The registry may be restarted meanwhile.
    """

    example = "raxsr events follow --type service.timeout -f json"
    columns = COLUMNS
    widths = {"Event ID": 36, "Timestamp": 19, "Event Type": 26}

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addType(parser)
        parser.add_argument(
            "--since", metavar="MARKER", help="begin at the event with this id; only new events if it is not given"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""

        async def follow(client: Client, progress: Progress) -> None:
            from .feed import Feed

            feed = Feed(client, parsed_args.type, self.app.note)
            await feed.begin(parsed_args.since)
            write = self.lines(parsed_args)
            while True:
                for event in await feed.next():
                    write(row(event))

        self.ask(follow)
        return list(self.columns), ()
