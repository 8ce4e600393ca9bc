"""``raxsr services watch`` and ``configuration watch``: a table that is kept current, or a line for each change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from .base import FollowCommand
from .configuration import COLUMNS as VALUE_COLUMNS
from .configuration import addNamespace
from .output import Column, writeTable
from .parser import Parser
from .services import COLUMNS as SERVICE_COLUMNS

if TYPE_CHECKING:
    from ...discovery import ConfigurationWatcher, Directory
    from ...discovery.directory import Change

_Show = Callable[[Mapping[str, Any]], None]

# Seconds from one drawing of the table to the next, at least; and how often the age of data is looked at.
_REDRAW = 0.25
_LOOK = 1.0
# To the beginning of the terminal, and clear what is below.
_HOME = "\x1b[H\x1b[J"


class _Watch(FollowCommand):
    """A command that shows what a directory or a watcher has."""

    def source(self) -> Any:
        raise NotImplementedError

    def records(self, source: Any) -> Iterable[Mapping[str, Any]]:
        raise NotImplementedError

    def follow(self, source: Any, show: _Show) -> None:
        """Let *show* be called with a record of each change."""
        raise NotImplementedError

    async def perform(self) -> Any:
        # A directory would retry what is wrong with the settings.
        await self.client.account.getLimits()
        source = self.source()
        table: _Table | None = None
        if self.parsed.formatter == "table" and sys.stdout.isatty():
            table = _Table(self.client.clock, source, lambda: self._draw(source))
            redraw = table.redraw
            self.follow(source, lambda _: redraw())
        else:
            self.follow(source, self.writer())
        source.startService()
        try:
            await Deferred()
        finally:
            if table is not None:
                table.stop()
            await source.stopService()

    def _draw(self, source: Any) -> None:
        records = [{"change": "", **record} for record in self.records(source)]
        options = SimpleNamespace(max_width=0, fit_width=False, important=[], note=lambda _: None)
        sys.stdout.write(_HOME)
        writeTable(self.chosen, records, options)
        if source.stale:
            print(f"not current for {source.stale:.0f} s")
        sys.stdout.flush()


class _Table:
    """Draws a table when something has changed, but not too often."""

    def __init__(self, clock: Any, source: Any, draw: Callable[[], None]) -> None:
        self._clock = clock
        self._source = source
        self._draw = draw
        self._next: IDelayedCall | None = None
        self._look: IDelayedCall = self._clock.callLater(0, self._looked)

    def redraw(self) -> None:
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
            self.redraw()


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

    def source(self) -> Directory:
        from ...discovery import Directory

        return Directory(self.client, self.parsed.tag)

    def records(self, source: Directory) -> Iterable[Mapping[str, Any]]:
        return [dict(service) for service in source.services()]

    def follow(self, source: Directory, show: _Show) -> None:
        def changed(change: Change, service: Any) -> None:
            show({**service, "change": change})

        source.onChange(changed)


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

    def source(self) -> ConfigurationWatcher:
        from ...discovery import ConfigurationWatcher

        return ConfigurationWatcher(self.client, self.parsed.namespace)

    def records(self, source: ConfigurationWatcher) -> Iterable[Mapping[str, Any]]:
        return [{"id": key, "value": source[key]} for key in source]

    def follow(self, source: ConfigurationWatcher, show: _Show) -> None:
        source.onChange(
            lambda change: show(
                {"change": "remove" if change.new is None else "set", "id": change.key, "value": change.new}
            )
        )
