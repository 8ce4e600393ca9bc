"""``raxsr configuration history`` and ``rollback``: a value's changes in the event feed, and back to one of them."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ...discovery.cursor import markerAt, ticksOf
from ...errors import BadRequest, NotFound, PreconditionFailed
from ..outcome import CommandFailed
from .base import ListCommand, RaxsrCommand, addId
from .output import Column, Text, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client

_TYPES = ("configuration_value.update", "configuration_value.remove")
# Milliseconds that a feed shows without a marker, and that it keeps.
_HOUR = 3_600_000
_MONTH = 30 * 24 * _HOUR


def _change(event: Any) -> tuple[str, str | None]:
    """The key, and the value after a change."""
    payload = event["payload"]
    return payload["configuration_value_id"], payload.get("new_value")


async def firstMarker(client: Client, now: float) -> str | None:
    """
    The marker of the oldest events of 30 days; ``None`` if those of the last hour are all.

    The registry refuses markers from before the account was created, and no response has that time: it is found by
    bisection.

    :param now: the time, in seconds since the epoch.
    """

    async def accepts(moment: int) -> bool:
        try:
            await client.events.list(_markerAt(moment), 1)
        except BadRequest:
            return False
        return True

    moment = int(now * 1000)
    before, after = moment - _MONTH, moment - _HOUR
    if await accepts(before):
        return _markerAt(before)
    if not await accepts(after):
        return None
    while after - before > 1:
        middle = (before + after) // 2
        if await accepts(middle):
            after = middle
        else:
            before = middle
    return _markerAt(after)


def _markerAt(moment: int) -> str:
    # A microsecond later, because a float rounds, and the registry refuses a marker from before the account.
    return markerAt(moment / 1000 + 1e-6)


class History(ListCommand):
    """
    Show the changes of a configuration value, the newest first.

    The registry keeps them for 30 days, unless its option --event-retention says otherwise.
    """

    example = "raxsr configuration history /production/cassandra/listen_ip"
    columns = {
        "id": Column("Event ID"),
        "timestamp": Column("Timestamp", Timestamp),
        "old_value": Column("Old Value", Text),
        "new_value": Column("New Value", Text),
    }
    important = ("old_value", "id")

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "value's key")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        start = await firstMarker(client, time.time())
        events = [
            event
            for type in _TYPES
            async for event in self.allPages("events", partial(client.events.list, type=type), start)
            if _change(event)[0] == parsed.id
        ]
        events.sort(key=lambda event: ticksOf(event["id"]) or 0, reverse=True)
        return [{"new_value": None, **event, **event["payload"], "id": event["id"]} for event in events]


class Rollback(RaxsrCommand):
    """
    Set a configuration value to what it was after an event of its history.

    If the event removed the value, it is removed. If another client changes the value meanwhile, nothing is changed.
    """

    example = "raxsr configuration rollback /production/cassandra/port --to c95f50ec-eb50-11f1-b00f-03f8ff5cc01b"

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "value's key")
        parser.add_argument("--to", required=True, metavar="EVENT-ID", help="the event, as history shows it")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        key, values = parsed.id, client.configuration
        page = await client.events.list(parsed.to, 1)
        event = next((each for each in page["values"] if each["id"] == parsed.to.lower()), None)
        if event is None or event["type"] not in _TYPES or _change(event)[0] != key:
            raise CommandFailed(f'"{parsed.to}" is not a change of "{key}". See raxsr configuration history {key}')
        _, value = _change(event)
        try:
            now: Any = await values.getWithEtag(key)
        except NotFound:
            now = {"value": None}
        try:
            if value == now["value"]:
                return f'Value for key "{key}" is as it was then: nothing has been changed'
            if value is None:
                await values.remove(key, ifMatch=now["etag"])
                return f'Configuration value "{key}" has been removed'
            condition = {"ifMatch": now["etag"]} if "etag" in now else {"ifNoneMatch": "*"}
            await values.set(key, value, **condition)
        except PreconditionFailed:
            raise CommandFailed(f'another client has changed "{key}" meanwhile: nothing has been changed') from None
        return f'Value for key "{key}" set to "{value}"'
