"""Requests and responses, with their bodies, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urljoin

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProtocol, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from ..errors import MalformedResponse, RequestTimedOut
from ..util.fields import LONGEST_INTERVAL, boundedNumber
from .agent import RESOLVING

_T = TypeVar("_T")

#: Called when a request is late, with the Failure of that: returns for how many seconds it runs on instead.
WhenLate = Callable[[Failure], float]

#: The advice for a host name that does not resolve in time, and for a response of another program.
NAME_SERVER = "Check this machine's name server"
NO_REGISTRY = "Check that this is the URL of a service registry"

#: The most bytes of a response. The API's are much shorter; it bounds what a broken server can make a client hold.
MAX_BODY = 16 * 1024 * 1024

# The registry accepts 5,000 bytes, and UTF-8 is shorter than escapes.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Lane(IntEnum):
    """Requests to one server that wait for each other, and not for those of other lanes."""

    ORDINARY = 0
    #: A service may expire while these wait.
    URGENT = 1
    #: Heartbeats: their sender handles a suspend.
    HEARTBEAT = 2
    #: These wait for events, or for locks, of which a client may want many at once.
    WAITING = 3


def segment(text: str) -> str:
    """*text*, which is not empty, encoded so that it stays one segment of a path."""
    encoded = quote(text, safe="")
    # Dots need no encoding, but these two are special in a path.
    return encoded.replace(".", "%2E") if text in (".", "..") else encoded


def pathOf(path: str, query: Mapping[str, object] | None) -> str:
    """A path, which is encoded, with the parameters that are not ``None``."""
    if not query:
        return path
    pairs = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(pairs, safe='', quote_via=quote)}" if pairs else path


def encodeJSON(body: object) -> bytes:
    """A request's body."""
    # Half a surrogate pair can't be UTF-8. As an escape it reaches the registry, which refuses it.
    return _encode(body).encode("utf-8", "backslashreplace")


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class Request:
    """
    A request, with all its tries. Its time begins when it is made. ``ValueError`` if *timeout* or *wait* is not a
    number from 0 on, or *body* can't be JSON.
    """

    method: str
    path: str
    _clock: IReactorTime
    # Returns its stage at a URL, for error messages.
    stage: Callable[[str], str]
    # Seconds for all of it, to which *wait* is added: those for which the server holds its response back.
    timeout: float
    body: bytes | None = attrs.field(default=None, converter=attrs.converters.optional(encodeJSON), repr=False)
    # Whether it may be sent again when its outcome is unknown.
    isRepeatable: bool = attrs.field(
        alias="repeatable", kw_only=True, default=attrs.Factory(lambda self: self.method != "POST", takes_self=True)
    )
    wait: float | None = None
    lane: Lane = Lane.ORDINARY
    # Whether the caller finds out the outcome of a request that is not repeatable.
    isTraced: bool = False
    whenLate: WhenLate | None = None
    # One more, which may be a secret.
    header: tuple[bytes, bytes] | None = attrs.field(default=None, repr=False)
    deadline: float = attrs.field(init=False)
    token: str = attrs.field(init=False, default="", repr=False)
    # Of the last try, and how to let later requests go to another server first.
    url: str = attrs.field(init=False, default="")
    leave: Callable[[], object] = attrs.field(init=False, default=lambda: None)
    traceparent: str = attrs.field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        self.timeout = boundedNumber(self.timeout, 0.0, LONGEST_INTERVAL)
        if self.wait is not None:
            self.timeout += boundedNumber(self.wait, 0.0, LONGEST_INTERVAL)
        self.deadline = self._clock.seconds() + self.timeout

    @property
    def asked(self) -> str:
        """The method and the URL."""
        return f"{self.method} {self.url or self.path}"

    def inTime(self, work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        """The result of *work*, or ``RequestTimedOut``."""
        done = Deferred.fromCoroutine(work)
        if done.called:
            return done
        isTooLate = False
        call: IDelayedCall

        def tooLate() -> None:
            nonlocal call, isTooLate
            whenLate, self.whenLate = self.whenLate, None
            more = 0.0 if whenLate is None else whenLate(self._timedOut())
            self.timeout += more
            if more > 0 and not done.called:
                call = self._clock.callLater(more, tooLate)
            elif not done.called:
                isTooLate = True
                done.cancel()

        def over(result: Any) -> Any:
            if call.active():
                call.cancel()
            return self._timedOut() if isTooLate else result

        # Deferred.addTimeout costs twice as much.
        call = self._clock.callLater(self.timeout, tooLate)
        return done.addBoth(over)

    def _timedOut(self) -> Failure:
        self.leave()
        stage = self.stage(self.url)
        advice = NAME_SERVER if stage.startswith(RESOLVING) else "The server hangs, or needs a longer timeout"
        return Failure(RequestTimedOut(f"{self.asked} timed out after {self.timeout:g} s, {stage}. {advice}"))


class ResponseTooLarge(Exception):
    """The body of a response was longer than :data:`MAX_BODY`, or its headers than the pool's bound."""


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
@attrs.define(eq=False, slots=False, repr=False)
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
        """See IResponse. Can be done any number of times."""
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
        self._body = bytearray()  # a list of short parts would take many times their length
        self.whole: Deferred[WholeResponse] = Deferred(lambda _: self._end())

    def _end(self) -> None:
        (self._abort or self.transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_BODY:
            self._body.clear()
            if not self.whole.called:
                self._end()
                self.whole.errback(ResponseTooLarge(f"more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        # Without a length the end of the connection is the end of the body; whether it is whole, the JSON says.
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            of, body = self._response, bytes(self._body)
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


@attrs.define(eq=False, repr=False)
class Response:
    """A response with its body, and the method and URL of its request."""

    status: int
    headers: Headers
    # None if there is no body, or that of an error is not JSON.
    json: Any = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    method: str
    url: str
    leave: Callable[[], object] = attrs.field(repr=False)

    @property
    def doubt(self) -> str:
        """A possible mistake in the URL; empty if the status does not suggest one."""
        return NO_REGISTRY if self.status in (404, 405, 501) else ""

    def redirection(self, setting: str) -> str | None:
        """The target of a redirect and the *setting* to change; ``None`` for another response."""
        location = self.header("Location")
        if not 300 <= self.status < 400 or not location:
            return None
        with suppress(ValueError):
            # A setting is an absolute URL.
            location = urljoin(self.url, location)
        target = re.sub(r"[^!-~]", "?", location)
        return f"It redirects to {target}, which is not followed. Change the URL: {setting}"

    def header(self, name: str) -> str | None:
        """The first header of that *name*."""
        values = self.headers.getRawHeaders(name.encode("ascii"))
        # A proxy may send anything.
        return values[0].decode("utf-8", "replace") if values else None

    def read(self, reader: Callable[[Any], _T]) -> _T:
        """The body's value; ``MalformedResponse`` if *reader*, which takes and returns it, raises ``ValueError``."""
        try:
            return reader(self.json)
        except ValueError as error:
            self.leave()
            raise MalformedResponse(f"{self.method} {self.url} returned {self.status}, but {error}. {NO_REGISTRY}")
