"""Requests and responses as data: what the API asks for, and what came back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from enum import IntEnum
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urljoin

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from ..errors import MalformedResponse, RequestTimedOut
from ..util.fields import LONGEST_INTERVAL, boundedNumber
from .agent import RESOLVING

_T = TypeVar("_T")

#: Called when a request is late, with the Failure of that: returns for how many seconds it runs on instead.
WhenLate = Callable[[Failure], float]

#: The advice for a host name that does not resolve in time, and for a response of another program.
NAME_SERVER = "Check this machine's name server"
NO_REGISTRY = "Check that this is the URL of a service registry"

# The statuses of a server that serves something else.
_NO_SUCH_PAGE = frozenset({404, 405, 501})

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
    try:
        return _encode(body).encode("utf-8")
    except UnicodeEncodeError:
        # Half a surrogate pair can't be UTF-8. As an escape it reaches the registry, which refuses it.
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class Request:
    """
    A request, with all its tries. Its time begins when it is made. ``ValueError`` if *timeout* or *wait* is not a
    number from 0 on, or *body* can't be JSON.

    :ivar stage: returns its stage at a URL, for error messages.
    :ivar timeout: seconds for all of it; *wait* is added.
    :ivar isRepeatable: whether it may be sent again when its outcome is unknown; by default a GET, PUT or DELETE.
    :ivar wait: seconds for which the server holds its response back; ``None`` if it does not.
    :ivar isTraced: whether the caller finds out the outcome of a request that is not repeatable.
    :ivar header: one more header, which may be a secret.
    :ivar deadline: the end of the *timeout*, in seconds of the clock.
    :ivar url: the URL of the last try.
    :ivar leave: called at the deadline: later requests go to another server first.
    """

    method: str
    path: str
    _clock: IReactorTime
    stage: Callable[[str], str]
    timeout: float
    body: bytes | None = attrs.field(default=None, converter=attrs.converters.optional(encodeJSON), repr=False)
    isRepeatable: bool = attrs.field(alias="repeatable", kw_only=True)
    wait: float | None = None
    lane: Lane = Lane.ORDINARY
    isTraced: bool = False
    whenLate: WhenLate | None = None
    header: tuple[bytes, bytes] | None = attrs.field(default=None, repr=False)
    deadline: float = attrs.field(init=False)
    token: str = attrs.field(init=False, default="", repr=False)
    url: str = attrs.field(init=False, default="")
    leave: Callable[[], object] = attrs.field(init=False, default=lambda: None)
    traceparent: str = attrs.field(init=False, default="")

    @isRepeatable.default
    def _isIdempotent(self) -> bool:
        return self.method != "POST"

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


@attrs.define(eq=False, repr=False)
class Response:
    """
    A response with its body, and the method and URL of its request.

    :ivar json: the body's value; ``None`` if there is none, or the body of an error is not JSON.
    :ivar leave: called when the body has the wrong shape: later requests go to another server first.
    """

    status: int
    headers: Headers
    json: Any = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    method: str
    url: str
    leave: Callable[[], object] = attrs.field(repr=False)

    @property
    def doubt(self) -> str:
        """A possible mistake in the URL; empty if the status does not suggest one."""
        return NO_REGISTRY if self.status in _NO_SUCH_PAGE else ""

    def redirection(self, setting: str) -> str | None:
        """The target of a redirect and the *setting* to change; ``None`` for another response."""
        location = self.header("Location")
        if not 300 <= self.status < 400 or not location:
            return None
        try:
            location = urljoin(self.url, location)
        except ValueError:
            pass
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
