"""
``raxsr configuration``: single values, and their changes in the event feed. (:mod:`.transfer` has files of values,
:mod:`.execute` environments.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import BadRequest, NotFound, PreconditionFailed
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, RaxsrCommand, ShowCommand
from .output import Column, text, timestamp
from .parser import Parser
from .valuefile import problemOf

if TYPE_CHECKING:
    from ...client import Client

COLUMNS = {"id": Column("ID"), "value": text("Value")}
_KIND = "configuration value"

_CHANGES = ("configuration_value.update", "configuration_value.remove")
# Milliseconds that a feed shows without a marker, and that it keeps.
_HOUR = 3_600_000
_MONTH = 30 * 24 * _HOUR


def _namespace(text: str) -> str:
    if not text:
        # A script whose variable is not set must not get all namespaces.
        raise argparse.ArgumentTypeError("the namespace is empty; give its name, such as /production/cassandra")
    return text


_BELOW = "only values below this namespace, such as /production/cassandra"


def addNamespace(parser: argparse._ActionsContainer, *, required: bool = False, help: str = _BELOW) -> None:
    parser.add_argument("--namespace", metavar="NAMESPACE", type=_namespace, required=required, help=help)


def _addIfMatch(parser: Parser, what: str) -> None:
    def tag(text: str) -> str:
        # Its quotes may be left out: a shell takes them away.
        return text if text == "*" or '"' in text else f'"{text}"'

    shown = f"{what} only if the value still has this tag, as 'get --etag' shows it"
    parser.add_argument("--if-match", dest="ifMatch", metavar="TAG", type=tag, help=shown)


def _pages(client: Client, namespace: str | None) -> Callable[[str | None, int | None], Awaitable[Any]]:
    """Requests a page of all values, or of those below a namespace."""
    configuration = client.configuration
    return configuration.list if namespace is None else partial(configuration.listForNamespace, namespace)


async def allValues(command: RaxsrCommand, client: Client, namespace: str | None) -> dict[str, str]:
    """All values, or all below a *namespace*, by their keys."""
    values = command.allPages("configuration values", _pages(client, namespace))
    return {value["id"]: value["value"] async for value in values}


class List(ListCommand):
    """Show configuration values."""

    example = "raxsr configuration list --namespace /production/cassandra"
    columns = COLUMNS
    paged = "values"

    def addArguments(self, parser: Parser) -> None:
        addNamespace(parser)

    async def perform(self) -> Any:
        return await self.onePageOrAll(_pages(self.client, self.parsed.namespace))


class Get(ShowCommand):
    """Show one configuration value."""

    example = "raxsr configuration get /production/cassandra/listen_ip -f value"
    columns = COLUMNS
    alone: str | None = "value"
    idOf = "value's key"
    kind = _KIND

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("--etag", action="store_true", help="show the value's tag, too, for --if-match")

    def complete(self) -> None:
        if self.parsed.etag:
            self.columns = {**COLUMNS, "etag": Column("ETag")}
            self.alone = None

    async def perform(self) -> Any:
        configuration = self.client.configuration
        return await (configuration.getWithEtag if self.parsed.etag else configuration.get)(self.parsed.id)


class Set(RaxsrCommand):
    """
    Set a configuration value, whether it exists or not.

    With --if-match, a value that another client has changed meanwhile stays as it is, and the exit code is 1.
    """

    example = "raxsr configuration set /production/cassandra/listen_ip 127.0.0.1"

    def addArguments(self, parser: Parser) -> None:
        shown = "the key and the value, unless options give them"
        parser.add_argument("given", nargs="*", metavar="KEY VALUE", help=shown)
        parser.add_argument("--id", metavar="KEY", help="the key")
        parser.add_argument("--value", metavar="VALUE", help="the value")
        _addIfMatch(parser, "set it")

    def complete(self) -> None:
        given = list(self.parsed.given)
        self.parsed.id, self.parsed.value = (
            option if option is not None else given.pop(0) if given else None
            for option in (self.parsed.id, self.parsed.value)
        )
        if self.parsed.id is None or self.parsed.value is None or given:
            raise UsageError("give one key and one value: raxsr configuration set KEY VALUE")
        problem = problemOf(self.parsed.id, self.parsed.value)
        if problem is not None:
            raise CommandFailed(f"{self.parsed.id!r}: {problem}")

    async def perform(self) -> Any:
        await self.client.configuration.set(self.parsed.id, self.parsed.value, ifMatch=self.parsed.ifMatch)
        return f'Value for key "{self.parsed.id}" set to "{self.parsed.value}"'


class Remove(RaxsrCommand):
    """Remove a configuration value."""

    example = "raxsr configuration remove /production/cassandra/listen_ip"
    idOf = "value's key"
    kind = _KIND

    def addArguments(self, parser: Parser) -> None:
        _addIfMatch(parser, "remove it")

    async def perform(self) -> Any:
        await self.client.configuration.remove(self.parsed.id, ifMatch=self.parsed.ifMatch)
        return f'Configuration value "{self.parsed.id}" has been removed'


# -- the changes of a value


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
    # Not above: help does not need the modules below it, which take a while.
    from ...discovery.cursor import markerAt

    def marker(moment: int) -> str:
        # A microsecond later, because a float rounds, and the registry refuses a marker from before the account.
        return markerAt(moment / 1000 + 1e-6)

    async def accepts(moment: int) -> bool:
        try:
            await client.events.list(marker(moment), 1)
        except BadRequest:
            return False
        return True

    moment = int(now * 1000)
    before, after = moment - _MONTH, moment - _HOUR
    if await accepts(before):
        return marker(before)
    if not await accepts(after):
        return None
    while after - before > 1:
        middle = (before + after) // 2
        if await accepts(middle):
            after = middle
        else:
            before = middle
    return marker(after)


class History(ListCommand):
    """
    Show the changes of a configuration value, the newest first.

    The registry keeps them for 30 days, unless its option --event-retention says otherwise.
    """

    example = "raxsr configuration history /production/cassandra/listen_ip"
    columns = {
        "id": Column("Event ID"),
        "timestamp": timestamp("Timestamp"),
        "old_value": text("Old Value"),
        "new_value": text("New Value"),
    }
    important = ("old_value", "id")
    idOf = "value's key"

    async def perform(self) -> Any:
        from ...discovery.cursor import ticksOf

        start = await firstMarker(self.client, time.time())
        events = [
            event
            for type in _CHANGES
            async for event in self.allPages("events", partial(self.client.events.list, type=type), start)
            if _change(event)[0] == self.parsed.id
        ]
        events.sort(key=lambda event: ticksOf(event["id"]) or 0, reverse=True)
        return [{"new_value": None, **event, **event["payload"], "id": event["id"]} for event in events]


class Rollback(RaxsrCommand):
    """
    Restore a configuration value as it was after an event of its history.

    If the event removed the value, it is removed. If another client changes the value meanwhile, nothing is changed.
    """

    example = "raxsr configuration rollback /production/cassandra/port --to c95f50ec-eb50-11f1-b00f-03f8ff5cc01b"
    idOf = "value's key"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("--to", required=True, metavar="EVENT-ID", help="the event, as history shows it")

    async def perform(self) -> Any:
        key, values = self.parsed.id, self.client.configuration
        page = await self.client.events.list(self.parsed.to, 1)
        event = next((each for each in page["values"] if each["id"] == self.parsed.to.lower()), None)
        if event is None or event["type"] not in _CHANGES or _change(event)[0] != key:
            raise CommandFailed(f'"{self.parsed.to}" is not a change of "{key}". See raxsr configuration history {key}')
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
