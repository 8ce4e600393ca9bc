"""
A model of the API: what its page says, once more, in as few words as possible, and without a look at the registry.

What the protocol leaves to a registry is opaque here: tokens and ids of events are learned from the answers, and only
their form, order and uniqueness are checked. Times are seconds; moments of the wall clock are seconds since 1970.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import takewhile
from typing import Any

import attrs

from tests.system.fuzz.expectations import Expected, Form, difference, isTimeUUID, link, positionOf, text

TYPES = (
    "service.join",
    "service.remove",
    "service.timeout",
    "configuration_value.update",
    "configuration_value.remove",
)
#: How long after its deadline an expiration may be missing in the feed: until the registry looks the next time.
SWEEP = 0.25
HOUR = 3600.0
NO_PAGE = "The page cannot be found."
BAD_MARKER = r"Marker contains invalid characters. Valid characters are: /^[a-z0-9\-:_\.\/]{0,255}$/i"

_EPOCH = 0x01B21DD213814000


def timeUUID(moment: float) -> str:
    """A version-1 UUID of this moment that no registry has made."""
    position = int(moment * 10_000_000) + _EPOCH
    return f"{position & 0xFFFFFFFF:08x}-{position >> 32 & 0xFFFF:04x}-1{position >> 48:03x}-8000-0123456789ab"


@attrs.frozen
class Request:
    """
    A request.

    :ivar tenant: the one in the path.
    :ivar path: what follows the tenant.
    :ivar user: whose auth token it has: a tenant, ``"nobody"`` for an unknown token, ``None`` for none.
    :ivar body: bytes as they are, anything else as JSON; ``None`` for no body.
    """

    method: str
    path: str
    body: Any = None
    query: tuple[tuple[str, str], ...] = ()
    tenant: str = "1"
    user: str | None = "1"
    contentType: str | None = None

    @property
    def raw(self) -> bytes:
        """The body as it travels."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return json.dumps(self.body).encode()

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return dict(reversed(self.query)).get(name)


@attrs.define
class Event:
    """
    :ivar stamp: when it happened by the wall clock.
    :ivar earliest: when it can have been put into the feed first, and *latest* when last: times of the model, each
        with a number to tell moments at the same time apart.
    :ivar id: as soon as it is known.
    :ivar late: seconds by which its time may be later than it was.
    """

    type: str
    payload: dict[str, Any]
    stamp: float
    earliest: tuple[float, float]
    latest: tuple[float, float]
    id: str | None = None
    late: float = 0.0

    def isThis(self, shown: Any) -> bool:
        """Whether what the feed shows can be this event."""
        milliseconds = shown.get("timestamp")
        return (
            type(milliseconds) is int
            and math.floor(self.stamp * 1000) <= milliseconds <= math.ceil((self.stamp + self.late) * 1000)
            and difference([self.type, self.payload], [shown.get("type"), shown.get("payload")]) is None
        )


@attrs.define
class Service:
    """
    :ivar tokens: the heartbeat tokens of this registration.
    :ivar moments: when it was seen, if not every node knows the last time.
    """

    id: str
    timeout: int
    tags: list[str]
    metadata: dict[str, str]
    deadline: float
    lastSeen: int | None = None
    tokens: set[str] = attrs.field(factory=set)
    moments: list[int] | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        return {**self.payload, "last_seen": self.lastSeen if self.moments is None else Form(self._wasSeen)}

    def _wasSeen(self, moment: Any) -> str | None:
        assert self.moments is not None
        return None if moment is None or moment in self.moments else f"is none of {self.moments}"

    @property
    def payload(self) -> dict[str, Any]:
        """As its events show it."""
        return {"id": self.id, "heartbeat_timeout": self.timeout, "tags": self.tags, "metadata": self.metadata}


@attrs.define
class Account:
    """:ivar created: when, by the wall clock."""

    created: float
    services: dict[str, Service] = attrs.field(factory=dict)
    values: dict[str, str] = attrs.field(factory=dict)
    events: list[Event] = attrs.field(factory=list)
    tokens: list[tuple[str, str]] = attrs.field(factory=list)
    """Every heartbeat token that was given out, and for which id."""


class Refused(Exception):
    """The answer is a fault."""

    def __init__(
        self, status: int, type: str, message: Any, details: Any, headers: dict[str, Any] | None = None
    ) -> None:
        super().__init__(status, type, message, details)
        self.expected = Expected(
            status,
            {"type": type, "code": status, "message": message, "details": details, "txnId": text("[0-9a-z-]+")},
            headers or {},
        )


def bad(message: str, details: str) -> Refused:
    return Refused(400, "badRequest", message, details)


def invalid(key: str, reason: str) -> Refused:
    return bad(f"Validation error for key '{key}'", reason)


def gone(kind: str, key: str) -> Refused:
    return Refused(404, "notFoundError", "object does not exist", f'Object "{kind}" with key "{key}" does not exist')


def noPage() -> Refused:
    return Refused(404, "notFoundError", NO_PAGE, NO_PAGE)


def full(resource: str, most: int) -> Refused:
    details = f"Limit for resource {resource} has been reached. Maximum allowed objects: {most}"
    return Refused(400, "limitReached", "Resource limit has been reached", details)


# -- values: each function returns the reason why not, or None


def string(value: Any, least: int, most: int, pattern: str = r"(?s:.*)") -> str | None:
    if not isinstance(value, str):
        return "Not a string"
    if not least <= len(value) <= most:
        return f"String is not in range ({least}..{most})"
    return None if re.fullmatch(pattern, value, re.ASCII) else "Invalid characters"


def integer(value: Any, least: int, most: int) -> str | None:
    whole = wholeNumber(value)
    if whole is None:
        return "Invalid integer"
    return None if least <= whole <= most else f"Value out of range ({least}..{most})"


def wholeNumber(value: Any) -> int | None:
    """What is meant by a number, or by a text that reads as one; ``None`` if that is not a whole number."""
    if type(value) is str and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value, re.ASCII):
        # (What overflows is out of every range.)
        value = max(-1e300, min(float(value), 1e300))
    if type(value) is float and value == int(value):
        value = int(value)
    return value if type(value) is int else None


def idReason(value: Any) -> str | None:
    return string(value, 3, 65, r"[A-Za-z0-9_.-]*")


def tagsReason(value: Any) -> str | None:
    if not isinstance(value, list):
        return "Not an array"
    if len(value) > 10:
        return "Object needs to have between 0 and 10 items"
    return next((reason for tag in value if (reason := string(tag, 1, 55))), None)


def metadataReason(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "Not a hash"
    if len(value) > 20:
        return "Object needs to have between 0 and 20 items"
    for key, each in value.items():
        if reason := string(key, 1, 255):
            return f"Key {key}: {reason}"
        if reason := string(each, 1, 255):
            return f"Value for key '{key}': {reason}"
    return None


def uuidReason(value: Any) -> str | None:
    if not isinstance(value, str):
        return "Not a string"
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value, re.ASCII):
        return "Invalid UUID"
    if value[14] != "1":
        return "UUID is not version 1"
    return None if value[19] in "89abAB" else "Unsupported UUID variant"


def keyReason(key: Any) -> str | None:
    return string(key, 3, 500, r"(/[A-Za-z0-9_-]{3,50}/?){0,10}([A-Za-z0-9_.-]{3,170})?") or (
        "Invalid characters" if key.endswith("/") else None
    )


def parameter(name: str, reason: str | None) -> None:
    if reason:
        raise bad(f"Invalid value for '{name}' query string parameter", reason)


def timeoutReason(value: Any) -> str | None:
    return integer(value, 3, 120)


class Model:
    """
    What a registry has to answer.

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
        """What the wall clock shows."""
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

    def stepWallClock(self, seconds: float) -> None:
        """The wall clock is set."""
        self._ahead += seconds

    def restart(self) -> None:
        """Every service has a full timeout again, and the counts of GETs begin anew."""
        self.used.clear()
        for account in self.accounts.values():
            for service in account.services.values():
                service.deadline = self.time + service.timeout

    @property
    def isUntold(self) -> bool:
        """Whether a service has expired whose event the feed may not have yet."""
        now = (self.time, math.inf)
        return any(event.latest > now for account in self.accounts.values() for event in account.events)

    # -- requests

    def answer(self, request: Request, node: int = 0) -> Expected:
        """
        What a request has to be answered with; what it changes is changed.

        :param node: the number of the node that it goes to: each counts GETs by itself.
        """
        try:
            return self._answer(request, node)
        except Refused as refused:
            return refused.expected

    def _answer(self, request: Request, node: int) -> Expected:
        if len(request.raw) >= (256 * 1024 if (request.method, request.path) == ("POST", "/heartbeats") else 5000):
            raise Refused(413, "requestTooLargeError", text(".*"), text(".*"), {"connection": "close"})
        body = _parsed(request)
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
        if not action:
            parameter("serviceId", idReason(id))
        if action:
            reason = "Missing required key (token)" if "token" not in body else uuidReason(body["token"])
            if reason:
                raise invalid("token", reason)
            return Expected(200, {"token": self._heartbeat(account, id, body["token"])})
        changes = _changes(body, id) if request.method == "PUT" else {}
        service = account.services.get(id)
        if service is None:
            raise gone("Service", id)
        if request.method == "GET":
            return Expected(200, service.shown)
        if request.method == "DELETE":
            del account.services[id]
            self._tell(account, "service.remove", service.payload)
            return Expected(204)
        service.tags = changes.get("tags", service.tags)
        service.metadata = changes.get("metadata", service.metadata)
        if "heartbeat_timeout" in changes:
            service.timeout = changes["heartbeat_timeout"]
            service.deadline = self.time + service.timeout
        return Expected(204, None, {"location": link(f"/v1.0/{request.tenant}/services/{id}", [])})

    def _listed(self, request: Request, account: Account) -> Expected:
        limit, marker = _pageOf(request)
        tag = request.parameter("tag")
        if tag is not None:
            parameter("tag", string(tag, 1, 65, r"[A-Za-z0-9_.-]*"))
        services = [one for one in account.services.values() if tag is None or tag in one.tags]
        return _page(request, limit, marker, sorted((one.shown for one in services), key=lambda one: str(one["id"])))

    def _created(self, request: Request, account: Account, body: Any) -> Expected:
        for key, reason in (("id", idReason), ("heartbeat_timeout", timeoutReason)):
            why = reason(body[key]) if key in body else f"Missing required key ({key})"
            if why:
                raise invalid(key, why)
        changes = _changes(body, body["id"])
        id = body["id"]
        if id in account.services:
            message = f"Service with id {id} already exists."
            raise Refused(400, "serviceWithThisIdExists", message, text(".*"))
        if len(account.services) >= self.mostServices:
            raise full("service", self.mostServices)
        timeout = changes["heartbeat_timeout"]
        service = Service(id, timeout, changes.get("tags", []), changes.get("metadata", {}), self.time + timeout)
        service.moments = [] if self.late else None
        account.services[id] = service
        event = self._tell(account, "service.join", service.payload)
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
                return "is no new heartbeat token"
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
        return Expected(200, {"values": [self._oneOfMany(account, heartbeat) for heartbeat in heartbeats]})

    def _oneOfMany(self, account: Account, heartbeat: Any) -> dict[str, Any]:
        id = heartbeat.get("id") if isinstance(heartbeat, dict) else None
        try:
            if not isinstance(heartbeat, dict):
                raise invalid("heartbeats", "Not a hash")
            for key, reason in (("id", idReason), ("token", uuidReason)):
                why = reason(heartbeat[key]) if key in heartbeat else f"Missing required key ({key})"
                if why:
                    raise invalid(key, why)
            return {"id": id, "token": self._heartbeat(account, str(id), heartbeat["token"])}
        except Refused as refused:
            return {"id": id if isinstance(id, str) else None, "fault": refused.expected.body}

    # -- configuration

    def _configuration(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        if request.method == "GET" and (not rest or rest.endswith("/")):
            limit, marker = _pageOf(request)
            namespace = ("/" + rest.removeprefix("/"))[:-1] if rest.strip("/") else rest
            if namespace not in ("", "/"):
                parameter("configurationId", keyReason(namespace))
            below = namespace.removesuffix("/") + "/" if namespace else ""
            keys = sorted(key for key in account.values if key == namespace or key.startswith(below))
            return _page(request, limit, marker, [{"id": key, "value": account.values[key]} for key in keys])
        key = "/" + rest if "/" in rest and not rest.startswith("/") else rest
        parameter("configurationId", keyReason(key))
        if request.method == "PUT":
            return self._set(request, account, key, body)
        if key not in account.values:
            raise gone("ConfigurationValue", key)
        if request.method == "GET":
            return Expected(200, {"id": key, "value": account.values[key]})
        old = account.values.pop(key)
        self._tell(account, "configuration_value.remove", {"configuration_value_id": key, "old_value": old})
        return Expected(204)

    def _set(self, request: Request, account: Account, key: str, body: Any) -> Expected:
        if "id" in body and (reason := keyReason(body["id"])):
            raise invalid("id", reason)
        why = string(body["value"], 1, 1024) if "value" in body else "Missing required key (value)"
        if why:
            raise invalid("value", why)
        old, new = account.values.get(key), body["value"]
        if old is None and len(account.values) >= self.mostValues:
            raise full("configuration_value", self.mostValues)
        account.values[key] = new
        if old != new:
            payload = {"configuration_value_id": key, "old_value": old, "new_value": new}
            self._tell(account, "configuration_value.update", payload)
        return Expected(204, None, {"location": link(f"/v1.0/{request.tenant}/configuration/{key}", [])})

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
        What a GET would be answered with now; it does not count.

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
        limit = _limitOf(request)
        marker, type, wait = (request.parameter(name) for name in ("marker", "type", "wait"))
        if marker is not None and (reason := uuidReason(marker)):
            raise bad(reason, reason)
        type = type or None
        if type is not None and type not in TYPES:
            raise bad(*[f"Invalid type: {type}. Valid types are: {','.join(TYPES)}"] * 2)
        if wait is not None:
            parameter("wait", integer(wait, 1, 60))
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
            {"id": event.id, "timestamp": _stamp(event), "type": event.type, "payload": event.payload}
            for event in events
            if positionOf(str(event.id)) >= since and type in (None, event.type)
        ]
        return _page(request, limit, None, shown)


def _stamp(event: Event) -> Form:
    return Form(
        lambda actual: None if event.isThis({**attrs.asdict(event), "timestamp": actual}) else "is not its time"
    )


def _parsed(request: Request) -> Any:
    raw = request.raw
    if not raw:
        return {}
    media = (request.contentType or "application/json").partition(";")[0].strip()
    if media.lower() != "application/json":
        raise Refused(400, "badRequest", f"Unsupported content type: {media}", text(".*"))
    try:
        body = json.loads(raw.decode("utf-8"))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "badRequest", text("Failed to parse request body:.*"), text(".*"))
    return body


def _isResource(method: str, collection: str, segments: list[str]) -> bool:
    match collection, segments:
        case ("services", []):
            return method in ("GET", "POST")
        case ("services", [id]):
            return bool(id) and method in ("GET", "PUT", "DELETE")
        case ("services", [id, "heartbeat"]):
            return bool(id) and method == "POST"
        case (("limits" | "events"), []):
            return method == "GET"
        case ("heartbeats", []):
            return method == "POST"
        case ("configuration", ([] | [""])):
            return method == "GET"
        case ("configuration", _):
            return method in ("GET", "PUT", "DELETE")
    return False


def _changes(body: Any, id: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "id" in body and body["id"] != id:
        raise invalid("id", "Attempted to mutate immutable field" if isinstance(body["id"], str) else "Not a string")
    if "heartbeat_timeout" in body:
        if why := timeoutReason(body["heartbeat_timeout"]):
            raise invalid("heartbeat_timeout", why)
        changes["heartbeat_timeout"] = wholeNumber(body["heartbeat_timeout"])
    for key, reason, default in (("tags", tagsReason, []), ("metadata", metadataReason, {})):
        if key in body:
            changes[key] = default if body[key] is None else body[key]
            if why := reason(changes[key]):
                raise invalid(key, why)
    return changes


def _limitOf(request: Request) -> int:
    limits = [value for name, value in request.query if name == "limit"]
    if not limits:
        return 100
    limit = limits[0]
    if len(limits) > 1 or not re.fullmatch("-?[0-9]+", limit, re.ASCII):
        raise Refused(400, "invalidLimit", "Invalid limit", "Limit must be a number")
    if not 1 <= int(limit) <= 1000:
        details = f"Invalid limit {limit}. Minimum limit is 1 and maximum limit is 1000."
        raise Refused(400, "invalidLimit", "Invalid limit", details)
    return int(limit)


def _pageOf(request: Request) -> tuple[int, str | None]:
    limit, marker = _limitOf(request), request.parameter("marker")
    if marker is not None:
        parameter("marker", BAD_MARKER if string(marker, 0, 255, r"[A-Za-z0-9:_./-]*") else None)
    return limit, marker


def _page(request: Request, limit: int, marker: str | None, values: list[Any]) -> Expected:
    """A page of *values*: those from the marker on that there is room for."""
    isFeed = request.path.startswith("/events")
    left = [value for value in values if isFeed or value["id"] >= (marker or "")]
    following = left[limit]["id"] if len(left) > limit else None
    query = [(name, value) for name, value in request.query if name != "marker"]
    href = link(f"/v1.0/{request.tenant}{request.path}", [*query, ("marker", following)]) if following else None
    return Expected(
        200,
        {
            "values": left[:limit],
            "metadata": {
                "count": len(left[:limit]),
                "limit": limit,
                "marker": marker,
                "next_marker": following,
                "next_href": href,
            },
        },
    )
