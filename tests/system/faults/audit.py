"""
The registry's record of all that happened, read directly, beside what the applications know: whether the three
promises were kept.

* No service is reported as timed out that was alive and could reach the registry within its deadline.
* No service stays listed that has expired, or was removed.
* Nothing acknowledged is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import attrs

from txserviceregistry import Client
from txserviceregistry.errors import BadRequest
from txserviceregistry.types import Event

from .journal import Operation, Outcome

__all__ = ["Audit", "Findings"]

# A letter for each kind of event.
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
    The problems, a line each; none when the promises are kept.

    :ivar falseTimeouts: services that timed out, and should not have.
    :ivar orphans: services that are listed, and should not be.
    :ivar lost: what was acknowledged, and is neither there nor explained by what came after.
    :ivar disorder: events that are out of order, missing, there twice, or don't fit the listings.
    """

    falseTimeouts: list[str] = attrs.field(factory=list)
    orphans: list[str] = attrs.field(factory=list)
    lost: list[str] = attrs.field(factory=list)
    disorder: list[str] = attrs.field(factory=list)


class Audit:
    """
    Looks at one account of one registry, again and again: each look takes up where the last one ended.

    :param client: of the registry itself, not by way of the proxy.
    :param isSeveral: whether applications know several servers. Then a creation without a response is done once more,
        when the first one has been found out and removed, or has expired. And each request may have been repeated at
        another server while the first one still worked on it, and took effect after later requests: a service that was
        created so is one that its client does not know, and expires.
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
        # Services that were to be created, that were to be removed, that have been there and were gone, and that came
        # back although all of this had been asked for once.
        self._created: set[str] = set()
        self._removed: set[str] = set()
        self._gone: set[str] = set()
        self._createdLate: set[str] = set()
        self._operations: Sequence[Operation] = ()

    def count(self, type: str, id: str | None = None) -> int:
        """How many events of this type there were, about a certain service or value, or about all."""
        return sum(each["type"] == type and id in (None, _about(each)) for each in self.events)

    async def look(
        self,
        operations: Iterable[Operation] = (),
        *,
        mayTimeOut: Collection[str] = (),
        ended: Collection[str] = (),
    ) -> Findings:
        """
        Look at the news of the feed, and at all listings.

        :param operations: what applications asked for since the last look, and its outcome; none of it is under way
            any more.
        :param mayTimeOut: services whose timeouts since the last look are right.
        :param ended: services whose application has ended, at least a heartbeat timeout ago.
        """
        findings = Findings()
        operations = list(operations)
        # A service may time out, also after a later look, if its application does not know that it is there, or left it
        # to its timeout because a removal had no response.
        self._unknown |= {
            each.id for each in operations if each.what in ("create", "remove") and each.outcome is Outcome.unknown
        }
        self._created |= {each.id for each in operations if each.what == "create"}
        self._removed |= {each.id for each in operations if each.what == "remove"}
        news, services, values = await self._read(findings)
        for event in news:
            self._replay(event, findings)
            id = _about(event)
            mayBe = id in self._unknown or id in mayTimeOut or id in self._createdLate
            if event["type"] == "service.timeout" and not mayBe:
                findings.falseTimeouts.append(f"{id} timed out: {event}")
        for id in sorted(services.keys() | self.services.keys()):
            if services.get(id) != self.services.get(id):
                findings.disorder.append(f"{id} is {services.get(id)}, by the events {self.services.get(id)}")
        for key in sorted(values.keys() | self.values.keys()):
            if values.get(key) != self.values.get(key):
                findings.disorder.append(f"{key} is {values.get(key)}, by the events {self.values.get(key)}")
        findings.orphans += sorted(set(ended) & services.keys())
        findings.lost += self._lost(operations, news)
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

    # -- findings

    def _lost(self, operations: Sequence[Operation], news: Sequence[Event]) -> list[str]:
        """The ids that were requested, and have impossible events."""
        # Among several servers an operation of an earlier look may have its effect now.
        self._operations = [*self._operations, *operations] if self._isSeveral else operations
        asked: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in self._operations:
            asked[operation.id].append(operation)
        happened: defaultdict[str, list[str]] = defaultdict(list)
        for event in self.events if self._isSeveral else news:
            payload = cast(Mapping[str, Any], event["payload"])
            happened[_about(event)].append(f"{_LETTERS[event['type']]}{payload.get('new_value', '')}")
        lost = []
        for id in dict.fromkeys(operation.id for operation in operations):
            if not _Past(asked[id], happened[id], self._isSeveral).isPossible():
                outcomes = [(each.what, each.value, each.outcome.value) for each in asked[id]]
                lost.append(f"{id}: asked for {outcomes}, and happened has {happened[id]}")
        return lost

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
            if self._isSeveral and id in self._gone and id in self._created & self._removed:
                self._createdLate.add(id)
        elif event["type"] in ("service.remove", "service.timeout"):
            if self.services.pop(id, None) is None:
                findings.disorder.append(f"went without having been there: {event}")
            self._gone.add(id)
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


class _Past:
    """
    Whether some events can be what became of some operations, all of them about one service or value.

    :param operations: in the order in which they were asked for.
    :param events: each as text: a letter for its kind, and the new value if there is one.
    :param isSeveral: see :class:`Audit`.
    """

    def __init__(self, operations: Sequence[Operation], events: Sequence[str], isSeveral: bool) -> None:
        self._operations = operations
        self._events = tuple(events)
        self._isSeveral = isSeveral
        # Which operations can have had each event.
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, operation in enumerate(operations):
            if operation.outcome is not Outcome.refused or operation.what in ("remove", "unset"):
                self._numbers[_eventOf(operation)].append(number)

    def isPossible(self) -> bool:
        """Try all ways to assign the events to the operations."""
        # How many operations and events are assigned, and which operations have had their effect late.
        left: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
        seen = set(left)
        while left:
            done, at, late = left.pop()
            if (done, at) == (len(self._operations), len(self._events)):
                return True
            steps = [(done, at + len(events), (*late, number)) for number, events in self._late(done, at, late)]
            if done < len(self._operations):
                outcomes = self._outcomes(self._operations[done])
                steps += [(done + 1, at + len(events), late) for events in outcomes if self._isNext(at, events)]
                if self._isSeveral and self._operations[done].what == "create":
                    # Done, found out and undone, or expired, before it was done with another server.
                    steps += [(done, at + 2, late) for end in "XT" if self._isNext(at, ("J", end))]
            left += [step for step in steps if step not in seen]
            seen.update(steps)
        return False

    def _isNext(self, at: int, events: tuple[str, ...]) -> bool:
        return self._events[at : at + len(events)] == events

    def _outcomes(self, operation: Operation) -> list[tuple[str, ...]]:
        """The events that an operation can have had."""
        event = _eventOf(operation)
        if operation.outcome is Outcome.acknowledged:
            return [(event,)]
        if operation.outcome is Outcome.refused and operation.what in ("create", "set"):
            return [()]
        # A removal that was sent again is refused because the first one was done.
        outcomes: list[tuple[str, ...]] = [(), (event,)]
        if operation.what == "create":
            # Its client does not know it, and sends no heartbeats for it.
            outcomes.append((event, "T"))
        return outcomes

    def _late(self, done: int, at: int, late: tuple[int, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """
        An operation before this one that can have had the next events: beside the event of its repetition, and after
        other operations.
        """
        if not self._isSeveral or at == len(self._events):
            return
        event = self._events[at]
        # Of those with the same event, one is as good as another.
        number = next((each for each in self._numbers[event] if each < done and each not in late), None)
        if number is not None:
            yield number, (event,)
            if self._isNext(at, ("J", "T")):
                yield number, ("J", "T")


def _eventOf(operation: Operation) -> str:
    return f"{_OPERATIONS[operation.what]}{operation.value or ''}"
