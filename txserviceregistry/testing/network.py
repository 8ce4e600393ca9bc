"""The network between a fake registry and its clients, and the faults that requests meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..errors import FAULT_TYPES
from ..http.messages import BytesProducer, WholeResponse
from ..util.logs import Listeners, Logger

#: Sends a request to the registry; fires with its response.
Send = Callable[[], Deferred[IResponse]]
#: A fault of a request: called with a function that sends it; returns the response for the client.
Fault = Callable[[Send], Deferred[IResponse]]

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


@attrs.frozen
class Request:
    """A request of a client, before any scripted fault. The *path* has the query. The *body* is not compared."""

    method: str
    path: str
    body: bytes = attrs.field(default=b"", eq=False, repr=False)


def never() -> Deferred[IResponse]:
    """No response. If the client cancels it, the error is that of Twisted's own agent."""
    return Deferred(lambda it: it.errback(ResponseNeverReceived([Failure(CancelledError())])))


def drop(send: Send) -> Deferred[IResponse]:
    return fail(ResponseNeverReceived([Failure(ConnectionLost())]))


def afterwards(fault: Fault) -> Fault:
    """A *fault* after which the registry has acted all the same."""

    def acted(send: Send) -> Deferred[IResponse]:
        send().addErrback(lambda _: None)
        return fault(send)

    return acted


def answer(
    status: int,
    body: bytes,
    contentType: str = "application/json; charset=UTF-8",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Fault:
    fields = {"Content-Type": contentType, **headers}
    raw = Headers({name.encode("utf-8"): [value.encode("utf-8")] for name, value in fields.items()})
    return lambda send: succeed(WholeResponse(status, raw, body))


def apiFault(status: int, request: Request) -> Fault:
    """A fault of the API for *request* with this status, or the page of a gateway if no fault has this status."""
    isAuth = request.path.startswith("/v2.0/")
    type = (_AUTH_TYPES if isAuth else _TYPES).get(status)
    if type is None:
        return answer(status, b"<html><h1>scripted</h1></html>", "text/html")
    fault = {"code": status, "message": "scripted"}
    body = {type: fault} if isAuth else {"type": type, **fault, "details": "", "txnId": "fake"}
    return answer(status, json.dumps(body).encode("ascii"))


@attrs.define
class _Script:
    """A fault, for how many more requests (``None``: all), and for which ones."""

    fault: Fault
    left: int | None
    when: Callable[[Request], bool]


@attrs.define(eq=False, slots=False)
class _Body(Protocol):
    """An event stream, until its connection is lost."""

    _protocol: IProtocol
    _isLost: Callable[[], bool]

    def connectionMade(self) -> None:
        self._protocol.makeConnection(self.transport)  # type: ignore[arg-type]  # a body has as little of a transport

    def dataReceived(self, data: bytes) -> None:
        if not self._isLost():
            self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._isLost():
            self._protocol.connectionLost(reason)


@implementer(IAgent)
@attrs.define(eq=False)
class Network:
    """The agent of the clients, with everything that can happen to their requests."""

    _url: str
    _arriving: Callable[[], None]
    requests: list[Request] = attrs.field(factory=list)
    # None if connections are refused.
    registry: RequestTraversalAgent | None = None
    isPartitioned: bool = False
    isPaused: bool = False
    # How often all connections were lost.
    connections: int = 0
    scripts: list[_Script] = attrs.field(factory=list)
    _waiting: list[Callable[[], object]] = attrs.field(factory=list)
    _address: str = "127.0.0.1"
    _addressListeners: Listeners[[str, str]] = attrs.field(factory=lambda: Listeners(Logger(), "local addresses"))

    def localAddress(self, url: str) -> str:
        return self._address

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        return self._addressListeners.add(listener)

    def move(self, address: str) -> None:
        self._address = address
        self._addressListeners.call(self._url, address)

    def flush(self) -> None:
        if self.registry is not None:
            self.registry.flush()

    def resume(self) -> None:
        waiting, self._waiting = self._waiting, []
        for send in waiting:
            send()

    def script(self, fault: Fault, count: int | None, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Let *fault* happen to the next *count* requests, of those that *when* accepts, that have none yet."""
        self.scripts.append(_Script(fault, count, when))

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        path = uri.split(b"://", 1)[-1].partition(b"/")[2]
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        request = Request(method.decode("ascii"), "/" + path.decode("ascii"), body)
        self.requests.append(request)
        if self.isPartitioned:
            return never()

        def send() -> Deferred[IResponse]:
            if self.registry is None:
                return fail(ConnectionRefusedError())
            self._arriving()
            response: Deferred[IResponse] = self.registry.request(method, uri, headers, bodyProducer)
            return response

        script = next((script for script in self.scripts if script.left != 0 and script.when(request)), None)
        if script is not None:
            script.left = None if script.left is None else script.left - 1
            return self._unlessLost(script.fault(send))
        if not self.isPaused:
            return self._unlessLost(send())
        response = never()

        def arrived(result: Any) -> None:
            # The registry acts also on a request whose client has given up meanwhile.
            if not response.called:
                response.callback(result)

        self._waiting.append(lambda: send().addBoth(arrived))
        return self._unlessLost(response)

    def _unlessLost(self, response: Deferred[IResponse]) -> Deferred[IResponse]:
        """A response that is lost if it comes during a partition, or after its connection was lost."""
        connection = self.connections
        answer: Deferred[IResponse] = Deferred(lambda _: response.cancel())

        def relay(result: Any) -> None:
            if answer.called:
                return
            isLost = self.isPartitioned or connection != self.connections
            if isLost and not (isinstance(result, Failure) and result.check(ResponseNeverReceived)):
                return
            headers = Headers() if isinstance(result, Failure) else result.headers
            if headers.getRawHeaders(b"Content-Type") == [b"text/event-stream"]:
                deliver = result.deliverBody
                result.deliverBody = lambda body: deliver(_Body(body, lambda: connection != self.connections))
            answer.callback(result)

        response.addBoth(relay)
        return answer
