"""
What the registry says of all that happened, asked directly, beside what the applications know: whether the three
promises were kept.

* No service is reported as timed out that was alive and could reach the registry within its deadline.
* None stays listed that died.
* Nothing acknowledged is lost.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import attrs

from txserviceregistry import Client
from txserviceregistry.errors import BadRequest
from txserviceregistry.types import Event

from .journal import Operation, Outcome

__all__ = ["Audit", "Findings"]

# The events of one thing as text, a letter for each kind, so that a regular expression can say what may have happened.
_LETTERS = {
    "service.join": "J",
    "service.remove": "X",
    "service.timeout": "T",
    "configuration_value.update": "S",
    "configuration_value.remove": "U",
}
_OPERATIONS = {"create": "J", "remove": "X", "set": "S", "unset": "U"}


@attrs.define
class Findings:
    """
    What is wrong, a line each; when the promises are kept, nothing is.

    :ivar falseTimeouts: services that timed out, and should not have.
    :ivar ghosts: services that are listed, and should not be.
    :ivar lost: what was acknowledged, and is neither there nor explained by what came after.
    :ivar disorder: events that are out of order, missing, there twice, or don't fit the listings.
    """

    falseTimeouts: list[str] = attrs.field(factory=list)
    ghosts: list[str] = attrs.field(factory=list)
    lost: list[str] = attrs.field(factory=list)
    disorder: list[str] = attrs.field(factory=list)


class Audit:
    """
    Looks at one account of one registry, again and again: each look takes up where the last one ended.

    :param client: of the registry itself, not by way of the proxy.
    :param isSeveral: whether applications know several servers: then a creation without an answer is done once more,
        when the first one has been found out and removed, or has died.
    :ivar events: all events so far.
    :ivar services: the services that are there, by their id, as the events have it.
    :ivar values: the configuration values in the same way.
    """

    def __init__(self, client: Client, *, isSeveral: bool = False) -> None:
        self.client = client
        self._isSeveral = isSeveral
        self.events: list[Event] = []
        self.services: dict[str, Mapping[str, Any]] = {}
        self.values: dict[str, str] = {}
        self._position = 0
        # Services whose creation or removal had no response.
        self._unknown: set[str] = set()

    def count(self, type: str, id: str | None = None) -> int:
        """How many events of this type there were, about a certain service or value, or about all."""
        return sum(each["type"] == type and id in (None, _about(each)) for each in self.events)

    async def look(
        self,
        operations: Iterable[Operation] = (),
        *,
        mayTimeOut: Collection[str] = (),
        dead: Collection[str] = (),
    ) -> Findings:
        """
        Look at the news of the feed, and at all listings.

        :param operations: what applications asked for since the last look, and its outcome; none of it is under way
            any more.
        :param mayTimeOut: services whose timeouts since the last look are right.
        :param dead: services whose application has died, at least a heartbeat timeout ago.
        """
        findings = Findings()
        operations = list(operations)
        # A service may time out, also after a later look, if its application does not know that it is there, or left it
        # to its timeout because a removal had no response.
        self._unknown |= {
            each.id for each in operations if each.what in ("create", "remove") and each.outcome is Outcome.unknown
        }
        news, services, values = await self._read(findings)
        for event in news:
            self._replay(event, findings)
            id = _about(event)
            if event["type"] == "service.timeout" and id not in self._unknown and id not in mayTimeOut:
                findings.falseTimeouts.append(f"{id} timed out: {event}")
        for id in sorted(services.keys() | self.services.keys()):
            if services.get(id) != self.services.get(id):
                findings.disorder.append(f"{id} is {services.get(id)}, by the events {self.services.get(id)}")
        for key in sorted(values.keys() | self.values.keys()):
            if values.get(key) != self.values.get(key):
                findings.disorder.append(f"{key} is {values.get(key)}, by the events {self.values.get(key)}")
        findings.ghosts += sorted(set(dead) & services.keys())
        findings.lost += _lost(operations, news, "(?:J;[XT];)*" if self._isSeveral else "")
        return findings

    async def whole(self) -> Findings:
        """Read the feed from its beginning once more, and compare it with what was read piece by piece."""
        findings = Findings()
        events, self.events = self.events, self.events[:1]
        await self._news(findings)
        if self.events != events:
            findings.disorder.append("the feed is another one when it is read from its beginning")
        return findings

    # -- reading

    async def _read(self, findings: Findings) -> tuple[list[Event], dict[str, Any], dict[str, str]]:
        """The news, and the listings as they are right after them."""
        news = await self._news(findings)
        while True:
            services = {each["id"]: _lasting(each) async for each in self.client.services.iterate()}
            values = {each["id"]: each["value"] async for each in self.client.configuration.iterate()}
            later = await self._news(findings)
            if not later:
                return news, services, values
            news += later

    async def _news(self, findings: Findings) -> list[Event]:
        last = self.events[-1] if self.events else None
        try:
            news = await self._feed(None if last is None else last["id"])
        except BadRequest as error:
            findings.disorder.append(f"the feed does not know the event {last} any more: {error}")
            return []
        if last is not None:
            if news[:1] != [last]:
                findings.disorder.append(f"the feed has {news[:1]} where it had {last}")
            news = news[1:]
        self.events += news
        return news

    async def _feed(self, marker: str | None) -> list[Event]:
        found: list[Event] = []
        while True:
            page = await self.client.events.list(marker=marker, limit=1000)
            found += page["values"]
            marker = page["metadata"]["next_marker"]
            if marker is None:
                return found

    # -- judging

    def _replay(self, event: Event, findings: Findings) -> None:
        position = _position(event)
        if position <= self._position:
            findings.disorder.append(f"came after a later one: {event}")
        self._position = position
        id, payload = _about(event), cast(Mapping[str, Any], event["payload"])
        if event["type"] == "service.join":
            if id in self.services:
                findings.disorder.append(f"joined while it was there: {event}")
            self.services[id] = _lasting(payload)
        elif event["type"] in ("service.remove", "service.timeout"):
            if self.services.pop(id, None) is None:
                findings.disorder.append(f"went without having been there: {event}")
        else:
            if self.values.pop(id, None) != payload["old_value"]:
                findings.disorder.append(f"the value was another one before: {event}")
            if event["type"] == "configuration_value.update":
                self.values[id] = payload["new_value"]


def _about(event: Event) -> str:
    payload = cast(Mapping[str, Any], event["payload"])
    return str(payload["id"] if event["type"].startswith("service.") else payload["configuration_value_id"])


def _position(event: Event) -> int:
    """The time in a version-1 UUID."""
    low, middle, high, *_ = event["id"].split("-")
    return int(high[1:] + middle + low, 16)


def _lasting(service: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: service[name] for name in ("heartbeat_timeout", "tags", "metadata")}


def _lost(operations: Iterable[Operation], news: Iterable[Event], beforeCreates: str) -> list[str]:
    """
    Whose events are none that these operations can have had.

    :param beforeCreates: what may have happened before a creation was done, as a regular expression.
    """
    asked: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        asked[operation.id].append(operation)
    happened: defaultdict[str, list[str]] = defaultdict(list)
    for event in news:
        payload = cast(Mapping[str, Any], event["payload"])
        happened[_about(event)].append(f"{_LETTERS[event['type']]}{payload.get('new_value', '')};")
    lost = []
    for id, all_ in asked.items():
        allowed = "".join(f"{beforeCreates if each.what == 'create' else ''}{_pattern(each)}" for each in all_)
        if not re.fullmatch(allowed, "".join(happened[id])):
            outcomes = [(each.what, each.value, each.outcome.value) for each in all_]
            lost.append(f"{id}: asked for {outcomes}, and happened has {happened[id]}")
    return lost


def _pattern(operation: Operation) -> str:
    """The events that an operation can have had, as a regular expression."""
    event = f"{_OPERATIONS[operation.what]}{operation.value or ''};"
    if operation.outcome is Outcome.acknowledged:
        return event
    if operation.what == "create":
        # Nobody knew of it, and nobody heartbeated it.
        return "" if operation.outcome is Outcome.refused else f"(?:{event}(?:T;)?)?"
    # A removal that was sent again is refused because the first one was done.
    if operation.outcome is Outcome.refused and operation.what == "set":
        return ""
    return f"(?:{event})?"
