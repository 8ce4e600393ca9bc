"""``raxsr events``, ``configuration history`` and ``rollback``, ``services watch`` and ``configuration watch``."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import attrs

from ...errors import BadRequest, NotFound, PreconditionFailed
from ...types import EventType, PlainEventType
from ..console import CommandFailed
from .command import Run, argument, command
from .configuration import COLUMNS as VALUE_COLUMNS
from .configuration import namespace
from .output import Column, Record, columns
from .services import COLUMNS as SERVICE_COLUMNS
from .services import TAG

if TYPE_CHECKING:
    from ...client import Client
    from ...types import Event

_COLUMNS = columns("id timestamp type payload", id=Column("Event ID", width=36), type=Column("Event Type", width=26))
_CHANGE = {"change": Column("Change", width=7)}

# How many events a list shows without --limit: the API's own number.
_DEFAULT_LIMIT = 100
# Seconds between two looks at whether a table has changed.
_REDRAW = 0.25
_CHANGES = ("configuration_value.update", "configuration_value.remove")
# Milliseconds that a feed shows without a marker, and that it keeps.
_HOUR = 3_600_000
_MONTH = 30 * 24 * _HOUR

# To the beginning of the terminal, and clear what is below.
_HOME = "\x1b[H\x1b[J"

_TYPES = get_args(EventType)
_TYPE = argument("--type", choices=_TYPES, metavar="TYPE", help=f"only events of this type: {', '.join(_TYPES)}")


def _ofType(type: str | None) -> dict[str, Any]:
    """A registry without the extension for the type refuses it."""
    return {"type": type, "types": None if type is None else [type]}


@command("events list", "--type service.timeout --limit 10", _TYPE, columns=_COLUMNS, paged="events")
async def listEvents(run: Run) -> Any:
    """
    Show events, the newest first.

    These are the newest events of the last hour; with --marker, the events from that one on.
    """
    page = partial(run.client.events.list, **_ofType(run.parsed.type))
    if run.parsed.all or run.parsed.marker is not None:
        return (await run.onePageOrAll(page))[::-1]
    # The first page has the oldest events.
    count, newest = 0, deque[Any](maxlen=run.parsed.limit or _DEFAULT_LIMIT)
    async for event in run.allPages("events", page):
        newest.append(event)
        count += 1
    if count > len(newest):
        run.note(f"there are {count - len(newest)} older events in the last hour: --all shows all")
    return reversed(newest)


@command(
    "events follow",
    "--type service.timeout -f json",
    _TYPE,
    argument("--since", metavar="MARKER", help="begin at the event with this id (default: new events)"),
    columns=_COLUMNS,
    shows="stream",
)
async def follow(run: Run) -> None:
    """
    Show events as they happen, until Ctrl-C.

    With -f json each event is one object on one line. The command goes on when the registry is restarted.
    """
    with run.loggedNotes():
        await followed(run.client, run.parsed.type, run.parsed.since, run.output.rows)


async def followed(
    client: Client, type: str | None, since: str | None, begin: Callable[[], Callable[[Event], None]]
) -> None:
    """Show each event once and in order. *begin* is called after the first request, and returns what shows an event."""
    from ...discovery import EventsFeed

    # The feed would retry what is wrong with the settings, the marker or the type.
    await client.events.list(since, 1, **_ofType(type))
    feed = EventsFeed(client, since, types=get_args(PlainEventType) if type is None else [type])
    events, show = aiter(feed), begin()
    feed.startService()
    try:
        async for event in events:
            show(event)
    finally:
        await feed.stopService()


# -- the changes of a configuration value


def _change(event: Any) -> tuple[str, str | None]:
    return event["payload"]["configuration_value_id"], event["payload"].get("new_value")


async def firstMarker(client: Client, now: float) -> str | None:
    """
    The marker of the oldest events of 30 days; ``None`` if those of the last hour are all. The registry refuses markers
    from before the account was created, and no response has that time: it is found by bisection.
    """
    from ...discovery.poller import markerAt

    marker, begin, end = None, int(now * 1000) - _MONTH, int(now * 1000) - _HOUR
    tried = begin
    while begin < end:
        # A microsecond later, because a float rounds, and the registry refuses a marker from before the account.
        candidate = markerAt(tried / 1000 + 1e-6)
        try:
            await client.events.list(candidate, 1)
        except BadRequest:
            begin = tried + 1
        else:
            marker, end = candidate, tried
        tried = (begin + end) // 2
    return marker


@command(
    "configuration history",
    "/production/cassandra/listen_ip",
    columns=columns("id timestamp old_value new_value", id="Event ID"),
    shows="list",
    idOf="value's key",
)
async def history(run: Run) -> Any:
    """
    Show the changes of a configuration value, the newest first.

    The registry keeps them for 30 days, unless its option --event-retention says otherwise.
    """
    from ...discovery.poller import ticksOf

    start = await firstMarker(run.client, time.time())
    events = [
        event
        for type in _CHANGES
        async for event in run.allPages("events", partial(run.client.events.list, type=type), start)
        if _change(event)[0] == run.parsed.id
    ]
    events.sort(key=lambda event: ticksOf(event["id"]), reverse=True)
    return [{"new_value": None, **event, **event["payload"], "id": event["id"]} for event in events]


@command(
    "configuration rollback",
    "/production/cassandra/port --to c95f50ec-eb50-11f1-b00f-03f8ff5cc01b",
    argument("--to", required=True, metavar="EVENT-ID", help="the event, as history shows it"),
    idOf="value's key",
)
async def rollback(run: Run) -> str:
    """
    Restore a configuration value as it was after an event of its history.

    If the event removed the value, it is removed. If another client changes the value meanwhile, nothing is changed.
    """
    key, to, values = run.parsed.id, run.parsed.to, run.client.configuration
    page = await run.client.events.list(to, 1)
    event = next((each for each in page["values"] if each["id"] == to.lower()), None)
    if event is None or event["type"] not in _CHANGES or _change(event)[0] != key:
        raise CommandFailed(f'"{to}" is not a change of "{key}". See raxsr configuration history {key}')
    _, value = _change(event)
    try:
        now: Any = await values.getWithEtag(key)
    except NotFound:
        now = {"value": None}
    if value == now["value"]:
        return f'Value for key "{key}" is as it was then: nothing has been changed'
    try:
        if value is None:
            await values.remove(key, ifMatch=now["etag"])
            return f'Configuration value "{key}" has been removed'
        condition = {"ifMatch": now["etag"]} if "etag" in now else {"ifNoneMatch": "*"}
        await values.set(key, value, **condition)
    except PreconditionFailed:
        raise CommandFailed(f'another client has changed "{key}" meanwhile: nothing has been changed') from None
    return f'Value for key "{key}" set to "{value}"'


# -- what there is now


async def _watch(
    run: Run, source: Any, recordOf: Callable[..., Record], records: Callable[[], Sequence[Record]]
) -> None:
    """Show a directory or watcher: *records* returns all records, *recordOf* one from the arguments of a listener."""
    from twisted.internet.defer import DeferredQueue

    # A directory would retry what is wrong with the settings.
    await run.client.account.getLimits()
    isDrawn = run.output.format == "table" and sys.stdout.isatty()
    # A line above a table says how much it leaves out.
    output, drawn = attrs.evolve(run.output, note=print), None
    changes: DeferredQueue[Record] = DeferredQueue()
    if not isDrawn:
        source.onChange(lambda *change: changes.put(recordOf(*change)))
    source.startService()
    try:
        if isDrawn:
            await source.whenReady()
        while isDrawn:
            stale = f"not current for {source.stale:.0f} s\n" if source.stale else ""
            if drawn != (source.version, stale):
                drawn = source.version, stale
                sys.stdout.write(_HOME)
                output.write([{"change": "", **record} for record in records()])
                sys.stdout.write(stale)
                sys.stdout.flush()
            await run.client.pause(_REDRAW)
        show = output.rows()
        while True:
            show(await changes.get())
    finally:
        await source.stopService()


@command("services watch", "--tag www", TAG, columns={**_CHANGE, **SERVICE_COLUMNS}, shows="stream")
async def watchServices(run: Run) -> None:
    """
    Show the services as they change, until Ctrl-C.

    On a terminal this is a table that is kept current. In a pipe it is one line for each service that is registered at
    first, and for each change. The command goes on when the registry is restarted.
    """
    from ...discovery import Directory

    directory: Any = Directory(run.client, run.parsed.tag)
    await _watch(run, directory, lambda change, service: {**service, "change": change}, directory.services)


@command(
    "configuration watch",
    "--namespace /production/cassandra",
    namespace(),
    columns={**_CHANGE, **VALUE_COLUMNS},
    shows="stream",
)
async def watchConfiguration(run: Run) -> None:
    """
    Show configuration values as they change, until Ctrl-C.

    On a terminal this is a table that is kept current. In a pipe it is one line for each value that there is at first,
    and for each change. The command goes on when the registry is restarted.
    """
    from ...discovery import ConfigurationWatcher

    watcher = ConfigurationWatcher(run.client, run.parsed.namespace)

    def recordOf(change: Any) -> Record:
        return {"change": "remove" if change.new is None else "set", "id": change.key, "value": change.new}

    await _watch(run, watcher, recordOf, lambda: [{"id": key, "value": watcher[key]} for key in watcher])
