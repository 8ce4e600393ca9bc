"""Bodies and headers of requests, and responses that are read whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

#: The most bytes of a response. The API's are much shorter; it bounds what a broken server can make a client hold.
MAX_BODY = 16 * 1024 * 1024


class ResponseTooLarge(Exception):
    """The body of a response was longer than :data:`MAX_BODY`."""


@implementer(IBodyProducer)
class BytesProducer:
    """A request's body that is in memory, and can be sent more than once."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written at once."""

    resumeProducing = stopProducing = pauseProducing


class FixedHeaders(Headers):
    """All headers of a request, Host among them, which are never changed."""

    @cached_property
    def encoded(self) -> bytes:
        """The lines of a request."""
        return b"".join(b"%b: %b\r\n" % (name, each) for name, values in self.getAllRawHeaders() for each in values)


class _Nowhere:
    """The transport of a body that has arrived already."""

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = loseConnection = abortConnection = pauseProducing


@implementer(IResponse)
@attrs.define(eq=False, slots=False)
class WholeResponse:
    """A response whose body is here."""

    code: int
    headers: Headers
    body: bytes
    version: Any = (b"HTTP", 1, 1)
    phrase: bytes = b""
    request: Any = None
    previousResponse: Any = None

    @property
    def length(self) -> int:
        return len(self.body)

    def deliverBody(self, protocol: IProtocol) -> None:
        """Hand the whole body to *protocol*, at once. Can be done any number of times."""
        protocol.makeConnection(_Nowhere())  # type: ignore[arg-type] # as little of a transport as a body's has
        if self.body:
            protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(ResponseDone("The body was here already")))

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response


class _Body(Protocol):
    """Collects a body; cancelling :attr:`whole` ends the connection, which Twisted's ``readBody`` does not."""

    transport: Any

    def __init__(self, response: IResponse, abort: Callable[[], object] | None) -> None:
        self._response = response
        self._abort = abort
        self._parts: list[bytes] = []
        self._size = 0
        self.whole: Deferred[WholeResponse] = Deferred(lambda _: self._end())

    def _end(self) -> None:
        (self._abort or self.transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            self._parts.clear()
            if not self.whole.called:
                self._end()
                self.whole.errback(ResponseTooLarge(f"more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        # Without a length the end of the connection is the end of the body; whether it is whole, the JSON says.
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            of, body = self._response, b"".join(self._parts)
            self.whole.callback(
                WholeResponse(of.code, of.headers, body, of.version, of.phrase, of.request, of.previousResponse)
            )
        else:
            self.whole.errback(reason)


def readWhole(response: IResponse, abort: Callable[[], object] | None = None) -> Deferred[WholeResponse]:
    """The response with its body; *abort* ends the connection, instead of the transport that the body comes with."""
    if isinstance(response, WholeResponse):
        return succeed(response)
    body = _Body(response, abort)
    response.deliverBody(body)
    return body.whole
