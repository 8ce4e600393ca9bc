"""``raxsr services watch`` and ``configuration watch``: a table that is kept current, or a line for each change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from .base import FollowCommand
from .configuration import COLUMNS as VALUE_COLUMNS
from .configuration import addNamespace
from .output import Column, writeTable
from .parser import Parser
from .services import COLUMNS as SERVICE_COLUMNS

_Show = Callable[[Mapping[str, Any]], None]

# Seconds without a change after which the table is drawn, and between two looks at the age of what it shows.
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
        # Help does not need these, which take a while.
        from twisted.internet.defer import Deferred
        from twisted.internet.task import LoopingCall

        from ...discovery.mirror import Settling

        # A directory would retry what is wrong with the settings.
        await self.client.account.getLimits()
        isTable = self.parsed.formatter == "table" and sys.stdout.isatty()
        redrawing = Settling(self.client.clock, _REDRAW, lambda _: self._draw(source, records()))
        source, records = self.watched(redrawing.add if isTable else self.writer())
        looking = LoopingCall(lambda: redrawing.add(None) if source.stale else None)
        looking.clock = self.client.clock
        if isTable:
            looking.start(_LOOK)
        source.startService()
        try:
            await Deferred()
        finally:
            if isTable:
                looking.stop()
            redrawing.drop()
            await source.stopService()

    def _draw(self, source: Any, records: Iterable[Mapping[str, Any]]) -> None:
        options = SimpleNamespace(max_width=0, fit_width=False, important=[], note=lambda _: None)
        sys.stdout.write(_HOME)
        writeTable(self.chosen, [{"change": "", **record} for record in records], options)
        if source.stale:
            print(f"not current for {source.stale:.0f} s")
        sys.stdout.flush()


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
