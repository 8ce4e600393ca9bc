"""``raxsr configuration``: values, and their changes in the event feed. (:mod:`.files` has files of values.)"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import BadRequest, NotFound, PreconditionFailed
from ...util.fields import KEY, KEY_RULE
from ..console import CommandFailed, UsageError, typeOf
from .command import Argument, Page, Run, argument, command
from .output import Column, text, timestamp

if TYPE_CHECKING:
    from ...client import Client

COLUMNS = {"id": Column("ID"), "value": text("Value")}

_KEY = {"idOf": "value's key", "kind": "configuration value"}
# The protocol's own rules.
_LONGEST_VALUE = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHANGES = ("configuration_value.update", "configuration_value.remove")
# Milliseconds that a feed shows without a marker, and that it keeps.
_HOUR = 3_600_000
_MONTH = 30 * 24 * _HOUR


def _namespace(text: str) -> str:
    if not text:
        # A script whose variable is not set must not get all namespaces.
        raise ValueError("the namespace is empty; give its name, such as /production/cassandra")
    return text


def namespace(shown: str = "only values below this namespace, such as /production/cassandra", **more: Any) -> Argument:
    return argument("--namespace", metavar="NAMESPACE", type=typeOf(_namespace), help=shown, **more)


def problemOf(key: str, value: object, namespace: str | None = None) -> str | None:
    """Why these are not a configuration value and its key below a *namespace*; ``None`` if they are."""
    if not KEY.fullmatch(key):
        return f"not a configuration key: {KEY_RULE}"
    if namespace is not None and not key.startswith(f"/{namespace.strip('/')}/"):
        return f"not below {namespace}"
    if not isinstance(value, str):
        return "the value is not a string"
    if not 1 <= len(value) <= _LONGEST_VALUE:
        return f"the value has {len(value)} characters; 1 to {_LONGEST_VALUE} are allowed"
    if _SURROGATE.search(value):
        return "the value has half of a surrogate pair, which is not a character"
    return None


def _pages(run: Run) -> Page:
    """Requests a page of the values of ``--namespace``."""
    configuration, below = run.client.configuration, run.parsed.namespace
    return configuration.list if below is None else partial(configuration.listForNamespace, below)


async def allValues(run: Run) -> dict[str, str]:
    """All values of ``--namespace``, by their keys."""
    return {value["id"]: value["value"] async for value in run.allPages("configuration values", _pages(run))}


@command(
    "configuration list",
    "--namespace /production/cassandra",
    namespace(),
    columns=COLUMNS,
    shows="list",
    paged="values",
)
async def listValues(run: Run) -> Any:
    """Show configuration values."""
    return await run.onePageOrAll(_pages(run))


@command(
    "configuration get",
    "/production/cassandra/listen_ip -f value",
    columns={**COLUMNS, "etag": Column("ETag", isExtra=True)},
    alone="value",
    **_KEY,
)
async def get(run: Run) -> Any:
    """
    Show one configuration value.

    "-c etag" shows its tag, for --if-match.
    """
    configuration = run.client.configuration
    return await (configuration.getWithEtag if "etag" in run.output.columns else configuration.get)(run.parsed.id)


def _ifMatch(what: str) -> Argument:
    def tag(text: str) -> str:
        # Its quotes may be left out: a shell takes them away.
        return text if text == "*" or '"' in text else f'"{text}"'

    shown = f"{what} only if the value still has this tag, as 'get -c etag' shows it"
    return argument("--if-match", dest="ifMatch", metavar="TAG", type=tag, help=shown)


@command(
    "configuration set",
    "/production/cassandra/listen_ip 127.0.0.1",
    argument("given", nargs="*", metavar="KEY VALUE", help="the key and the value, unless options give them"),
    argument("--id", metavar="KEY", help="the key"),
    argument("--value", metavar="VALUE", help="the value"),
    _ifMatch("set it"),
)
def setValue(run: Run) -> None:
    """
    Set a configuration value, whether it exists or not.

    With --if-match, a value that another client has changed meanwhile stays as it is, and the exit code is 1.
    """
    given = list(run.parsed.given)
    key, value = (
        option if option is not None else given.pop(0) if given else None
        for option in (run.parsed.id, run.parsed.value)
    )
    if key is None or value is None or given:
        raise UsageError("give one key and one value: raxsr configuration set KEY VALUE")
    problem = problemOf(key, value)
    if problem is not None:
        raise CommandFailed(f"{key!r}: {problem}")
    run.checkOutput(always=False)
    run.ask(lambda: run.client.configuration.set(key, value, ifMatch=run.parsed.ifMatch))
    run.say(f'Value for key "{key}" set to "{value}"')


@command("configuration remove", "/production/cassandra/listen_ip", _ifMatch("remove it"), **_KEY)
async def remove(run: Run) -> str:
    """Remove a configuration value."""
    await run.client.configuration.remove(run.parsed.id, ifMatch=run.parsed.ifMatch)
    return f'Configuration value "{run.parsed.id}" has been removed'


# -- the changes of a value


def _change(event: Any) -> tuple[str, str | None]:
    return event["payload"]["configuration_value_id"], event["payload"].get("new_value")


async def firstMarker(client: Client, now: float) -> str | None:
    """
    The marker of the oldest events of 30 days; ``None`` if those of the last hour are all. The registry refuses markers
    from before the account was created, and no response has that time: it is found by bisection.
    """
    from ...discovery.poller import markerAt

    moments = range(int(now * 1000) - _MONTH, int(now * 1000) - _HOUR)
    marker, begin, end, tried = None, 0, len(moments), 0
    while begin < end:
        # A microsecond later, because a float rounds, and the registry refuses a marker from before the account.
        candidate = markerAt(moments[tried] / 1000 + 1e-6)
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
    columns={
        "id": Column("Event ID"),
        "timestamp": timestamp("Timestamp"),
        "old_value": text("Old Value"),
        "new_value": text("New Value"),
    },
    shows="list",
    important=("old_value", "id"),
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
