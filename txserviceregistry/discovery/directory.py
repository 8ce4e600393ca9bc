"""Directory: the services as they are now; and Suspects, those that stay in use although they have expired."""

from __future__ import annotations

import os
import random as randomModule
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast
from weakref import finalize, proxy

from twisted.internet.interfaces import IReactorTime

from ..api.shapes import readService
from ..api.transport import EVENT_TYPES
from ..client import Client
from ..types import Event, Service
from ..util.deferred import returnsDeferred
from ..util.fields import LONGEST_INTERVAL, boundedNumber
from ..util.logs import Listeners, Logger
from .mirror import BLIND_REFRESH, REFRESH, Mirror

#: The changes of a service.
Change = Literal["join", "update", "remove", "timeout"]

#: The part of a tag's instances that has to expire; and how many of them at least.
THRESHOLD = 0.5
FEWEST = 3
_BEGIN = (
    "{count} of {total} services with tag {tag} expired at once: they stay in use as suspects; "
    "check the network between them and the registry"
)
_END = "Enough services with tag {tag} are registered again; {count} suspects dropped"

_FIELDS = ("id", "heartbeat_timeout", "tags", "metadata", "last_seen")
_KINDS: dict[str, Change] = {
    "service.join": "join",
    "service.update": "update",
    "service.state": "update",
    "service.remove": "remove",
    "service.timeout": "timeout",
}


class Directory(Mirror[Service]):
    """
    The account's services, or those with a tag, in memory and current.

    ::

        directory = Directory(Client.fromSettings(), "www")
        directory.setServiceParent(application)
        directory.forTag("www")

    A change of a service is seen within milliseconds, or within 5 seconds if the registry can't wait for events.
    Without the registry's extension ``event-types``, an *update* of a service has no event. It is seen when all are
    listed again: after *refresh* seconds, or after a hundred times as long as the listing takes, if that is longer.

    While the registry is unreachable the directory keeps its services, and :attr:`stale` says for how long. Do not
    change the services that it returns.
    """

    what = "services"

    def __init__(
        self,
        client: Client,
        tag: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        refresh: float | None = None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after the directory has stopped.
        :param tag: only services with this tag; all if not given.
        :param path: a file that keeps the services, for a start while the registry is unreachable.
        :param refresh: seconds after which all are listed again, up to a fifth earlier; by default 600, or 60 if
            updates have no event.
        :param random: returns numbers from 0 to 1.
        :param wallClock: seconds since the epoch.
        :raises TypeError: if *tag* is not a string.
        """
        if tag is not None and not isinstance(tag, str):
            raise TypeError(f"tag is {tag!r}, but it has to be a string: a Directory has one tag, or all services")
        super().__init__(client, path, random, wallClock)
        self.tag = tag
        self._refresh = None if refresh is None else boundedNumber(refresh, 0.0, LONGEST_INTERVAL)
        self._ofTag: dict[str, dict[str, Service]] = {}
        # The results of forTag: as long as no service of the tag changes, it returns the same object.
        self._given: dict[str, tuple[Service, ...]] = {}

    def services(self) -> list[Service]:
        """All services, by id; raises :class:`~txserviceregistry.errors.NotRunning` before the first start."""
        known = self._known()
        return [known[id] for id in sorted(known)]

    def forTag(self, tag: str) -> Sequence[Service]:
        """The services with the *tag*, by id; raises ``NotRunning`` before the first start."""
        given = self._given.get(tag)
        if given is None:
            self._known()
            found = self._ofTag.get(tag)
            if found is None:
                return ()
            given = self._given[tag] = tuple(found[id] for id in sorted(found))
        return given

    def get(self, id: str) -> Service | None:
        """The service with this id, or ``None``; raises ``NotRunning`` before the first start."""
        return self._known().get(id)

    def onChange(self, listener: Callable[..., object], *, settle: float | None = None) -> Callable[[], None]:
        """
        Call *listener* with every change from now on.

        :param listener: called with ``join``, ``update``, ``remove`` or ``timeout``, and the service as it is then (or
            was). After a new listing, a service that is not there any more is a ``remove``, whatever the reason.
        :param settle: seconds to wait for further changes. Then *listener* is called once, with a list of such pairs,
            when nothing has changed for so long; at most four times as long after the first change, and at a stop.
        :return: a function that removes the listener.
        """
        return self._listen(listener, settle)

    def _refreshInterval(self) -> float:
        if self._refresh is not None:
            return self._refresh
        return REFRESH if EVENT_TYPES in self._client.extensions else BLIND_REFRESH

    @returnsDeferred
    async def _list(self) -> dict[str, Service]:
        return {item["id"]: _service(item) async for item in self._client.services.iterate(self.tag)}

    def _checked(self, key: str, value: Any) -> Service:
        return _service(readService(value))

    def _keyOf(self, event: Event) -> str | None:
        return event["payload"]["id"] if event["type"] in _KINDS else None

    def _after(self, event: Event, value: Service | None) -> Service | None:
        type, payload = event["type"], event["payload"]
        if type == "service.state":
            return value and _service(value, state=payload["state"], state_reason=payload["reason"])
        isGone = type not in ("service.join", "service.update")
        if isGone or (self.tag is not None and self.tag not in payload["tags"]):
            return None
        before: Any = value if value is not None and type == "service.update" else {"last_seen": None}
        state = payload.get("state", "up")
        reason = before["state_reason"] if before.get("state") == state else ""
        return _service(payload, last_seen=before["last_seen"], state_reason=reason)

    def _merge(self, value: Service | None, events: Sequence[Event]) -> Service | None:
        if value is not None and len(events) == 1 and events[0]["type"] == "service.join":
            # It was listed after it had joined, and may have been updated already.
            return value
        return super()._merge(value, events)

    def _differ(self, old: Service, new: Service) -> bool:
        return {**old, "last_seen": None} != {**new, "last_seen": None}

    def _changed(self, key: str, old: Service | None, new: Service | None, events: Sequence[Event]) -> None:
        for tag in old["tags"] if old is not None else ():
            self._given.pop(tag, None)
            self._ofTag.get(tag, {}).pop(key, None)
            if not self._ofTag.get(tag):
                self._ofTag.pop(tag, None)
        for tag in new["tags"] if new is not None else ():
            self._given.pop(tag, None)
            self._ofTag.setdefault(tag, {})[key] = cast(Service, new)
        # An update after a new registration is part of that.
        kinds = [kind for event in events if (kind := _KINDS[event["type"]]) != "update"]
        if new is None:
            self._listeners.call("timeout" if kinds[-1:] == ["timeout"] else "remove", old)
        elif old is not None and kinds[-1:] != ["join"]:
            self._listeners.call("update", new)
        else:
            if old is not None:
                # Its end was not seen.
                self._listeners.call("remove", old)
            self._listeners.call("join", new)


def _service(item: Any, **changes: object) -> Service:
    """A service out of a listing or an event, with some fields changed."""
    fields = {"state": "up", "state_reason": "", **item, **changes}
    names = _FIELDS if fields["state"] == "up" else (*_FIELDS, "state", "state_reason")
    return cast(Service, {name: fields[name] for name in names})


def checkedThreshold(threshold: object) -> float:
    """The panic threshold of an argument or an option, 0 to 1; raises ValueError if it is not valid."""
    return boundedNumber(threshold, 0.0, 1.0, "panicThreshold")


class Suspects:
    """
    The services of a directory, and suspects: services that stay in use although they have expired. When a larger part
    of a tag's instances than the threshold expires within one heartbeat timeout, they are most likely only cut off from
    the registry (Envoy calls this panic mode). Made before the directory starts; ends when nothing refers to it.
    """

    _log = Logger()

    def __init__(self, directory: Directory, clock: IReactorTime, threshold: float = THRESHOLD) -> None:
        """*threshold* is a number from 0 to 1, 0 for no suspects; raises ValueError for another one."""
        self._directory = directory
        self._clock = clock
        self._threshold = checkedThreshold(threshold)
        self._listeners: Listeners[[Change, Service]] = Listeners(self._log, "services and suspects")
        # By tag and id, those that have expired and not returned, and when, the earliest first.
        self._expired: dict[str, dict[str, tuple[float, Service]]] = {}
        # The tags that have suspects, which are all of their expired services; and these by id.
        self._panicking: set[str] = set()
        self._suspects: dict[str, Service] = {}
        # The results of forTag for these tags, each with the directory's result that it is made of.
        self._given: dict[str, tuple[Sequence[Service], tuple[Service, ...]]] = {}
        if self._threshold:
            weak = proxy(self)
            forget = directory.onChange(lambda change, service: weak._changed(change, service))
            finalize(self, forget).atexit = False

    def services(self) -> list[Service]:
        """All services, and all suspects, by id. Raises as the directory does."""
        return _merged(self._directory.services(), self._suspects.values())

    def forTag(self, tag: str) -> Sequence[Service]:
        """The services with the *tag*, and its suspects, by id. Raises as the directory does."""
        present = self._directory.forTag(tag)
        if tag not in self._panicking:
            return present
        given = self._given.get(tag)
        if given is None or given[0] is not present:
            suspects = (service for _, service in self._expired[tag].values())
            given = self._given[tag] = present, tuple(_merged(present, suspects))
        return given[1]

    def onChange(self, listener: Callable[[Change, Service], None]) -> Callable[[], None]:
        """See :meth:`Directory.onChange`. A suspect has a ``timeout`` when it is dropped."""
        return self._listeners.add(listener) if self._threshold else self._directory.onChange(listener)

    def _changed(self, change: Change, service: Service) -> None:
        id, tags, now = service["id"], {*service["tags"]}, self._clock.seconds()
        before = self._suspects
        affected = {tag for tag, expired in self._expired.items() if expired.pop(id, None) or self._isOld(tag, now)}
        affected |= self._panicking & tags
        if change == "timeout":
            affected |= tags
            for tag in tags:
                self._expired.setdefault(tag, {})[id] = now, service
        for tag in affected:
            self._given.pop(tag, None)
            self._settle(tag, now)
        if affected:
            self._suspects = {id: service for tag in self._panicking for id, (_, service) in self._expired[tag].items()}
        if id not in self._suspects:
            self._listeners.call(change, service)
        after = self._suspects
        for suspect in [after[key] for key in after if key not in before and key != id]:
            self._listeners.call("join", suspect)
        for suspect in [before[key] for key in before if key not in after and key != id]:
            self._listeners.call("timeout", suspect)

    def _isOld(self, tag: str, now: float) -> bool:
        # Whether the service of a tag that has expired first is not to be counted any more.
        moment, service = next(iter(self._expired[tag].values()), (now, None))
        return tag not in self._panicking and service is not None and now - moment > service["heartbeat_timeout"]

    def _settle(self, tag: str, now: float) -> None:
        expired, isPanicking = self._expired[tag], tag in self._panicking
        while self._isOld(tag, now):
            del expired[next(iter(expired))]
        total = len(expired) + len(self._directory.forTag(tag))
        isMuch = len(expired) > self._threshold * total
        if isMuch and not isPanicking and len(expired) >= FEWEST:
            self._panicking.add(tag)
            self._log.warn(_BEGIN, count=len(expired), total=total, tag=tag)
        elif not isMuch and isPanicking:
            self._panicking.discard(tag)
            self._log.info(_END, tag=tag, count=len(expired))
            expired.clear()
        if not expired:
            del self._expired[tag]


def _merged(present: Iterable[Service], suspects: Iterable[Service]) -> list[Service]:
    byId = {service["id"]: service for services in (suspects, present) for service in services}
    return [byId[id] for id in sorted(byId)]
