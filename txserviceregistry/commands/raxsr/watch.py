"""``raxsr services watch`` and ``configuration watch``: a table that is kept current, or a line for each change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from .base import FollowCommand
from .configuration import COLUMNS as VALUE_COLUMNS
from .configuration import addNamespace
from .output import Column, writeTable
from .parser import Parser
from .services import COLUMNS as SERVICE_COLUMNS

_Show = Callable[[Mapping[str, Any]], None]

# Seconds from one drawing of the table to the next, at least; and how often the age of data is looked at.
_REDRAW = 0.25
_LOOK = 1.0
# To the beginning of the terminal, and clear what is below.
_HOME = "\x1b[H\x1b[J"


class _Watch(FollowCommand):
    """A command that shows what a directory or a watcher has."""

    def watched(self, show: _Show) -> tuple[Any, Callable[[], Iterable[Mapping[str, Any]]]]:
        """A directory or watcher that calls *show* with a record of each change, and what gives all its records."""
        raise NotImplementedError

    async def perform(self) -> Any:
        # A directory would retry what is wrong with the settings.
        await self.client.account.getLimits()
        table = _Table(self.client.clock) if self.parsed.formatter == "table" and sys.stdout.isatty() else None
        source, records = self.watched(self.writer() if table is None else table.changed)
        if table is not None:
            table.start(source, lambda: self._draw(source, records()))
        source.startService()
        try:
            await Deferred()
        finally:
            if table is not None:
                table.stop()
            await source.stopService()

    def _draw(self, source: Any, records: Iterable[Mapping[str, Any]]) -> None:
        options = SimpleNamespace(max_width=0, fit_width=False, important=[], note=lambda _: None)
        sys.stdout.write(_HOME)
        writeTable(self.chosen, [{"change": "", **record} for record in records], options)
        if source.stale:
            print(f"not current for {source.stale:.0f} s")
        sys.stdout.flush()


class _Table:
    """Draws a table when something has changed, but not too often."""

    _next: IDelayedCall | None = None

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def start(self, source: Any, draw: Callable[[], None]) -> None:
        """Draw the table at each change, and while *source* is stale."""
        self._source = source
        self._draw = draw
        self._look: IDelayedCall = self._clock.callLater(0, self._looked)

    def changed(self, record: object = None) -> None:
        """Draw the table soon."""
        if self._next is None:
            self._next = self._clock.callLater(_REDRAW, self._drawn)

    def stop(self) -> None:
        for call in (self._next, self._look):
            if call is not None and call.active():
                call.cancel()

    def _drawn(self) -> None:
        self._next = None
        self._draw()

    def _looked(self) -> None:
        self._look = self._clock.callLater(_LOOK, self._looked)
        if self._source.stale:
            self.changed()


class Services(_Watch):
    """
    Show the services as they change, until Ctrl-C.

    On a terminal this is a table that is kept current. In a pipe it is one line for each service that is registered at
    first, and for each change. The command goes on when the registry is restarted.
    """

    example = "raxsr services watch --tag www"
    columns = {"change": Column("Change", width=7), **SERVICE_COLUMNS}

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("--tag", metavar="TAG", help="only services with this tag")

    def watched(self, show: _Show) -> tuple[Any, Callable[[], Iterable[Mapping[str, Any]]]]:
        from ...discovery import Directory

        directory = Directory(self.client, self.parsed.tag)
        directory.onChange(lambda change, service: show({**service, "change": change}))
        return directory, lambda: map(dict, directory.services())


class Configuration(_Watch):
    """
    Show configuration values as they change, until Ctrl-C.

    On a terminal this is a table that is kept current. In a pipe it is one line for each value that there is at first,
    and for each change. The command goes on when the registry is restarted.
    """

    example = "raxsr configuration watch --namespace /production/cassandra"
    columns = {"change": Column("Change", width=7), **VALUE_COLUMNS}

    def addArguments(self, parser: Parser) -> None:
        addNamespace(parser)

    def watched(self, show: _Show) -> tuple[Any, Callable[[], Iterable[Mapping[str, Any]]]]:
        from ...discovery import ConfigurationWatcher

        watcher = ConfigurationWatcher(self.client, self.parsed.namespace)

        def changed(change: Any) -> None:
            show({"change": "remove" if change.new is None else "set", "id": change.key, "value": change.new})

        watcher.onChange(changed)
        return watcher, lambda: ({"id": key, "value": watcher[key]} for key in watcher)
