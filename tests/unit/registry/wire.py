"""A whole registry over the memory store, spoken to in bytes: what tests of the HTTP layer share."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection

from tests import CHEAP
from txserviceregistry.registry.console.console import Console
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.http.connections import ConnectionLimits
from txserviceregistry.registry.http.operations import ROUTES
from txserviceregistry.registry.http.pages import Health
from txserviceregistry.registry.http.requestlog import LogFile, RequestLog
from txserviceregistry.registry.http.resource import ApiResource
from txserviceregistry.registry.http.server import ApiSite
from txserviceregistry.registry.identity import Identity
from txserviceregistry.registry.limits import Places, RateLimiter, ResourceLimits
from txserviceregistry.registry.stores.memory import MemoryStore

from .heldstore import HeldStore

T = TypeVar("T")

#: All operations of the API.
OPERATIONS = [operation for methods in ROUTES.values() for operation in methods.values()]

USER = "joe"
KEY = "the-key-of-joe"


@attrs.frozen
class Reply:
    """An answer as it came over the wire; header names are in lower case."""

    code: int
    headers: dict[str, list[str]]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw.decode("utf-8"))

    def header(self, name: str) -> str | None:
        values = self.headers.get(name.lower())
        return values[0] if values else None


def parseReplies(data: bytes, noBody: bool = False) -> list[Reply]:
    """The responses in a stream of bytes. Each must have a length, but for an event stream."""
    replies = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        assert "transfer-encoding" not in headers, head
        code = int(first.split(" ")[1])
        isStream = headers.get("content-type") == ["text/event-stream"]
        length = 0 if noBody or code in (100, 204) else len(data) if isStream else int(headers["content-length"][0])
        replies.append(Reply(code, headers, data[:length]))
        assert len(data) >= length, (head, data)
        data = data[length:]
    return replies


def requestBytes(
    method: str,
    path: str | bytes,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """A request as bytes, with a Content-Length if there is a body."""
    target = path if isinstance(path, bytes) else path.encode("ascii")
    all_ = {"Host": "registry.example:8880", **(headers or {})}
    if body is not None and "Transfer-Encoding" not in all_:
        all_.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_.items() if value is not None)
    return method.encode() + b" " + target + f" HTTP/{version}\r\n".encode() + lines.encode() + b"\r\n" + (body or b"")


class _Transport(StringTransportWithDisconnection):
    """A transport that is seen to be closing, as real ones are, and that can be cut."""

    def loseConnection(self) -> None:
        self.disconnecting = True
        if self.connected:
            super().loseConnection()

    abortConnection = loseConnection


class Connection:
    """A connection to an :class:`Api`, without a socket."""

    def __init__(
        self,
        api: Api,
        peer: IAddress = IPv4Address("TCP", "127.0.0.1", 54321),  # noqa: B008 (it is immutable)
        host: IAddress = IPv4Address("TCP", "127.0.0.1", 8880),  # noqa: B008 (as above)
    ) -> None:
        self.transport = _Transport(hostAddress=host, peerAddress=peer)
        self.protocol = api.site.buildProtocol(None)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def replies(self, noBody: bool = False) -> list[Reply]:
        """The bytes that have come since the last time."""
        data = self.transport.value()
        self.transport.clear()
        return parseReplies(data, noBody)

    @property
    def isOpen(self) -> bool:
        return bool(self.transport.connected)


class Api:
    """
    :ivar store: the memory store. Its ``unavailable`` may be set.
    :ivar held: passes on what the registry's rules ask of the store, unless a test holds it.
    :ivar hashesHang: whether API keys that have to be checked are never done with.
    :ivar hashes: how many keys were hashed.
    """

    hashesHang = False
    hashes = 0

    def __init__(
        self,
        limits: ResourceLimits | None = None,
        rateLimit: int = 500_000,
        connectionLimits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is immutable)
        accessLog: LogFile | None = None,
        auditLog: LogFile | None = None,
    ) -> None:
        limits = limits or ResourceLimits()
        self.clock = Clock()
        self.wallClock = Clock()
        self.wallClock.advance(1_767_225_600)
        self.store = MemoryStore(wallClock=self.wallClock.seconds)
        fired(self.store.open())
        self.identity = Identity(
            self.store, clock=self.clock, wallClock=self.wallClock.seconds, hasher=self._hash, cost=CHEAP
        )
        fired(self.identity.addUser(USER, "1234", KEY))
        self.held = HeldStore(self.store)
        held = Places(connectionLimits.held)
        self.registry = Registry(
            self.held,  # type: ignore[arg-type]  # it passes everything on
            clock=self.clock,
            wallClock=self.wallClock.seconds,
            limits=limits,
            followers=Places(connectionLimits.followers, connectionLimits.followersPerTenant, held),
            streams=Places(connectionLimits.streams, connectionLimits.streamsPerTenant, held),
        )
        fired(self.registry.start())
        self.rateLimiter = RateLimiter(self.clock.seconds, rateLimit)
        self.requestLog = RequestLog(accessLog, auditLog, seconds=self.clock.seconds, wallClock=self.wallClock.seconds)
        self.resource = ApiResource(
            self.registry, self.identity, rateLimiter=self.rateLimiter, limits=limits, requestLog=self.requestLog
        )
        self.site = ApiSite(self.resource, self.clock, connectionLimits)
        self.token = fired(self.identity.authenticate(USER, KEY)).id

    def _hash(self, work: Callable[[], T], /) -> Deferred[T]:
        self.hashes += 1
        return Deferred() if self.hashesHang else maybeDeferred(work)

    def advance(self, seconds: float) -> None:
        # In small steps: large ones would be stalls.
        while seconds > 0:
            step = min(seconds, 0.5)
            self.clock.advance(step)
            self.wallClock.advance(step)
            seconds -= step

    def ask(
        self,
        method: str,
        path: str | bytes,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        token: str | None = "",
    ) -> Reply:
        """
        One request over a connection of its own, and its answer.

        :param path: below ``/v1.0/1234``, unless it is bytes.
        :param body: bytes as they are, anything else as JSON.
        :param token: the user's own if empty, none at all if ``None``.
        """
        connection = Connection(self)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        all_ = dict(headers or {})
        if token is not None:
            all_.setdefault("X-Auth-Token", token or self.token)
        target = path if isinstance(path, bytes) else f"/v1.0/1234{path}"
        connection.send(requestBytes(method, target, data, all_))
        (reply,) = connection.replies(noBody=method == "HEAD")
        return reply

    def create(self, id: str, timeout: int = 30, **fields: Any) -> str:
        """Register a service; its heartbeat token."""
        token: str = self.ask("POST", "/services", {"id": id, "heartbeat_timeout": timeout, **fields}).json["token"]
        return token


def fired(deferred: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired already."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "it has not fired"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def addConsole(api: Api, names: Collection[str] = (), store: Any = None) -> None:
    """Let it serve a new console, under these *names* too."""
    health = Health(api.store, api.clock)
    api.resource.handlers.console = Console(
        *(api.resource, api.registry, store or api.store, api.identity, health, api.clock),
        wallClock=api.wallClock.seconds,
        names=names,
    )
