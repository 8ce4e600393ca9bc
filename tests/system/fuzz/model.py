"""
A model of the API: what its page says, once more, in as few words as possible, and without a look at the registry.

The registry's own choices are opaque here: tokens and ids of events are learned from the answers, and only
their form, order and uniqueness are checked. Times are seconds; moments of the wall clock are seconds since 1970.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import takewhile
from typing import Any

import attrs

from tests.system.fuzz.expectations import Expected, Form, isTimeUUID, link, positionOf, text
from tests.system.fuzz.locks import LockModel, isOfLock
from tests.system.fuzz.records import _EPOCH, HOUR, Account, Event, Request, Service, Value
from tests.system.fuzz.rules import (
    Refused,
    bad,
    changesIn,
    full,
    gone,
    idReason,
    integer,
    invalid,
    isTarget,
    keyReason,
    limitOf,
    mayChange,
    meets,
    noPage,
    page,
    pageOf,
    parameter,
    parsed,
    stateIn,
    string,
    tagOf,
    target,
    timeoutReason,
    uuidReason,
    withStates,
)

TYPES = (
    "service.join",
    "service.remove",
    "service.timeout",
    "configuration_value.update",
    "configuration_value.remove",
)
ALL_TYPES = (*TYPES, "service.update", "service.state", "lock.acquire", "lock.release", "lock.expire")
#: How long after its deadline an expiration may be missing in the feed: until the registry looks the next time.
SWEEP = 0.25
#: How long after a step of the wall clock the end of a state may be missing in the feed.
LOOK = 10.0


UP: dict[str, Any] = {"state": "up", "reason": "", "expires_at": None}


class Model(LockModel):
    """
    The response that a registry has to send.

    :param limits: how many services and values an account may have.
    :param gets: how many GETs an account may make in a day.
    :param wall: seconds since 1970.
    :param late: seconds after its deadline within which it need not be known yet that a service has expired; where it
        is not at once, not every node knows when a service was seen last.
    """

    def __init__(self, limits: tuple[int, int], gets: int, wall: float, late: float = 0.0) -> None:
        self.late = late
        self.mostServices, self.mostValues = limits
        self.mostGets = gets
        self.time = 0.0
        self._ahead = wall
        self._moments = 0
        self.accounts: dict[str, Account] = {}
        self.used: Counter[tuple[str, int]] = Counter()

    @property
    def wall(self) -> float:
        """The time of the wall clock."""
        return self.time + self._ahead

    # -- time

    def advance(self, seconds: float) -> None:
        """Time goes by; services whose deadline comes expire."""
        self.time += seconds
        for account in self.accounts.values():
            for service in sorted(account.services.values(), key=lambda service: service.deadline):
                if service.deadline <= self.time:
                    del account.services[service.id]
                    account.events.append(
                        Event(
                            "service.timeout",
                            service.payload,
                            service.deadline + self._ahead,
                            (service.deadline, 0),
                            (service.deadline + self.late + SWEEP, math.inf),
                            late=self.late,
                        )
                    )

            self._expireLocks(account, SWEEP)
        self._endStates(SWEEP + self.late)

    def _endStates(self, within: float, since: float = -math.inf) -> None:
        """States whose time is over end; the feed shows it within so many seconds, at the earliest from *since* on."""
        for account in self.accounts.values():
            for id, record in list(account.states.items()):
                if record["expires_at"] is not None and record["expires_at"] <= self.wall * 1000:
                    end = min(record["expires_at"] / 1000 - self._ahead, self.time)
                    latest = (max(max(end, since) + within, self.time if within > 1.0 else 0.0), math.inf)
                    self._tellState(account, id, UP, ((end, 0), latest), record["expires_at"] / 1000)

    def _tellState(self, account: Account, id: str, new: Any, when: Any = None, stamp: float | None = None) -> None:
        old = account.states.pop(id, {"id": id, **UP})
        if new != UP:
            account.states[id] = {"id": id, **new}
        if {**old, **new} != old:
            event = self._tell(account, "service.state", {"id": id, **new, "old_state": old["state"]})
            if when is not None and stamp is not None:
                (event.earliest, event.latest), event.stamp = when, stamp

    def stepWallClock(self, seconds: float) -> None:
        """The wall clock is set."""
        self._ahead += seconds
        # It is noticed at the next look.
        self._endStates(LOOK + SWEEP + self.late, self.time)

    def restart(self) -> None:
        """Every service has a full timeout again, and the counts of GETs begin anew."""
        self.used.clear()
        self._endStates(SWEEP, self.time)
        for account in self.accounts.values():
            for service in account.services.values():
                service.deadline = self.time + service.timeout
            for lock in account.locks.values():
                lock.deadline = self.time + lock.timeout

    @property
    def isUntold(self) -> bool:
        """Whether a service has expired whose event the feed may not have yet."""
        now = (self.time, math.inf)
        return any(event.latest > now for account in self.accounts.values() for event in account.events)

    # -- requests

    def answer(self, request: Request, node: int = 0) -> Expected:
        """
        The response that a request has to receive; its changes are made.

        :param node: the number of the node that it goes to: each counts GETs by itself.
        """
        try:
            return self._answer(request, node)
        except Refused as refused:
            return refused.expected

    def _answer(self, request: Request, node: int) -> Expected:
        if len(request.raw) >= (256 * 1024 if (request.method, request.path) == ("POST", "/heartbeats") else 5000):
            raise Refused(413, "requestTooLargeError", text(".*"), text(".*"), {"connection": "close"})
        body = parsed(request)
        if request.user != request.tenant:
            no = (
                "No authentication token provided"
                if request.user is None
                else "Invalid or expired authentication token"
            )
            challenge = {"www-authenticate": text('Keystone uri="http://.*/v2.0"')}
            raise Refused(401, "unauthorizedError", "forbidden", no, challenge)
        path = request.path
        if path.startswith(("/services/", "/events/", "/limits/")):
            path = path.removesuffix("/")
        collection, _, rest = path.removeprefix("/").partition("/")
        handler = getattr(self, f"_{collection}", None)
        segments = rest.split("/") if "/" in path[1:] else []
        if handler is None or not _isResource(request.method, collection, segments):
            raise noPage()
        account = self.accounts.setdefault(request.tenant, Account(self.wall))
        rate: dict[str, Any] = {}
        if request.method == "GET":
            used = self.used[request.tenant, node]
            # A request that waits was counted when it came.
            shown = text("[0-9]+") if request.parameter("wait") else str(used)
            rate = {
                "x-ratelimit-path-regex": "/.*",
                "x-ratelimit-limit": str(self.mostGets),
                "x-ratelimit-used": shown,
                "x-ratelimit-window": "86400 seconds",
                "reply-after": text("[0-9]+"),
            }
            if used >= self.mostGets:
                details = f'Limit of {self.mostGets} requests in 86400 seconds for path "/.*" has been reached'
                headers = {"retry-after": text("[1-9][0-9]*"), **rate}
                raise Refused(400, "rateLimitReached", "Rate limit has been reached.", details, headers)
            self.used[request.tenant, node] += 1
        try:
            answer: Expected = handler(request, account, body, rest, node)
        except Refused as refused:
            refused.expected.headers.update(rate)
            raise
        answer.headers.update(rate)
        return answer

    def _limits(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        rate = {"limit": self.mostGets, "used": self.used[request.tenant, node] - 1, "window": "24.0 hours"}
        resource = {"service": self.mostServices, "configuration_value": self.mostValues}
        return Expected(200, {"resource": resource, "rate": {"/.*": rate}})

    # -- services

    def _services(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        if not rest:
            return self._listed(request, account) if request.method == "GET" else self._created(request, account, body)
        id, _, action = rest.partition("/")
        if action == "state":
            return self._stateOf(request, account, id, body)
        if not action:
            withStates(request)
            parameter("serviceId", idReason(id))
        if action:
            reason = "Missing required key (token)" if "token" not in body else uuidReason(body["token"])
            if reason:
                raise invalid("token", reason)
            mayChange(request, "services", id)
            return Expected(200, {"token": self._heartbeat(account, id, body["token"])})
        changes = changesIn(body, id) if request.method == "PUT" else {}
        mayChange(request, "services", id)
        service = account.services.get(id)
        if service is None:
            raise gone("Service", id)
        if request.method == "GET":
            return Expected(200, self._withState(request, account, service))
        if request.method == "DELETE":
            del account.services[id]
            self._tell(account, "service.remove", service.payload)
            return Expected(204)
        before = service.payload
        service.tags = changes.get("tags", service.tags)
        service.metadata = changes.get("metadata", service.metadata)
        if "heartbeat_timeout" in changes:
            service.timeout = changes["heartbeat_timeout"]
            service.deadline = self.time + service.timeout
        changed = [name for name, value in service.payload.items() if before[name] != value]
        if changed:
            oldTags = {"old_tags": before["tags"]} if "tags" in changed else {}
            payload = {**self._payload(account, service), "changed": changed, **oldTags}
            self._tell(account, "service.update", payload)
        return Expected(204, None, {"location": link(f"/v1.0/{request.tenant}/services/{id}", [])})

    def _listed(self, request: Request, account: Account) -> Expected:
        limit, marker = pageOf(request)
        tag = request.parameter("tag")
        if tag is not None:
            parameter("tag", string(tag, 1, 65, r"[A-Za-z0-9_.-]*"))
        withStates(request)
        services = [one for one in account.services.values() if tag is None or tag in one.tags]
        shown = (self._withState(request, account, one) for one in services)
        return page(request, limit, marker, sorted(shown, key=lambda one: str(one["id"])))

    # -- states

    def _payload(self, account: Account, service: Service) -> dict[str, Any]:
        state = account.states.get(service.id, UP)["state"]
        return {**service.payload, **({} if state == "up" else {"state": state})}

    def _withState(self, request: Request, account: Account, service: Service) -> dict[str, Any]:
        record = account.states.get(service.id, UP)
        if not withStates(request) or record["state"] == "up":
            return service.shown
        return {**service.shown, "state": record["state"], "state_reason": record["reason"]}

    def _stateOf(self, request: Request, account: Account, id: str, body: Any) -> Expected:
        if request.method == "GET":
            if idReason(id):
                raise gone("Service", id)
            return Expected(200, account.states.get(id, {"id": id, **UP}))
        parameter("serviceId", idReason(id))
        new = UP
        if request.method == "PUT":
            state, reason, seconds = stateIn(body)
            ends = None if seconds is None else math.floor(self.wall * 1000) + seconds * 1000
            new = {"state": state, "reason": reason, "expires_at": ends}
            if state == "up" and not reason:
                new = UP
        if new != UP and id not in account.states and len(account.states) >= self.mostServices:
            raise full("service_state", self.mostServices)
        self._tellState(account, id, new)
        return Expected(204)

    def _states(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        limit, marker = pageOf(request)
        return page(request, limit, marker, [account.states[id] for id in sorted(account.states)])

    def _prometheus(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        tag = request.parameter("tag")
        if tag is not None:
            parameter("tag", string(tag, 1, 65, r"[A-Za-z0-9_.-]*"))
        services = sorted(account.services.values(), key=lambda one: one.id)
        states = {one.id: account.states.get(one.id, UP)["state"] for one in services}
        asked = [one for one in services if isTarget(one) and (tag is None or tag in one.tags)]
        return Expected(200, [target(one, states[one.id]) for one in asked if states[one.id] != "out"])

    def _created(self, request: Request, account: Account, body: Any) -> Expected:
        for key, reason in (("id", idReason), ("heartbeat_timeout", timeoutReason)):
            why = reason(body[key]) if key in body else f"Missing required key ({key})"
            if why:
                raise invalid(key, why)
        changes = changesIn(body, body["id"])
        id = body["id"]
        mayChange(request, "services", id)
        if id in account.services:
            message = f"Service with id {id} already exists."
            raise Refused(400, "serviceWithThisIdExists", message, text(".*"))
        if len(account.services) >= self.mostServices:
            raise full("service", self.mostServices)
        timeout = changes["heartbeat_timeout"]
        service = Service(id, timeout, changes.get("tags", []), changes.get("metadata", {}), self.time + timeout)
        service.moments = [] if self.late else None
        account.services[id] = service
        event = self._tell(account, "service.join", self._payload(account, service))
        for earlier in account.events:
            if earlier.type == "service.timeout" and earlier.payload["id"] == id:
                # The end of one registration comes before the beginning of the next.
                earlier.latest = min(earlier.latest, event.latest)
        location = link(f"/v1.0/{request.tenant}/services/{id}", [])
        return Expected(201, {"token": self._newToken(account, service)}, {"location": location})

    def _heartbeat(self, account: Account, id: str, token: str) -> Form:
        service = account.services.get(id)
        if service is None:
            raise gone("Service", id)
        if token.lower() not in service.tokens:
            raise gone("HeartbeatMarker", token)
        service.deadline = self.time + service.timeout
        service.lastSeen = math.ceil(self.wall * 1000)
        if service.moments is not None:
            service.moments.append(service.lastSeen)
        return self._newToken(account, service, token)

    def _newToken(self, account: Account, service: Service, presented: str = "") -> Form:
        def learn(token: Any) -> str | None:
            if not isTimeUUID(token) or token == presented.lower():
                return "is not a new heartbeat token"
            owner = next((id for known, id in account.tokens if known == token), service.id)
            if owner != service.id:
                return f"is a heartbeat token of {owner}"
            service.tokens.add(token)
            account.tokens.append((token, service.id))
            return None

        return Form(learn)

    def _heartbeats(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        heartbeats = body.get("heartbeats")
        reason = None
        if "heartbeats" not in body:
            reason = "Missing required key (heartbeats)"
        elif not isinstance(heartbeats, list):
            reason = "Not an array"
        elif not 1 <= len(heartbeats) <= 1000:
            reason = "Object needs to have between 1 and 1000 items"
        if reason or not isinstance(heartbeats, list):
            raise invalid("heartbeats", str(reason))
        return Expected(200, {"values": [self._oneOfMany(request, account, heartbeat) for heartbeat in heartbeats]})

    def _oneOfMany(self, request: Request, account: Account, heartbeat: Any) -> dict[str, Any]:
        if isOfLock(heartbeat):
            return self._oneOfLock(request, account, heartbeat)
        id = heartbeat.get("id") if isinstance(heartbeat, dict) else None
        try:
            if not isinstance(heartbeat, dict):
                raise invalid("heartbeats", "Not a hash")
            for key, reason in (("id", idReason), ("token", uuidReason)):
                why = reason(heartbeat[key]) if key in heartbeat else f"Missing required key ({key})"
                if why:
                    raise invalid(key, why)
            mayChange(request, "services", str(id))
            return {"id": id, "token": self._heartbeat(account, str(id), heartbeat["token"])}
        except Refused as refused:
            return {"id": id if isinstance(id, str) else None, "fault": refused.expected.body}

    # -- configuration

    def _configuration(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        if request.method == "GET" and (not rest or rest.endswith("/")):
            limit, marker = pageOf(request)
            tagged = request.parameter("etags")
            if tagged not in (None, "true", "false"):
                parameter("etags", f"Invalid value: {tagged}. Valid values are: true,false")
            namespace = ("/" + rest.removeprefix("/"))[:-1] if rest.strip("/") else rest
            if namespace not in ("", "/"):
                parameter("configurationId", keyReason(namespace))
            below = namespace.removesuffix("/") + "/" if namespace else ""
            keys = sorted(key for key in account.values if key == namespace or key.startswith(below))
            shown = [
                {"id": key, "value": value.text, **({"etag": value.change.etag} if tagged == "true" else {})}
                for key, value in ((key, account.values[key]) for key in keys)
            ]
            return page(request, limit, marker, shown)
        key = "/" + rest if "/" in rest and not rest.startswith("/") else rest
        parameter("configurationId", keyReason(key))
        if request.method == "PUT":
            return self._set(request, account, key, body)
        mayChange(request, "configuration", key)
        value = account.values.get(key)
        if request.method == "DELETE":
            meets(request, key, value)
        if value is None:
            raise gone("ConfigurationValue", key)
        if request.method == "GET":
            return Expected(200, {"id": key, "value": value.text}, tagOf(value))
        del account.values[key]
        self._tell(account, "configuration_value.remove", {"configuration_value_id": key, "old_value": value.text})
        return Expected(204)

    def _set(self, request: Request, account: Account, key: str, body: Any) -> Expected:
        if "id" in body and (reason := keyReason(body["id"])):
            raise invalid("id", reason)
        why = string(body["value"], 1, 1024) if "value" in body else "Missing required key (value)"
        if why:
            raise invalid("value", why)
        mayChange(request, "configuration", key)
        value, new = account.values.get(key), body["value"]
        meets(request, key, value)
        if value is None and len(account.values) >= self.mostValues:
            raise full("configuration_value", self.mostValues)
        if value is None or value.text != new:
            payload = {"configuration_value_id": key, "old_value": value and value.text, "new_value": new}
            value = account.values[key] = Value(new, self._tell(account, "configuration_value.update", payload))
        location = link(f"/v1.0/{request.tenant}/configuration/{key}", [])
        return Expected(204, None, {"location": location, **tagOf(value)})

    # -- events

    def _tell(self, account: Account, type: str, payload: dict[str, Any]) -> Event:
        self._moments += 1
        now = (self.time, self._moments)
        account.events.append(Event(type, dict(payload), self.wall, now, now))
        return account.events[-1]

    def learn(self, tenant: str, shown: list[Any]) -> str | None:
        """
        Look at a whole feed, so that the ids of all events are known.

        :return: what is wrong with it, in words.
        """
        events = self.accounts[tenant].events
        learned: list[Event] = []
        left = list(events)
        moment, position = (0.0, 0.0), 0
        for value in shown:
            known = [event for event in left if event.id == value["id"]]
            event = next((one for one in known or left if one.isThis(value) and bool(known) == bool(one.id)), None)
            if event is None:
                return f"an event that should not be: {value}"
            if not isTimeUUID(value["id"]) or positionOf(value["id"]) <= position:
                return f"an id out of order: {value}"
            moment, position = max(moment, event.earliest), positionOf(value["id"])
            if moment > event.latest:
                return f"an event that comes too late: {value}"
            event.id = value["id"]
            left.remove(event)
            learned.append(event)
        if missing := [event for event in left if event.id or event.latest <= (self.time, math.inf)]:
            return f"events that are missing: {missing}"
        events[:] = learned + left
        return None

    def peek(self, request: Request, *, without: int = 0) -> Expected:
        """
        The response that a GET would receive now; it does not count.

        :param without: if the feed does not tell yet of so many of its newest events.
        """
        used, account = self.used.copy(), self.accounts[request.tenant]
        events = account.events
        account.events = events[: len(events) - without]
        expected = self.answer(request)
        self.used, account.events = used, events
        return expected

    def untold(self, tenant: str) -> int:
        """How many of the newest events are expirations that the feed need not have yet."""
        newest = reversed(self.accounts[tenant].events)
        return sum(1 for _ in takewhile(lambda event: event.latest > (self.time, math.inf), newest))

    def news(self, request: Request) -> bool:
        """Whether there is something newer than the marker of a good request. All ids have to be known."""
        values = self.peek(request).body.get("values", ())
        return any(value["id"] != (request.parameter("marker") or "").lower() for value in values)

    def _events(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        limit = limitOf(request)
        marker, type, wait = (request.parameter(name) for name in ("marker", "type", "wait"))
        if marker is not None and (reason := uuidReason(marker)):
            raise bad(reason, reason)
        type = type or None
        if type is not None and type not in TYPES:
            raise bad(*[f"Invalid type: {type}. Valid types are: {','.join(TYPES)}"] * 2)
        if wait is not None:
            parameter("wait", integer(wait, 1, 60))
        wanted = TYPES if type is None else (type,)
        if types := request.parameter("types"):
            wanted = ALL_TYPES if types == "all" else tuple(types.split(","))
            for each in wanted:
                if each not in ALL_TYPES:
                    raise bad(*[f"Invalid type: {each}. Valid types are: {','.join(ALL_TYPES)}"] * 2)
            if type is not None:
                raise bad(*["type can't be combined with types"] * 2)
        events = [event for event in account.events if event.id]
        now = int(self.wall * 10_000_000) + _EPOCH
        if marker is None:
            since = now - int(HOUR * 10_000_000)
        else:
            marker = marker.lower()
            since = positionOf(marker)
            if marker not in [event.id for event in events]:
                if since >= now:
                    raise bad(*["from parameter must be smaller than the current time"] * 2)
                if since < math.floor(account.created * 1000) * 10_000 + _EPOCH:
                    raise bad(*["from parameter must be greater than or equal to the account creation date"] * 2)
        shown = [
            {"id": event.id, "timestamp": _stamp(event), "type": event.type, "payload": _shown(event, bool(types))}
            for event in events
            if positionOf(str(event.id)) >= since and event.type in wanted
        ]
        return page(request, limit, None, shown)


def _shown(event: Event, isComplete: bool) -> dict[str, Any]:
    return {name: value for name, value in event.payload.items() if isComplete or name != "state"}


def _stamp(event: Event) -> Form:
    return Form(
        lambda actual: None if event.isThis({**attrs.asdict(event), "timestamp": actual}) else "is not its time"
    )


def _isResource(method: str, collection: str, segments: list[str]) -> bool:
    match collection, segments:
        case ("services", []):
            return method in ("GET", "POST")
        case ("services", [id]):
            return bool(id) and method in ("GET", "PUT", "DELETE")
        case ("services", [id, "heartbeat"]):
            return bool(id) and method == "POST"
        case ("services", [id, "state"]):
            return bool(id) and method in ("GET", "PUT", "DELETE")
        case (("limits" | "events" | "prometheus" | "states"), []):
            return method == "GET"
        case ("heartbeats", []) | ("locks", ["heartbeat" | "release"]):
            return method == "POST"
        case ("locks", []):
            return method in ("GET", "POST")
        case ("configuration", ([] | [""])):
            return method == "GET"
        case ("configuration", _):
            return method in ("GET", "PUT", "DELETE")
    return False
