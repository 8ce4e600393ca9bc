"""Network: the connection between the clients of a fake registry and the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.resource import Resource
from zope.interface import implementer

from ..http.bodies import BytesProducer
from ..util.logs import Listeners, Logger
from .faults import Fault, Request, Send, checkCount, never

_log = Logger()


@attrs.define
class _Script:
    """A fault that requests are to meet: how many are left and which ones; ``None`` for all."""

    fault: Fault
    left: int | None
    when: Callable[[Request], bool] | None


class _Streamed:
    """A response that comes bit by bit, until its connection is lost."""

    def __init__(self, response: IResponse, isLost: Callable[[], bool]) -> None:
        self._response = response
        self._isLost = isLost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def deliverBody(self, protocol: IProtocol) -> None:
        """See IResponse."""
        self._response.deliverBody(_Body(protocol, self._isLost))


class _Body(Protocol):
    """Hands a body on, as long as its connection is not lost."""

    def __init__(self, protocol: IProtocol, isLost: Callable[[], bool]) -> None:
        self._protocol = protocol
        self._isLost = isLost

    def connectionMade(self) -> None:
        self._protocol.makeConnection(self.transport)  # type: ignore[arg-type]  # a body has as little of a transport

    def dataReceived(self, data: bytes) -> None:
        if not self._isLost():
            self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._isLost():
            self._protocol.connectionLost(reason)


@implementer(IAgent)
class Network:
    """
    The agent of the clients, with everything that can happen to their requests.

    :param arriving: called when a request arrives at the registry.
    :ivar requests: the requests of the clients so far, oldest first.
    :ivar isPartitioned: whether no response gets through.
    :ivar isPaused: whether the registry's process is stopped; requests wait meanwhile.
    """

    def __init__(self, url: str, arriving: Callable[[], None]) -> None:
        self.requests: list[Request] = []
        self.isPartitioned = False
        self.isPaused = False
        self._url = url
        self._arriving = arriving
        self._scripts: list[_Script] = []
        self._waiting: list[Callable[[], None]] = []
        self._agent: RequestTraversalAgent | None = None
        # Counts how often all connections were lost.
        self._connections = 0
        self._address = "127.0.0.1"
        self._addressListeners: Listeners[[str, str]] = Listeners(_log, "local addresses")

    def connect(self, resource: Resource | None) -> None:
        """Lead to this registry, or to none, so that connections are refused."""
        self._agent = None if resource is None else RequestTraversalAgent(resource)

    def loseConnections(self) -> None:
        """Lose all responses that are under way."""
        self._connections += 1

    def localAddress(self, url: str) -> str:
        """The address of this machine, if there were a connection."""
        return self._address

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """See ConnectionPool."""
        return self._addressListeners.add(listener)

    def move(self, address: str) -> None:
        """Connections have another local address from now on."""
        self._address = address
        self._addressListeners.call(self._url, address)

    def script(self, fault: Fault, count: int | None, when: Callable[[Request], bool] | None = None) -> None:
        """Let *fault* happen to the next *count* requests, of those that *when* accepts, that have none yet."""
        checkCount(count)
        if count != 0:
            self._scripts.append(_Script(fault, count, when))

    def forget(self) -> None:
        """Let no more requests meet what was scripted."""
        self._scripts.clear()

    def flush(self) -> None:
        """Deliver the registry's responses."""
        if self._agent is not None:
            self._agent.flush()

    def resume(self) -> None:
        """Let the requests through that waited while the registry was paused."""
        self.isPaused = False
        waiting, self._waiting = self._waiting, []
        for send in waiting:
            send()

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        path = uri.split(b"://", 1)[-1].partition(b"/")[2]
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        request = Request(method.decode("ascii"), "/" + path.decode("ascii"), body)
        self.requests.append(request)
        if self.isPartitioned:
            return never()

        def send() -> Deferred[IResponse]:
            if self._agent is None:
                return fail(ConnectionRefusedError())
            self._arriving()
            response: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
            return response

        fault = self._faultFor(request)
        if self.isPaused and fault is None:
            return self._later(send)
        return self._unlessLost(send() if fault is None else fault(send))

    def _faultFor(self, request: Request) -> Fault | None:
        for script in self._scripts:
            if script.when is None or script.when(request):
                if script.left is not None:
                    script.left -= 1
                    if not script.left:
                        self._scripts.remove(script)
                return script.fault
        return None

    def _unlessLost(self, response: Deferred[IResponse]) -> Deferred[IResponse]:
        """A response that is lost if it comes during a partition, or after its connection was lost."""
        connection = self._connections
        answer: Deferred[IResponse] = Deferred(lambda _: response.cancel())

        def relay(result: Any) -> None:
            if answer.called:
                return
            isLost = self.isPartitioned or connection != self._connections
            if isLost and not (isinstance(result, Failure) and result.check(ResponseNeverReceived)):
                return
            headers = Headers() if isinstance(result, Failure) else result.headers
            if headers.getRawHeaders(b"Content-Type") == [b"text/event-stream"]:
                result = _Streamed(result, lambda: connection != self._connections)
            answer.callback(result)

        response.addBoth(relay)
        return answer

    def _later(self, send: Send) -> Deferred[IResponse]:
        answer = never()

        def resumed() -> None:
            # The registry acts also on a request whose client has given up meanwhile.
            response = send()
            if not answer.called:
                response.chainDeferred(answer)
            else:
                response.addErrback(lambda _: None)

        self._waiting.append(resumed)
        return answer
