"""
JSON over HTTP with whomever: the one place where URLs, bodies, deadlines and failover are dealt with.

What an agent does (connections, queue, token) is below; what the answers mean, above.
"""

from __future__ import annotations

import json
import random as randomModule
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from .._version import __version__
from ..errors import ConnectionFailed, MalformedResponse, RequestTimedOut, ServiceRegistryError
from ..util.parsing import LONGEST_INTERVAL, boundedNumber
from ..util.tries import NothingLeft, Race, TryIsLate
from .agent import describeFailure
from .bodies import BytesProducer, FixedHeaders, ResponseTooLarge, WholeResponse
from .failover import Servers
from .pool import InsecureConnection, StaleConnection
from .queueing import AgentClosed
from .resolving import RESOLVING, ResolvingTimedOut, stageOf

_T = TypeVar("_T")

#: Seconds that a request may take, unless it says otherwise.
TIMEOUT = 10.0

# What a server says that can't do its work just now, or what stands before it: another one may.
_AWAY = frozenset({500, 502, 503, 504})

# What a server says that serves something else.
_NO_SUCH_PAGE = frozenset({404, 405, 501})

# When a deadline is shared among several servers, the first has so many seconds, or half of it if that is less: an
# answer takes its time, however short the deadline and many the servers.
_SHORTEST_SHARE = 0.25

# The advice for a host name that does not resolve in time.
_NAME_SERVER = "Check this machine's name server"

# A pool may hold more than one stale connection. Each repetition uses one up; a new connection is never stale.
_MOST_STALE = 3

_HEADERS = {
    b"User-Agent": [b"txserviceregistry/" + __version__.encode("ascii")],
    b"Accept": [b"application/json"],
}

# The least of the 5,000 bytes that the registry accepts is UTF-8 as it is.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


#: Called when a request is late, with the Failure of that: returns for how many seconds it runs on instead.
WhenLate = Callable[[Failure], float]


class ClientClosed(ConnectionFailed):
    """The client was closed before the request was done."""


def segment(text: str) -> str:
    """
    One segment of a path, whatever its characters: it is encoded so that it can't become two, or none.

    :param text: an id, not empty.
    """
    encoded = quote(text, safe="")
    # Dots need no encoding, but these two have a meaning of their own in a path.
    return encoded.replace(".", "%2E") if text in (".", "..") else encoded


def pathOf(path: str, query: Mapping[str, object] | None) -> str:
    """
    A path with its query.

    :param path: encoded.
    :param query: the parameters, as they are; those that are ``None`` are left out.
    """
    if not query:
        return path
    pairs = "&".join(
        f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in query.items() if value is not None
    )
    return f"{path}?{pairs}" if pairs else path


def encodeJSON(body: object) -> bytes:
    """A request's body."""
    try:
        return _encode(body).encode("utf-8")
    except UnicodeEncodeError:
        # Half a surrogate pair can't be UTF-8. As an escape it reaches the registry, which says what is wrong with it.
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")


@attrs.frozen
class Response:
    """
    A response with its body.

    :ivar status: the HTTP status code.
    :ivar headers: the headers.
    :ivar json: the body's value; ``None`` if there is none, or the body of an error is not JSON.
    :ivar body: the body's bytes.
    :ivar method: the request's method, for error messages.
    :ivar url: the request's URL, for error messages.
    :ivar leave: called when the body has the wrong shape: later requests go to another server first.
    """

    status: int
    headers: Headers
    json: Any = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    method: str
    url: str
    leave: Callable[[], object] = attrs.field(default=lambda: None, repr=False, eq=False)

    @property
    def doubt(self) -> str:
        """A question about the URL, if there is no such page or it does not accept such a request."""
        return "Is there a service registry at this URL?" if self.status in _NO_SUCH_PAGE else ""

    def redirection(self, setting: str) -> str | None:
        """
        The target of a redirect, which is not followed, and what to do about it, in sentences.

        :param setting: the setting to change.
        :return: ``None`` if this is not a redirect, or has no target.
        """
        location = self.header("Location")
        if not 300 <= self.status < 400 or not location:
            return None
        try:
            location = urljoin(self.url, location)
        except ValueError:
            pass  # It is shown as it came.
        target = re.sub(r"[^!-~]", "?", location)
        return f"It redirects to {target}, which is not followed. Change the URL: {setting}"

    def header(self, name: str) -> str | None:
        """The first header of that *name*."""
        values = self.headers.getRawHeaders(name.encode("ascii"))
        # Whatever stands before a registry may say anything.
        return values[0].decode("utf-8", "replace") if values else None

    def read(self, reader: Callable[[Any], _T]) -> _T:
        """
        The body's value, validated.

        :param reader: takes the JSON value and returns it, or raises ``ValueError`` if it has the wrong shape: a
            function of :mod:`~txserviceregistry.api.shapes`.
        :raises MalformedResponse: if it has the wrong shape.
        """
        try:
            return reader(self.json)
        except ValueError as error:
            self.leave()
            raise MalformedResponse(
                f"{self.method} {self.url} was answered with {self.status}, but {error}: "
                "is this the URL of a service registry?"
            )


@attrs.define
class PendingRequest:
    """
    A request under way, over however many tries.

    :ivar stage: returns what it is waiting for, for error messages; ``None`` if it waits for the server.
    """

    method: str
    path: str
    body: bytes | None
    repeatable: bool
    timeout: float
    deadline: float
    wait: float | None = None
    lines: bool = False
    isTraced: bool = False
    whenLate: WhenLate | None = None
    leave: Callable[[], None] = lambda: None
    url: str = ""
    stage: Callable[[], str] | None = None

    @property
    def asked(self) -> str:
        return f"{self.method} {self.url or self.path}"


class _NotSent(Exception):
    """There was no connection: the request has had no effect. The text says why, and what to do."""


class _NotAnswered(Exception):
    """The request was sent, and nothing came back: it may have had its effect."""


class _CutShort(_NotAnswered):
    """The beginning of an answer has come, or no HTTP."""


class _Away(Exception):
    """
    The server says that it can't do its work.

    :ivar response: what it says.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _TookTooLong(_NotAnswered):
    """This server has used up its share of the deadline, or was found to hang by another request."""


class _Base:
    """
    The URL of one server, and the headers of requests to it, without a body and with one. They name the host: Twisted's
    agent copies headers that don't, and checks them all again.

    :param url: it, with no port that goes without saying.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        headers = {b"Host": [url.split("/")[2].encode("ascii")], **_HEADERS}
        self.withoutBody = FixedHeaders(headers)
        self.withBody = FixedHeaders({**headers, b"Content-Type": [b"application/json; charset=UTF-8"]})


class JSONTransport:
    """
    JSON over HTTP to one server, or to several that are one service.

    When a server can't be reached, or answers that it can't do its work, requests go to the next one, and stay with one
    that works (:class:`~txserviceregistry.http.failover.Servers`). A request that had no response is sent again only if
    it may have its effect twice. Each of several servers has a share of the request's time. When it is over, the
    request is sent to the next server too, and the first response counts. A request that waits for events is cancelled
    when its server fails, because that one may never answer.

    :param agent: sends the requests: a :class:`~txserviceregistry.http.queueing.QueueingAgent`, or an agent over one.
    :param clock: for the deadlines.
    :param baseUrls: the URLs before the paths, without a slash at the end.
    :param timeout: seconds that a request may take, unless it has a timeout of its own.
    :param name: the name of the server for error messages.
    :param waitingAgent: sends the requests that wait for events; the *agent* if not given.
    :param random: gives numbers from 0 to 1; draws the server to begin with.
    :param isFault: whether a response that is an error is the server's own. If not, it comes from a gateway that does
        not reach the server, and the request goes to the next server. Without it every response is the server's own.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        baseUrls: Sequence[str],
        *,
        timeout: float = TIMEOUT,
        name: str = "the registry",
        waitingAgent: IAgent | None = None,
        random: Callable[[], float] = randomModule.random,
        isFault: Callable[[Response], bool] | None = None,
    ) -> None:
        self._isFault = isFault
        self._agent = agent
        self._waitingAgent = agent if waitingAgent is None else waitingAgent
        self._clock = clock
        self._bases = [_Base(url) for url in baseUrls]
        self._timeout = timeout
        self._name = name
        self._servers = Servers(len(baseUrls), clock, random)
        self._wasAnswered = False
        # What a server holds back, and how to take it away from there.
        self._heldBack: dict[Deferred[Any], tuple[int, Callable[[], None]]] = {}

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return len(self._bases)

    @property
    def baseUrl(self) -> str:
        """The URL that is asked first: the one that worked last, or is about to be tried."""
        return self._bases[self._servers.current].url

    def isServer(self, url: str) -> bool:
        """Whether one of the servers has this URL's scheme, host and port."""
        return any(_originOf(base.url) == _originOf(url) for base in self._bases)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Any = None,
        timeout: float | None = None,
        repeatable: bool | None = None,
        lines: bool = False,
    ) -> Deferred[Response]:
        """
        Ask, once or as often as it takes.

        :param method: the HTTP method.
        :param path: below the base URL, encoded, beginning with a slash.
        :param query: the query's parameters; those that are ``None`` are left out.
        :param body: what to send as JSON; ``None`` for no body.
        :param timeout: seconds for all of it: queue, connecting, headers and body.
        :param repeatable: whether the request may be sent again when it is unknown whether it had its effect;
            by default a GET, PUT or DELETE may.
        :param lines: whether bodies are JSON values one after the other, a line each: *body* and the answer's value are
            sequences of them then.
        :return: fires with the :class:`Response`, whatever its status. Fails with
            :class:`~txserviceregistry.errors.ConnectionFailed`, :class:`~txserviceregistry.errors.RequestTimedOut`,
            or, if a 2xx has no JSON or any answer is cut short, with
            :class:`~txserviceregistry.errors.MalformedResponse`.
        """
        pending = self.pending(
            method, path, query=query, body=body, timeout=timeout, repeatable=repeatable, lines=lines
        )
        return self.inTime(pending, self.send(pending))

    def pending(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Any = None,
        timeout: float | None = None,
        repeatable: bool | None = None,
        wait: float | None = None,
        lines: bool = False,
        isTraced: bool = False,
        whenLate: WhenLate | None = None,
    ) -> PendingRequest:
        """
        A request and its deadline, for :meth:`send`. The parameters are those of :meth:`request`.

        :param wait: seconds for which the server is asked to hold its answer back; they are added to the *timeout*.
        :param isTraced: whether the caller finds out the outcome of a request that may not be repeated. Then a server
            has only its share of the time for the request, so that there is time left for that.
        :param whenLate: called when the *timeout* is over, with its Failure. The request runs on for as many seconds as
            it returns, and fails only then.
        :raises ValueError: if *timeout* or *wait* is not a number from 0 on, or *body* can't be JSON.
        """
        timeout = self._timeout if timeout is None else boundedNumber(timeout, 0.0, LONGEST_INTERVAL)
        if wait is not None:
            timeout += boundedNumber(wait, 0.0, LONGEST_INTERVAL)
        if isTraced and whenLate is not None:
            # It is late when its share is over: the caller finds out the outcome while it runs on.
            timeout = _shareOf(timeout, max(1, len(self._bases)))
            isTraced = False
        return PendingRequest(
            method,
            pathOf(path, query),
            None if body is None else b"\n".join(map(encodeJSON, body)) if lines else encodeJSON(body),
            method != "POST" if repeatable is None else repeatable,
            timeout,
            self._clock.seconds() + timeout,
            wait,
            lines,
            isTraced,
            whenLate,
        )

    def inTime(self, pending: PendingRequest, work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        """Do *work*, until the deadline of *exchange*."""
        done = Deferred.fromCoroutine(work)
        if done.called:
            return done
        isTooLate = False
        call: IDelayedCall

        def tooLate() -> None:
            nonlocal call, isTooLate
            more = self._late(pending)
            if done.called:
                return
            if more > 0:
                call = self._clock.callLater(more, tooLate)
                return
            isTooLate = True
            done.cancel()

        # This is Deferred.addTimeout, but for the half of its time that a request need not spend.
        call = self._clock.callLater(max(0.0, pending.deadline - self._clock.seconds()), tooLate)

        def over(result: Any) -> Any:
            if isTooLate:
                return self._tooLate(pending)
            if call.active():
                call.cancel()
            return result

        return done.addBoth(over)

    def _late(self, pending: PendingRequest) -> float:
        """The time of a request is over: how many more seconds it has."""
        whenLate, pending.whenLate = pending.whenLate, None
        if whenLate is None:
            return 0.0
        more = whenLate(self._tooLate(pending))
        pending.timeout += more
        return more

    def _tooLate(self, pending: PendingRequest) -> Failure:
        pending.leave()
        stage = self._stageOf(pending.url) if pending.stage is None else pending.stage()
        culprit = _NAME_SERVER if stage.startswith(RESOLVING) else "The server hangs, or is too slow for this timeout"
        return Failure(
            RequestTimedOut(f"{pending.asked} had no whole answer after {pending.timeout:g} s, {stage}. {culprit}")
        )

    @property
    def stage(self) -> str:
        """What a request to the first server waits for, for error messages."""
        return self._stageOf(self.baseUrl)

    def _stageOf(self, url: str) -> str:
        return stageOf(self._clock, urlsplit(url).hostname or "") or f"waiting for {self._name}"

    async def send(self, pending: PendingRequest) -> Response:
        """Send it, to one server after the other. The deadline is the caller's: see :meth:`inTime`."""
        pending.stage = None
        # An answer that is held back would tell too late whether a server is back.
        order = self._servers.order(mayTry=pending.repeatable and pending.wait is None)
        # After a wait for events there is no time left for another server to wait.
        isFinal = not pending.repeatable or pending.wait is not None
        race: Race[Response] | None = Race(self._clock) if len(order) > 1 and not isFinal else None
        refusal: Response | None = None
        problem: ServiceRegistryError | None
        wasSent = False
        for tried, server in enumerate(order):
            pending.leave = partial(self._left, server)
            pending.url = self._bases[server].url + pending.path
            last = tried == len(order) - 1
            asking = self._answerOf(pending, server, pending.url, len(order) - tried)
            try:
                if race is None:
                    return await asking
                # The request to a server that is late runs on beside the one to the next.
                share = None if last else self._shareOfNext(pending, len(order) - tried)
                return await race.run(Deferred.fromCoroutine(asking), share)
            except _Away as error:
                refusal = error.response
                problem = None
                last = last or isFinal
            except _NotSent as error:
                failed = problem = ConnectionFailed(f"{pending.asked} failed: can't connect to {self._name}{error}")
                failed.wasSent = wasSent
            except (_TookTooLong, TryIsLate):
                stage = stageOf(self._clock, urlsplit(pending.url).hostname or "")
                problem = RequestTimedOut(
                    f"{pending.asked} had no whole answer in its share of {pending.timeout:g} s"
                    f"{f', {stage}. {_NAME_SERVER}' if stage else ': the server hangs'}"
                )
                last = last or isFinal
                wasSent = True
            except _CutShort as error:
                problem = MalformedResponse(
                    f"The answer to {pending.asked} was cut short, or is no HTTP ({error}){self._advice(pending)}"
                )
                last = last or isFinal
                wasSent = True
            except _NotAnswered as error:
                problem = ConnectionFailed(
                    f"{pending.asked} failed: {self._name} gave no answer ({error}){self._advice(pending)}"
                )
                last = last or isFinal
                wasSent = True
            except MalformedResponse as error:
                problem = error
                last = last or isFinal
                wasSent = True
            self._left(server)
            if not last:
                continue
            if race is not None:
                try:
                    # Late servers may still answer, until the deadline.
                    return await race.rest()
                except NothingLeft:
                    pass
            if refusal is not None:
                return refusal
            if problem is not None:
                raise problem
        raise AssertionError("unreachable")

    async def _answerOf(self, pending: PendingRequest, server: int, url: str, serversLeft: int) -> Response:
        """
        The response of one server.

        :raises _Away: if it could not do its work.
        """
        answer = await self._ask(pending, server, url, serversLeft)
        response = self._response(pending, answer, url, partial(self._left, server))
        if answer.code >= 300 and not self._isWork(response):
            raise _Away(response)
        self._servers.worked(server)
        self._wasAnswered = True
        return response

    def _isWork(self, refusal: Response) -> bool:
        """Whether a response that is an error is the answer to the request, and not a sign of an outage."""
        return refusal.status not in _AWAY and (self._isFault is None or self._isFault(refusal))

    def _shareOfNext(self, pending: PendingRequest, serversLeft: int) -> float:
        """Seconds after which the request goes to the next server too."""
        return max(0.0, _shareOf(pending.deadline - self._clock.seconds(), serversLeft))

    def giveUp(self) -> None:
        """Whoever has asked lost patience with the server that is asked first: the next request goes to another."""
        self._left(self._servers.current)

    def _left(self, server: int) -> None:
        """A server has not done its work."""
        self._servers.failed(server)
        if self._servers.current == server:
            # There is no other.
            return
        for holder, takeAway in list(self._heldBack.values()):
            if holder == server:
                takeAway()

    def _advice(self, pending: PendingRequest) -> str:
        """What to look at when there is no answer."""
        if self._wasAnswered or not pending.url.startswith("http:"):
            return ""
        # Servers that want TLS hang up on what is none, most of them without a word.
        return ". If TLS is spoken at that port, its URL begins with https://"

    async def _ask(self, pending: PendingRequest, server: int, url: str, serversLeft: int) -> WholeResponse:
        """Send it to one server, and once more when the connection turns out to be stale."""
        for attempt in range(1, _MOST_STALE + 1):
            try:
                return await self._attempt(pending, server, url, serversLeft)
            except StaleConnection as error:
                if not pending.repeatable or attempt == _MOST_STALE:
                    raise _NotAnswered(describeFailure(error))
            except (CancelledError, ServiceRegistryError, _NotAnswered):
                raise
            except AgentClosed:
                raise ClientClosed(f"{pending.asked} was not done: this client has been closed")
            except ResolvingTimedOut as error:
                raise _NotSent(f" ({describeFailure(error)}). {_NAME_SERVER}")
            except (ConnectError, DNSLookupError) as error:
                raise _NotSent(f" ({describeFailure(error)}). Check that it runs, and the URL")
            except InsecureConnection as error:
                raise _NotSent(f": {error}")
            except ResponseTooLarge as error:
                raise MalformedResponse(f"The answer to {pending.asked} is too long ({error})")
            except ResponseFailed as error:
                if isinstance(error, ResponseNeverReceived):
                    raise _NotAnswered(describeFailure(error))
                raise _CutShort(describeFailure(error))
            except Exception as error:
                # An agent that was given from outside may fail in ways of its own.
                raise _NotAnswered(describeFailure(error)) from error
        raise AssertionError("unreachable")

    def _attempt(self, pending: PendingRequest, server: int, url: str, serversLeft: int) -> Deferred[WholeResponse]:
        body = pending.body
        base = self._bases[server]
        agent = self._agent if pending.wait is None else self._waitingAgent
        sent: Deferred[Any] = agent.request(
            pending.method.encode("ascii"),
            url.encode("ascii"),
            base.withoutBody if body is None else base.withBody,
            None if body is None else BytesProducer(body),
        )
        isHeldBack = pending.repeatable and pending.wait is not None
        if serversLeft > 1 and (isHeldBack or pending.isTraced):
            # No server can be asked to wait for a shorter time than the others.
            wait = pending.wait or 0.0
            share = wait + _shareOf(pending.deadline - wait - self._clock.seconds(), serversLeft)
            sent.addTimeout(max(0.0, share), self._clock, lambda _, timeout: Failure(_TookTooLong()))
        if pending.wait is not None:
            self._holdBack(server, sent)
        return sent

    def _holdBack(self, server: int, sent: Deferred[Any]) -> None:
        isTaken = False

        def takeAway() -> None:
            nonlocal isTaken
            isTaken = True
            sent.cancel()

        def over(result: Any) -> Any:
            del self._heldBack[sent]
            return Failure(_TookTooLong()) if isTaken and isinstance(result, Failure) else result

        self._heldBack[sent] = server, takeAway
        sent.addBoth(over)

    def _response(
        self, pending: PendingRequest, answer: WholeResponse, url: str, leave: Callable[[], object]
    ) -> Response:
        value = None
        if answer.body:
            try:
                value = _linesOf(answer.body) if pending.lines else json.loads(answer.body)
            except (ValueError, RecursionError):
                if answer.code < 300:
                    raise MalformedResponse(
                        f"{pending.method} {url} was answered with {answer.code}, but the body is not JSON: "
                        f"is this the URL of {self._name}?"
                    )
        return Response(answer.code, answer.headers, value, answer.body, pending.method, url, leave)


def _shareOf(left: float, serversLeft: int) -> float:
    """Seconds of those that are *left* that one of several servers has before the request goes to the next one."""
    return left if serversLeft == 1 else max(left / serversLeft, min(left / 2, _SHORTEST_SHARE))


def _originOf(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _linesOf(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines() if line.strip()]
