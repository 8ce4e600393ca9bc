"""
FakeRegistry: a whole registry in memory, for the trial suites of applications that use this library.

It is the real registry (its HTTP layer, its rules, a store in memory), reached without a socket, on a
:class:`~twisted.internet.task.Clock` that only the test moves::

    class MyTests(SynchronousTestCase):
        def test_isRegistered(self):
            fake = FakeRegistry()
            client = fake.client()
            service = RegisteredService(client, "web1", 30)
            service.startService()
            self.successResultOf(service.whenRegistered())
            fake.advance(3600)
            self.assertEqual(self.successResultOf(client.services.get("web1"))["id"], "web1")

What can go wrong between an application and a registry can be made to: see :meth:`FakeRegistry.failNext` and its
neighbours. A fault that is scripted is met by the next request of whichever client of the fake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.resource import Resource
from zope.interface import implementer

from .client import Client
from .http.bodies import BytesProducer, WholeResponse, readWhole
from .registry.core import Registry
from .registry.feed import EVENT_RETENTION
from .registry.http.resource import ApiResource
from .registry.identity.identity import Identity
from .registry.limits import RateLimiter, ResourceLimits
from .registry.stores.memory import MemoryStore
from .util.deferred import returnsDeferred
from .util.faults import FAULT_TYPES

__all__ = ["FakeRegistry", "Request"]

# 2026-01-01: what the wall clock of a fake says at first. Any date would do, but ids made of it look familiar.
_EPOCH = 1767225600.0
# Seconds that time moves at most in one step, so that what is due in between happens in its order.
_STEP = 0.25
# How often what arrives may lead to the next question without time going by: a client that asks for ever must not hang
# a test.
_MOST_ROUNDS = 1000
# The keys of a fake need no protection: the smallest costs that scrypt accepts.
_SCRYPT_COST = 2


@attrs.frozen
class Request:
    """
    A request that a client of the fake has made, as it went out: before any fault that was scripted for it.

    :ivar method: the HTTP method.
    :ivar path: the path, with the query.
    :ivar body: the body; it may hold a secret, and is not compared.
    """

    method: str
    path: str
    body: bytes = attrs.field(default=b"", eq=False, repr=False)


class FakeRegistry:
    """
    A registry in memory, and the time that it and its clients live in.

    :ivar clock: the time of the clients. Move it with :meth:`advance`, which moves the registry's time too.
    :ivar requests: what the clients have asked so far, oldest first.
    :ivar agent: what :meth:`client` gives its clients, for a client of your own making; ``url``, ``username`` and
        ``apiKey`` go with it.
    """

    username = "fake"
    apiKey = "fake-api-key"
    url = "http://registry.invalid:8880/v1.0"

    def __init__(self, *, limits: ResourceLimits | None = None, eventRetention: float = EVENT_RETENTION) -> None:
        """
        :param limits: how many objects the account may have; the protocol's defaults if not given.
        :param eventRetention: seconds for which events are kept, 3600 or more.
        """
        self.clock = Clock()
        self.requests: list[Request] = []
        self._eventRetention = eventRetention
        self._limits = limits or ResourceLimits()
        self._registryClock = Clock()
        # For how many seconds the clients' machine was suspended: by so much their clock is behind the registry's.
        self._slept = 0.0
        self._agent = _ScriptedAgent(self)
        self.agent: IAgent = self._agent
        self._clients: list[Client] = []
        self._store = MemoryStore(wallClock=self._registryWallClock)
        self._registry: Registry | None = None
        self._foreign = 0
        self._begin()

    # -- what a test uses

    def client(self, **options: Any) -> Client:
        """
        A real :class:`~txserviceregistry.Client` of this registry, on this clock.

        :param options: of the Client's; ``username`` and ``apiKey`` are the fake's own unless given.
        """
        client = Client(
            options.pop("username", self.username),
            options.pop("apiKey", self.apiKey),
            baseUrl=self.url,
            agent=self.agent,
            reactor=self.clock,
            **{"suspended": self.suspended, **options},
        )
        self._clients.append(client)
        return client

    def advance(self, seconds: float) -> None:
        """
        Let time go by, in small steps: everything that falls due happens in its order, and every answer that is
        under way arrives.

        :raises ValueError: if *seconds* is negative.
        """
        if seconds < 0:
            raise ValueError(f"seconds is {seconds:g}, but it has to be 0 or more")
        end = self.clock.seconds() + seconds
        while True:
            self.flush()
            now = self.clock.seconds()
            if now >= end:
                break
            pending = [call.getTime() for call in self.clock.getDelayedCalls()]
            step = min([end, now + _STEP, *pending]) - now
            # A call that is due now takes a step of nothing; after it the time moves on.
            self.clock.advance(max(step, 0.0))
            if not self._agent.paused:
                self._registryClock.advance(self._behind)

    def flush(self) -> None:
        """Let every answer that is under way arrive, without letting time go by."""
        for _ in range(_MOST_ROUNDS):
            asked = len(self.requests)
            if not self._agent.paused:
                # Who waits for events is told in a turn of its own.
                self._registryClock.advance(0)
            self._agent.flush()
            if len(self.requests) == asked:
                # No request was sent because of a response that arrived.
                break

    # -- what can go wrong

    def failNext(self, status: int, count: int = 1) -> None:
        """
        The next *count* requests are answered with this HTTP *status*, and do not reach the registry.

        The response is a fault of the API, or of the Auth API if it is that which was requested. A *status* that no
        fault of the API has, such as 502, comes as a page of a gateway.

        :raises TypeError: if *status* or *count* is not an int.
        :raises ValueError: if *status* is not from 200 to 599, or *count* is negative.
        """
        _checkStatus(status)
        self._agent.script(lambda go: _fault(status, self.requests[-1])(go), count)

    def answerNext(
        self,
        status: int,
        body: bytes = b"",
        contentType: str = "text/html",
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        count: int | None = 1,
        when: Callable[[Request], bool] | None = None,
    ) -> None:
        """
        The next *count* requests are answered with exactly this, and do not reach the registry, as by a proxy or a
        gateway in front of it. A proxy that refuses bodies over 8 KiB::

            fake.answerNext(413, count=None, when=lambda request: len(request.body) > 8192)

        :param status: the HTTP status.
        :param body: the response's body.
        :param contentType: the response's ``Content-Type``.
        :param headers: more headers of the response.
        :param count: how many requests; ``None`` for all, until :meth:`answerNormally`.
        :param when: is called with a request and returns whether it is one of these; all are, if not given.
        :raises TypeError: if *status* or *count* is not an int, or *body* is not bytes.
        :raises ValueError: if *status* is not from 200 to 599, or *count* is negative.
        """
        _checkStatus(status)
        if not isinstance(body, bytes):
            raise TypeError(f"body is {body!r}, but it has to be bytes")
        self._agent.script(_answer(status, body, contentType, headers), count, when)

    def foreignTokenNext(self, count: int | None = 1) -> None:
        """
        The registry acts on the next *count* registrations and requests with heartbeats, but where it accepts one, the
        response is that of another service: it has a well-formed heartbeat token that this registry never issued.
        Faults stay as they are.

        :param count: how many requests; ``None`` for all, until :meth:`answerNormally`.
        """
        self._agent.script(self._foreignTokens, count, _givesToken)

    def answerNormally(self) -> None:
        """Forget every fault that was scripted for a request which has not come yet."""
        self._agent.forget()

    def garbageNext(self, count: int = 1) -> None:
        """The next *count* requests are answered with 200 and a body that is not JSON."""
        self._agent.script(_answer(200, b"<html>what is this?</html>"), count)

    def malformedEventsNext(self, count: int | None = 1) -> None:
        """
        The next *count* requests for events are answered with 200 and JSON that is a page, but not a page of events:
        its one value has an ``id``, and nothing else that an event has.

        :param count: how many requests; ``None`` for all, until :meth:`answerNormally`.
        """
        body = b'{"values": [{"id": "x"}], "metadata": {"count": 1, "next_marker": null}}'
        self._agent.script(_answer(200, body), count, _isForEvents)

    def truncateNext(self, count: int = 1) -> None:
        """The registry acts on the next *count* requests, but the bodies of its answers break off in the middle."""
        self._agent.script(_truncate, count)

    def dropNext(self, count: int = 1) -> None:
        """The connections of the next *count* requests are lost before the registry sees the request."""
        self._agent.script(_drop, count)

    def loseNext(self, count: int = 1) -> None:
        """The registry acts on the next *count* requests, but its answers are lost with their connections."""
        self._agent.script(_lose, count)

    def hangNext(self, count: int = 1) -> None:
        """The next *count* requests are never answered, and do not reach the registry."""
        self._agent.script(_hang, count)

    def partition(self) -> None:
        """Cut the network: nothing that clients send, or have sent, gets an answer, until :meth:`heal`."""
        self._agent.partitioned = True

    def heal(self) -> None:
        """End the partition; requests of the time before stay lost."""
        self._agent.partitioned = False

    def changeLocalAddress(self, address: str) -> None:
        """Move the application to another network: its connections have another local *address* from now on."""
        self._agent.move(address)

    def pause(self) -> None:
        """Stop the registry's process, as SIGSTOP would: requests wait, and its time stands still."""
        self._agent.paused = True

    def resume(self) -> None:
        """Let the registry's process go on: first it meets all the time that went by at once, then what waited."""
        self._catchUp()
        self._agent.resume()

    def block(self, seconds: float) -> None:
        """
        Block the reactor of the application, as a call that does not return would: the registry's time goes by, and
        nothing of the clients' happens until the end; then all that fell due meanwhile happens at once.
        """
        self._letPass(seconds)
        self.clock.advance(seconds)
        self.flush()

    def suspend(self, seconds: float) -> None:
        """
        Suspend the machine of the clients: the registry's time goes by, and the clients' clock stands still, as
        monotonic time does. What their connections were waiting for is lost.
        """
        self._agent.connections += 1
        self._slept += seconds
        self._letPass(0.0)

    def suspended(self) -> float:
        """For how many seconds in all the machine of the clients has been suspended, as a Client wants to know it."""
        return self._slept

    def wallClock(self) -> float:
        """
        The time of day, in seconds since the epoch: 2026-01-01 at first. It is the argument *wallClock* of objects that
        compare it with the times of events, such as :class:`~txserviceregistry.discovery.EventsFeed`.
        """
        return _EPOCH + self.clock.seconds() + self._slept

    def _letPass(self, seconds: float) -> None:
        """Let the registry's time go by alone, until the clients' are so many seconds further."""
        end = self.clock.seconds() + self._slept + seconds
        while not self._agent.paused and (left := end - self._registryClock.seconds()) > 0:
            self._registryClock.advance(min(left, _STEP))

    @property
    def _behind(self) -> float:
        """By how many seconds the registry's clock is behind."""
        return self.clock.seconds() + self._slept - self._registryClock.seconds()

    def stop(self) -> None:
        """Stop the registry: connections are refused, until :meth:`start`."""
        self._end()

    def start(self, keepData: bool = True) -> None:
        """Start the registry that :meth:`stop` has stopped, with the data that it had or with none."""
        self._end()
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
        """Take the registry's store away (all that needs it is answered with 503), or bring it back."""
        self._store.unavailable = not available

    # -- inside

    def _catchUp(self) -> None:
        """Let the registry's time be that of the clients, which is ahead of it while :meth:`advance` moves it."""
        if self._behind > 0:
            self._registryClock.advance(self._behind)

    @returnsDeferred
    async def _foreignTokens(self, go: _Next) -> IResponse:
        whole = await readWhole(await go())
        answer = json.loads(whole.body)
        for outcome in answer.get("values", [answer]):
            if "token" in outcome:
                outcome["token"] = self._foreignToken()
        return WholeResponse(whole, json.dumps(answer).encode("utf-8"))

    def _foreignToken(self) -> str:
        self._foreign += 1
        return f"{self._foreign:08x}-0000-1000-8000-000000000000"

    def _registryWallClock(self) -> float:
        return _EPOCH + self._registryClock.seconds()

    def _begin(self) -> None:
        _now(self._store.open())
        self._identity = Identity(
            self._store,
            clock=self._registryClock,
            wallClock=self._registryWallClock,
            hasher=_hashNow,
            cost=_SCRYPT_COST,
        )
        _now(self._identity.ensureUser(self.username, key=self.apiKey))
        self._registry = Registry(
            self._store,
            clock=self._registryClock,
            wallClock=self._registryWallClock,
            limits=self._limits,
            eventRetention=self._eventRetention,
        )
        _now(self._registry.start())
        self._agent.resource = ApiResource(
            self._registry,
            self._identity,
            rateLimiter=RateLimiter(self._registryWallClock, wallClock=self._registryWallClock),
            limits=self._limits,
        )

    def _end(self) -> None:
        if self._registry is not None:
            self._identity.stop()
            self._registry.feed.endWaiting()
            self._agent.flush()
            _now(self._registry.stop())
            self._registry = None
        self._agent.resource = None


_Next = Callable[[], Deferred[IResponse]]
_Fault = Callable[[_Next], Deferred[IResponse]]


@attrs.define
class _Script:
    """
    A fault that requests are to meet.

    :ivar left: how many requests; ``None`` for all.
    :ivar when: which ones; ``None`` for all.
    """

    fault: _Fault
    left: int | None
    when: Callable[[Request], bool] | None


@implementer(IAgent)
class _ScriptedAgent:
    """The network between the clients and the registry, with all that can happen there."""

    def __init__(self, fake: FakeRegistry) -> None:
        self._fake = fake
        self._scripts: list[_Script] = []
        self._waiting: list[Callable[[], None]] = []
        self._agent: RequestTraversalAgent | None = None
        self.partitioned = False
        self.paused = False
        # Counts how often all connections were lost.
        self.connections = 0
        self._address = "127.0.0.1"
        self._addressListeners: list[Callable[[str, str], object]] = []

    @property
    def resource(self) -> Resource | None:
        """The registry's root, or ``None`` while it is stopped."""
        return self._resource

    @resource.setter
    def resource(self, resource: Resource | None) -> None:
        self._resource = resource
        self._agent = None if resource is None else RequestTraversalAgent(resource)

    def localAddress(self, url: str) -> str:
        """What an address of this machine would be, were there a connection."""
        return self._address

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """See :meth:`txserviceregistry.http.pool.ConnectionPool.onLocalAddress`."""
        self._addressListeners.append(listener)
        return lambda: self._addressListeners.remove(listener)

    def move(self, address: str) -> None:
        """Connections have another local address from now on."""
        self._address = address
        for listener in list(self._addressListeners):
            listener(self._fake.url, address)

    def script(self, fault: _Fault, count: int | None, when: Callable[[Request], bool] | None = None) -> None:
        """Let *fault* happen to the next *count* requests, of those that *when* accepts, that have none yet."""
        if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise TypeError(f"count is {count!r}, but it has to be an int")
        if count is not None and count < 0:
            raise ValueError(f"count is {count}, but it has to be 0 or more")
        if count != 0:
            self._scripts.append(_Script(fault, count, when))

    def forget(self) -> None:
        """Let no more requests meet what was scripted."""
        self._scripts.clear()

    def _faultFor(self, request: Request) -> _Fault | None:
        for script in self._scripts:
            if script.when is None or script.when(request):
                if script.left is not None:
                    script.left -= 1
                    if not script.left:
                        self._scripts.remove(script)
                return script.fault
        return None

    def flush(self) -> None:
        """Deliver what the registry has answered."""
        if self._agent is not None:
            self._agent.flush()

    def resume(self) -> None:
        """Let the requests through that waited while the registry was paused."""
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for go in waiting:
            go()

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See :class:`twisted.web.iweb.IAgent`."""
        path = uri.split(b"://", 1)[-1].partition(b"/")[2]
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        asked = Request(method.decode("ascii"), "/" + path.decode("ascii"), body)
        self._fake.requests.append(asked)
        if self.partitioned:
            return _never()

        def go() -> Deferred[IResponse]:
            if self._agent is None:
                return _failed(ConnectionRefusedError())
            self._fake._catchUp()
            response: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
            return response

        fault = self._faultFor(asked)
        if self.paused and fault is None:
            return self._later(go)
        return self._unlessCutOff(go() if fault is None else fault(go))

    def _unlessCutOff(self, response: Deferred[IResponse]) -> Deferred[IResponse]:
        """A response that gets lost when it comes while the network is cut, or after the connection was lost."""
        connection = self.connections
        answer: Deferred[IResponse] = Deferred(lambda _: response.cancel())

        def relay(result: Any) -> None:
            if answer.called:
                return
            isLost = self.partitioned or connection != self.connections
            if isLost and not (isinstance(result, Failure) and result.check(ResponseNeverReceived)):
                return
            answer.callback(result)

        response.addBoth(relay)
        return answer

    def _later(self, go: _Next) -> Deferred[IResponse]:
        answer = _never()

        def resumed() -> None:
            # The registry acts also on a request whose client has given up meanwhile.
            response = go()
            if not answer.called:
                response.chainDeferred(answer)
            else:
                response.addErrback(lambda _: None)

        self._waiting.append(resumed)
        return answer


# -- the faults


def _isForEvents(request: Request) -> bool:
    return request.path.partition("?")[0].endswith("/events")


def _givesToken(request: Request) -> bool:
    return request.method == "POST" and request.path.rstrip("/").endswith(("/heartbeat", "/heartbeats", "/services"))


def _checkStatus(status: int) -> None:
    """Refuse what is not an HTTP status now, not in the middle of the request that would get it."""
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"status is {status!r}, but it has to be an int")
    if not 200 <= status <= 599:
        raise ValueError(f"status is {status}, but it has to be from 200 to 599")


def _answer(
    status: int,
    body: bytes,
    contentType: str = "application/json; charset=UTF-8",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> _Fault:
    def fault(go: _Next) -> Deferred[IResponse]:
        resource = _Fixed(status, body, {"Content-Type": contentType, **headers})
        response: Deferred[IResponse] = RequestTraversalAgent(resource).request(b"GET", b"http://registry.invalid/")
        return response

    return fault


def _drop(go: _Next) -> Deferred[IResponse]:
    return _failed(ResponseNeverReceived([Failure(ConnectionLost())]))


def _lose(go: _Next) -> Deferred[IResponse]:
    go().addErrback(lambda _: None)
    return _drop(go)


def _hang(go: _Next) -> Deferred[IResponse]:
    return _never()


def _truncate(go: _Next) -> Deferred[IResponse]:
    go().addErrback(lambda _: None)
    return _answer(200, b'{"token": "')(go)


def _never() -> Deferred[IResponse]:
    # What Twisted's own agent says to whoever cancels a request.
    return Deferred(lambda it: it.errback(ResponseNeverReceived([Failure(CancelledError())])))


def _failed(reason: Exception) -> Deferred[IResponse]:
    failed: Deferred[IResponse] = Deferred()
    failed.errback(reason)
    return failed


# The most general type of fault for each status: the first one that the API lists; and that of the Auth API.
_TYPES = {status: type for type, status in reversed(list(FAULT_TYPES.items()))}
_AUTH_TYPES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    500: "identityFault",
    503: "serviceUnavailable",
}


def _fault(status: int, request: Request) -> _Fault:
    """A fault with this status in response to *request*."""
    isAuth = request.path.startswith("/v2.0/")
    type = (_AUTH_TYPES if isAuth else _TYPES).get(status)
    if type is None:
        return _answer(status, b"<html><h1>scripted</h1></html>", "text/html")
    fault = {"code": status, "message": "scripted"}
    body = {type: fault} if isAuth else {"type": type, **fault, "details": "", "txnId": "fake"}
    return _answer(status, json.dumps(body).encode("ascii"))


class _Fixed(Resource):
    """Answers everything with the same."""

    isLeaf = True

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        Resource.__init__(self)
        self._status = status
        self._body = body
        self._headers = headers

    def render(self, request: Any) -> bytes:
        """See :class:`twisted.web.resource.IResource`."""
        request.setResponseCode(self._status)
        for name, value in self._headers.items():
            request.setHeader(name, value)
        return self._body


def _hashNow(hash: Callable[[], Any]) -> Deferred[Any]:
    done: Deferred[Any] = Deferred()
    done.callback(hash())
    return done


def _now(done: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired already, as everything does here."""
    results: list[Any] = []
    done.addBoth(results.append)
    if not results:
        raise AssertionError("The registry in memory should have answered at once")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
