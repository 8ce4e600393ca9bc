"""``raxsr locks``: show the locks that are held, and end them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ...errors import NotFound
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, RaxsrCommand, ShowCommand, addId, addPaging
from .output import Column, Metadata, Text, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client

_COLUMNS = {
    "name": Column("Name"),
    "holder": Column("Holder", Text),
    "fence": Column("Fence"),
    "timeout": Column("Timeout"),
    "acquired_at": Column("Acquired At", Timestamp),
    "metadata": Column("Metadata", Metadata),
}


class List(ListCommand):
    """Show the locks that are held."""

    example = "raxsr locks list -f json"
    columns = _COLUMNS
    important = ("holder", "acquired_at", "timeout", "fence")

    def addArguments(self, parser: Parser) -> None:
        addPaging(parser, "locks")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        return await self.onePageOrAll(parsed, "locks", client.locks.list)


class Get(ShowCommand):
    """Show one lock."""

    example = "raxsr locks get /billing/scheduler"
    columns = _COLUMNS
    kind = "lock"

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "lock's name")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        return await client.locks.get(parsed.id)


class Release(RaxsrCommand):
    """
    Release a lock.

    With --token, a lock of your own is free at once. With --force, another's lock is ended: its holder's heartbeats are
    refused, and the lock is free when the holder's timeout has passed. With --force --now it is free at once. Use that
    only if the holder does not work with it any more.
    """

    example = "raxsr locks release /billing/scheduler --force"
    kind = "lock"

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "lock's name")
        how = parser.add_mutually_exclusive_group(required=True)
        how.add_argument("--token", metavar="TOKEN", help="a token of the lock")
        how.add_argument("--force", action="store_true", help="end another's lock")
        parser.add_argument("--now", action="store_true", help="with --force: do not wait for the holder's timeout")

    def take_action(self, parsed: argparse.Namespace) -> Any:
        if parsed.now and not parsed.force:
            raise UsageError("--now can only be given with --force")
        super().take_action(parsed)

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        name = parsed.id
        if parsed.force:
            await client.locks.forceRelease(name, now=parsed.now)
            if not parsed.now:
                return f'Lock "{name}" takes no more heartbeats: it is free when its timeout has passed'
        else:
            try:
                await client.locks.release(name, parsed.token)
            except NotFound as error:
                if "HeartbeatMarker" not in error.details:
                    raise
                raise CommandFailed(f'the token does not belong to the lock "{name}"') from None
        return f'Lock "{name}" has been released'
