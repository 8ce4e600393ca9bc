"""
Nodes of a registry over one store, on a clock that a program moves, spoken to in bytes.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests import CHEAP
from tests.system.fuzz.inputs import ROLES
from tests.system.fuzz.records import Request
from tests.unit.registry.wire import Connection, Reply, requestBytes
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.http.resource import ApiResource
from txserviceregistry.registry.http.server import ApiSite
from txserviceregistry.registry.identity import Identity
from txserviceregistry.registry.limits import RateLimiter, ResourceLimits
from txserviceregistry.registry.roles import Role
from txserviceregistry.registry.stores.interfaces import IStore
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

#: Seconds of the real clock within which a thread has to have done what it was asked for.
PATIENCE = 60.0
#: A folder in memory, if this machine has one: programs are not about disks.
IN_MEMORY = Path("/dev/shm")


class Turns(Clock):
    """A reactor that the program moves, and that threads can report to."""

    def __init__(self) -> None:
        super().__init__()
        self._reports: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        """A thread has something to tell."""
        self._reports.put(lambda: callable(*args))

    def until(self, isDone: Callable[[], bool]) -> None:
        """
        Hear what threads report, and do what is due, until it *isDone*; meanwhile no time goes by.

        :raises AssertionError: if that does not end.
        """
        while not isDone():
            if self._reports.empty() and self.next() <= 0:
                self.advance(0)
                continue
            try:
                self._reports.get(timeout=PATIENCE)()
            except Empty:
                raise AssertionError("nothing more happens, and there is no answer") from None

    def hear(self) -> bool:
        """Hear what has been reported by now; returns whether there was anything."""
        hasHeard = False
        while not self._reports.empty():
            self._reports.get()()
            hasHeard = True
        return hasHeard

    def wait(self, deferred: Deferred[Any]) -> Any:
        """The result of a Deferred."""
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.until(lambda: bool(results))
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def next(self) -> float:
        """Seconds until something is due."""
        return min((call.getTime() - self.seconds() for call in self.getDelayedCalls()), default=float("inf"))


class Backing:
    """
    Something to keep a registry's data in, for the length of one program.

    Another kind of store overrides :meth:`store`, and :meth:`close` if there is something to throw away; how many nodes
    it can serve at the same time is :attr:`nodes`.

    :cvar late: seconds after its deadline within which it need not be known yet that a service has expired.
    """

    nodes = 1
    late = 0.0

    def __init__(self, turns: Turns, wallClock: Callable[[], float]) -> None:
        self.turns = turns
        self.wallClock = wallClock

    def store(self) -> IStore:
        """A way to the data, for one node; not open yet."""
        raise NotImplementedError

    def close(self) -> None:
        """Throw the data away. All stores are closed."""


class Memory(Backing):
    """One store in memory, which keeps what it has while it is closed."""

    def __init__(self, turns: Turns, wallClock: Callable[[], float]) -> None:
        super().__init__(turns, wallClock)
        self._store = MemoryStore(wallClock=wallClock)

    def store(self) -> IStore:
        """See :meth:`Backing.store`."""
        return self._store


class Sqlite(Backing):
    """A file."""

    def __init__(self, turns: Turns, wallClock: Callable[[], float]) -> None:
        super().__init__(turns, wallClock)
        self._folder = tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None)

    def store(self) -> IStore:
        """See :meth:`Backing.store`."""
        return SqliteStore(Path(self._folder.name) / "registry.db", reactor=self.turns, wallClock=self.wallClock)

    def close(self) -> None:
        """See :meth:`Backing.close`."""
        self._folder.cleanup()


BACKINGS: Mapping[str, type[Backing]] = {"memory": Memory, "sqlite": Sqlite}


class Node:
    """One registry over a store of its own; it runs from the moment that it is made."""

    def __init__(self, nodes: Nodes) -> None:
        self._turns = turns = nodes.turns
        wallClock = nodes.wallClock
        self.store = nodes.backing.store()
        turns.wait(self.store.open())
        self.identity = Identity(self.store, clock=turns, wallClock=wallClock, hasher=maybeDeferred, cost=CHEAP)
        self.registry = Registry(self.store, clock=turns, wallClock=wallClock, limits=nodes.limits)
        turns.wait(self.registry.start())
        rateLimiter = RateLimiter(turns.seconds, nodes.gets)
        resource = ApiResource(self.registry, self.identity, rateLimiter=rateLimiter, limits=nodes.limits)
        self.site = ApiSite(resource, turns)
        self._connections: list[Any] = []

    def connection(self) -> Any:
        """A connection that nothing is being asked on."""
        if not self._connections or not self._connections[-1].isOpen:
            self._connections = [Connection(self)]  # type: ignore[arg-type]  # all that it wants is a site
        return self._connections[-1]

    def stop(self) -> None:
        """End it in good order; what it has in its store stays there."""
        self._turns.wait(self.registry.stop())
        self._turns.wait(self.site.connections.drain(0))
        self._turns.wait(self.store.close())


class Asked:
    """A request that has been sent."""

    def __init__(self, node: Node, data: bytes, own: bool) -> None:
        self._connection = Connection(node) if own else node.connection()  # type: ignore[arg-type]  # see above
        self._replies: list[Reply] = []
        self._connection.send(data)

    @property
    def reply(self) -> Reply | None:
        """The answer, if it has come."""
        if not self._replies:
            self._replies = self._connection.replies()
        return self._replies[0] if self._replies else None

    def events(self) -> list[Any]:
        """The events of a stream that have come so far."""
        head, end, body = self._connection.transport.value().partition(b"\r\n\r\n")
        assert not end or head.startswith(b"HTTP/1.1 200 "), head
        data = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
        # Pings and resets have an empty one.
        return [json.loads(each) for each in data if each != b"{}"]

    def close(self) -> None:
        """Read no more."""
        self._connection.transport.abortConnection()


class Nodes:
    """
    A registry.

    :param make: what to keep its data in.
    :param tenants: each has a user of the same name.
    :param limits: how many services and values an account may have.
    :param gets: how many GETs an account may make in a day.
    :param wall: seconds since 1970, to begin with.
    """

    def __init__(
        self, make: type[Backing], tenants: tuple[str, ...], limits: tuple[int, int], gets: int, wall: float
    ) -> None:
        self.turns = Turns()
        self.ahead = wall
        self.limits = ResourceLimits(*limits, lock=limits[0])
        self.gets = gets
        self.backing = make(self.turns, self.wallClock)
        self.nodes = [Node(self) for _ in range(self.backing.nodes)]
        self.tokens: dict[str | None, str] = {"unknown": "0123456789abcdef"}
        for tenant in tenants:
            for name, prefixes in ROLES.items():
                role = (
                    Role("read") if prefixes is None else Role("write", *([each] if each else [] for each in prefixes))
                )
                user = f"{name}{tenant}"
                self.turns.wait(self.nodes[0].identity.addUser(f"user{user}", tenant, f"key{user}", role))
            self.authenticate(tenant, 0)
            self.authenticate(tenant, 0, role="read")

    def wallClock(self) -> float:
        """Seconds since 1970."""
        return self.turns.seconds() + self.ahead

    def authenticate(self, tenant: str, node: int, *, role: str = "") -> None:
        """Have a user of this tenant ask for a token, and use it from now on."""
        user = role + tenant
        body = b'{"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": "user%s", "apiKey": "key%s"}}}'
        data = requestBytes("POST", "/v2.0/tokens", body.replace(b"%s", user.encode()))
        reply = self._answer(Asked(self.nodes[node], data, own=False))
        assert reply.code == 200, reply
        token = reply.json["access"]["token"]
        assert token["tenant"] == {"id": tenant, "name": tenant}, token
        self.tokens[user] = token["id"]

    def send(self, request: Request, node: int = 0, *, own: bool = False) -> Asked:
        """
        Send a request to one of the nodes.

        :param own: over a connection that nothing else is asked on.
        """
        query = "&".join(f"{name}={_escaped(value)}" for name, value in request.query)
        target = f"/v1.0/{request.tenant}{_escaped(request.path)}" + (f"?{query}" if query else "")
        headers = {}
        if request.contentType is not None:
            headers["Content-Type"] = request.contentType
        headers.update(request.conditions)
        if request.role == "read":
            headers["Authorization"] = f"Bearer {self.tokens[f'read{request.user}']}"
        elif request.role:
            user = f"{request.role}{request.user}"
            headers["Authorization"] = f"Basic {b64encode(f'user{user}:key{user}'.encode()).decode()}"
        elif request.user is not None:
            headers["X-Auth-Token"] = self.tokens[request.user]
        body = None if request.body is None else request.raw
        return Asked(self.nodes[node], requestBytes(request.method, target, body, headers), own)

    def ask(self, request: Request, node: int = 0) -> Reply:
        """Send a request to one of the nodes, and wait for the answer while no time goes by."""
        # Until its watch shows that a service was removed elsewhere, a node may acknowledge its heartbeats.
        self.turns.hear()
        return self._answer(self.send(request, node))

    def answered(self, asked: Asked) -> float:
        """
        Wait for an answer; time goes by only if nothing else can happen.

        :return: how many seconds have gone by.
        """
        began = self.turns.seconds()
        if self.backing.late:
            # A node may wait for the others' votes, for a second at the most. Such a store reports nothing by itself.
            while asked.reply is None and self.turns.seconds() - began < PATIENCE:
                if not self.turns.hear():
                    self.turns.advance(max(0.0, self.turns.next()))
        self._answer(asked)
        return self.turns.seconds() - began

    def _answer(self, asked: Asked) -> Reply:
        self.turns.until(lambda: asked.reply is not None)
        assert asked.reply is not None
        return asked.reply

    def pass_(self, seconds: float, asked: Asked | None = None) -> float:
        """
        Time goes by, as it does on a reactor that turns: each call comes when it is due.

        :param asked: stop as soon as this is answered.
        :return: how many seconds have gone by.
        """
        left = seconds
        while True:
            step = max(0.0, min(left, self.turns.next()))
            self.turns.advance(step)
            self.turns.hear()
            left -= step
            if asked is not None or not self.backing.late:
                # Otherwise hours could go by while a thread works for a moment.
                self.settle()
            if asked is not None and asked.reply is not None:
                break
            if left <= 0:
                break
        self.settle()
        return seconds - left

    def settle(self) -> None:
        """Let the stores do all that they have been asked for, and wake the subscribers."""
        for _ in range(2):
            for node in self.nodes:
                self.turns.wait(node.store.probe())
            self.turns.advance(0)

    def restart(self, seconds: float) -> None:
        """Stop all nodes, and start them again so many *seconds* later."""
        for node in self.nodes:
            node.stop()
        self.turns.advance(seconds)
        self.nodes = [Node(self) for _ in self.nodes]

    def close(self) -> None:
        """Stop all nodes, and throw the data away."""
        for node in self.nodes:
            node.stop()
        self.backing.close()


def _escaped(text: str) -> str:
    return "".join(
        character if character.isascii() and (character.isalnum() or character in "-._:/") else _percent(character)
        for character in text
    )


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))
