"""
FakeRegistry: a whole registry in memory, for the test suites of applications that use this library.

It is the real registry (its HTTP layer, its rules, a store in memory), reached without a socket, on a
:class:`~twisted.internet.task.Clock` that only the test moves::

    fake = FakeRegistry()
    service = RegisteredService(fake.client(), "web1", 30)
    service.startService()
    fake.advance(3600)
    self.assertEqual(service.state, "registered")

Faults that are scripted, as by :meth:`FakeRegistry.failNext`, happen to the next request of any client.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count as counted
from types import MappingProxyType
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent, IResponse

from ..client import Client
from ..http.messages import readWhole
from ..registry.core import Registry
from ..registry.feed import EVENT_RETENTION
from ..registry.http.resource import ApiResource
from ..registry.identity import Identity
from ..registry.limits import RateLimiter, ResourceLimits
from ..registry.roles import Role
from ..registry.stores.memory import MemoryStore
from ..util.deferred import returnsDeferred
from .network import Network, Request, Send, afterwards, answer, apiFault, drop, never

__all__ = ["FakeRegistry", "Request"]

# 2026-01-01: what the wall clock of a fake says at first.
_EPOCH = 1767225600.0
# Seconds that time moves at most in one step, so that what is due in between happens in its order.
_STEP = 0.25
# How often responses may lead to further requests without time going by: a client must not hang a test.
_MOST_ROUNDS = 1000
# The keys of a fake need no protection: the smallest costs that scrypt accepts.
_SCRYPT_COST = 2


class FakeRegistry:
    """
    A registry in memory, with a clock for it and its clients.

    :param limits: how many objects the account may have; the protocol's defaults if not given.
    :param eventRetention: seconds for which events are kept, 3600 or more.
    :ivar clock: the time of the clients. Move it with :meth:`advance`, which moves the registry's time too.
    :ivar requests: the requests of the clients so far, oldest first.
    :ivar agent: for a Client that your test creates itself with ``url``, ``username`` and ``apiKey``.
    """

    username = "fake"
    apiKey = "fake-api-key"
    url = "http://registry.invalid:8880/v1.0"

    def __init__(self, *, limits: ResourceLimits | None = None, eventRetention: float = EVENT_RETENTION) -> None:
        self.clock = Clock()
        self._eventRetention = eventRetention
        self._limits = limits or ResourceLimits()
        self._registryClock = Clock()
        # For how many seconds the clients' machine was suspended: by so much their clock is behind the registry's.
        self._slept = 0.0
        self._network = Network(self.url, self._catchUp)
        self.agent: IAgent = self._network
        self.requests = self._network.requests
        self._store = MemoryStore(wallClock=self._registryWallClock)
        self._registry: Registry | None = None
        self._foreign = (f"{number:08x}-0000-1000-8000-000000000000" for number in counted(1))
        self._begin()

    def client(self, **options: Any) -> Client:
        """A real :class:`~txserviceregistry.Client` of this registry, on this clock, with other *options* of Client."""
        own = {"username": self.username, "apiKey": self.apiKey, "suspended": self.suspended, "bootTime": self.bootTime}
        return Client(baseUrl=self.url, agent=self.agent, reactor=self.clock, **{**own, **options})

    def advance(self, seconds: float) -> None:
        """Let time go by, in small steps: what falls due happens in its order, and responses on their way arrive."""
        end = self.clock.seconds() + seconds
        while True:
            self.flush()
            now = self.clock.seconds()
            pending = [call.getTime() for call in self.clock.getDelayedCalls()]
            if now >= end and min(pending, default=math.inf) > now:
                break
            step = min([end, now + _STEP, *pending]) - now
            # A call that is due now takes a step of nothing; after it the time moves on.
            self.clock.advance(max(step, 0.0))
            self._catchUp()

    def flush(self) -> None:
        """Let every response that is on its way arrive, without letting time go by."""
        for _ in range(_MOST_ROUNDS):
            asked = len(self.requests)
            if not self._network.isPaused:
                # Requests that wait for events are answered by a call of their own.
                self._registryClock.advance(0)
            self._network.flush()
            if len(self.requests) == asked:
                # No request was sent because of a response that arrived.
                break

    def wallClock(self) -> float:
        """The time of day, in seconds since the epoch: the argument *wallClock* of ``EventsFeed``."""
        return _EPOCH + self.clock.seconds() + self._slept

    def suspended(self) -> float:
        """Seconds for which the clients' machine was suspended in all: the Client's argument *suspended*."""
        return self._slept

    def bootTime(self) -> float:
        """The clients' clock with the suspends: the Client's argument *bootTime*."""
        return self.clock.seconds() + self._slept

    def failNext(self, status: int, count: int = 1) -> None:
        """The next *count* requests get a fault of the API, or a page of a gateway if no fault has this *status*."""
        self._network.script(lambda send: apiFault(status, self.requests[-1])(send), count)

    def answerNext(
        self,
        status: int,
        body: bytes = b"",
        contentType: str = "text/html",
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        count: int | None = 1,
        when: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        """
        The next *count* requests (``None``: all, until :meth:`answerNormally`) that *when* accepts get exactly this
        response, and do not reach the registry.
        """
        self._network.script(answer(status, body, contentType, headers), count, when)

    def answerNormally(self) -> None:
        """Forget all faults that were scripted for requests that have not come yet."""
        self._network.scripts.clear()

    def foreignTokenNext(self, count: int | None = 1) -> None:
        """
        The registry acts on the next *count* (``None``: all) registrations and heartbeats, but where it accepts one,
        the response has a heartbeat token that it never issued.
        """

        def givesToken(request: Request) -> bool:
            return request.method == "POST" and request.path.endswith(("/heartbeat", "/heartbeats", "/services"))

        @returnsDeferred
        async def fault(send: Send) -> IResponse:
            whole = await readWhole(await send())
            content = json.loads(whole.body)
            for outcome in content.get("values", [content]):
                if "token" in outcome:
                    outcome["token"] = next(self._foreign)
            return attrs.evolve(whole, body=json.dumps(content).encode("utf-8"))

        self._network.script(fault, count, givesToken)

    def garbageNext(self, count: int = 1) -> None:
        """The next *count* requests get 200 and a body that is not JSON."""
        self._network.script(answer(200, b"<html>what is this?</html>"), count)

    def truncateNext(self, count: int = 1) -> None:
        """The registry acts on the next *count* requests, but the bodies of its responses break off in the middle."""
        self._network.script(afterwards(answer(200, b'{"token": "')), count)

    def dropNext(self, count: int = 1) -> None:
        """The connections of the next *count* requests are lost before the registry sees the request."""
        self._network.script(drop, count)

    def loseNext(self, count: int = 1) -> None:
        """The registry acts on the next *count* requests, but its responses are lost with their connections."""
        self._network.script(afterwards(drop), count)

    def hangNext(self, count: int = 1) -> None:
        """The next *count* requests get no response, and do not reach the registry."""
        self._network.script(lambda send: never(), count)

    def setRole(
        self, role: str, *, services: Sequence[str] = (), configuration: Sequence[str] = (), locks: Sequence[str] = ()
    ) -> None:
        """
        Give the clients' user the role ``"write"`` (as at first), which prefixes may limit, or ``"read"``. It counts at
        once.
        """
        _now(self._identity.changeRole(self.username, Role(role, services, configuration, locks)))

    def partition(self) -> None:
        """Cut the network: requests that clients send, or have sent, get no response, until :meth:`heal`."""
        self._network.isPartitioned = True
        self._network.connections += 1

    def heal(self) -> None:
        """End the partition; requests from before stay lost."""
        self._network.isPartitioned = False

    def changeLocalAddress(self, address: str) -> None:
        """Move the application to another network: its connections have another local *address* from now on."""
        self._network.move(address)

    def pause(self) -> None:
        """Stop the registry's process, as SIGSTOP would: requests wait, and its time stands still."""
        self._network.isPaused = True

    def resume(self) -> None:
        """Continue the registry's process: all the time that went by passes at once, then waiting requests arrive."""
        self._network.isPaused = False
        self._catchUp()
        self._network.resume()

    def block(self, seconds: float) -> None:
        """Block the reactor of the application: what falls due meanwhile happens at once at the end."""
        self._catchUp(seconds, _STEP)
        self.clock.advance(seconds)
        self.flush()

    def suspend(self, seconds: float) -> None:
        """Suspend the clients' machine: their clock stands still, and their connections lose the responses."""
        self._network.connections += 1
        self._slept += seconds
        self._catchUp(0.0, _STEP)

    def stop(self) -> None:
        """Stop the registry: connections are refused, until :meth:`start`."""
        if self._registry is not None:
            self._identity.stop()
            self._registry.endWaiting()
            self._network.flush()
            _now(self._registry.stop())
            self._registry = None
        self._network.registry = None

    def start(self, keepData: bool = True) -> None:
        """Start the registry that :meth:`stop` has stopped, with the data that it had or with none."""
        self.stop()
        if not keepData:
            self._store = MemoryStore(wallClock=self._registryWallClock)
        self._begin()

    def restart(self, keepData: bool = True) -> None:
        """Stop the registry and start it again at once."""
        self.start(keepData)

    def purgeTokens(self) -> None:
        """End all auth tokens that the registry has given out."""
        _now(self._identity.purgeAll())

    def storeAvailable(self, available: bool) -> None:
        """Make the registry's store unavailable, so that requests that need it get 503, or available again."""
        self._store.unavailable = not available

    def _catchUp(self, ahead: float = 0.0, step: float = math.inf) -> None:
        """Move the registry's time to that of the clients, or to some seconds *ahead* of it, unless it is paused."""
        end = self.clock.seconds() + self._slept + ahead
        while not self._network.isPaused and (left := end - self._registryClock.seconds()) > 0:
            self._registryClock.advance(min(left, step))

    def _registryWallClock(self) -> float:
        return _EPOCH + self._registryClock.seconds()

    def _begin(self) -> None:
        clocks: Any = {"clock": self._registryClock, "wallClock": self._registryWallClock}
        _now(self._store.open())
        self._identity = Identity(self._store, **clocks, hasher=maybeDeferred, cost=_SCRYPT_COST)
        if self.username not in [user.name for user in _now(self._identity.listUsers())]:
            _now(self._identity.addUser(self.username, key=self.apiKey))
        self._registry = Registry(self._store, **clocks, limits=self._limits, eventRetention=self._eventRetention)
        _now(self._registry.start())
        limiter = RateLimiter(self._registryWallClock, wallClock=self._registryWallClock)
        resource = ApiResource(self._registry, self._identity, rateLimiter=limiter, limits=self._limits)
        self._network.registry = RequestTraversalAgent(resource)


def _now(done: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired already, as all do here."""
    results: list[Any] = []
    done.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
