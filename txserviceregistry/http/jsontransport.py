"""
JSON over HTTP to a server, or to several that are one service: URLs, headers, failover, errors.
"""

from __future__ import annotations

import json
import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from .._version import __version__
from ..errors import ConnectionFailed, MalformedResponse, RequestTimedOut, ServiceRegistryError
from ..util.tries import NothingLeft, Race, TryIsLate
from .agent import describeFailure
from .bodies import BytesProducer, FixedHeaders, ResponseTooLarge, WholeResponse
from .failover import Servers
from .messages import NAME_SERVER, Lane, Request, Response
from .pool import InsecureConnection, StaleConnection
from .queueing import AgentClosed
from .resolving import ResolvingTimedOut, stageOf

#: Seconds that a request may take, unless it says otherwise.
TIMEOUT = 10.0

# The statuses of a server that can't do its work now, or of a gateway before it: another one may.
_AWAY = frozenset({500, 502, 503, 504})

# When a deadline is shared among several servers, the first has so many seconds, or half of it if that is less: an
# answer takes its time, however short the deadline and many the servers.
_SHORTEST_SHARE = 0.25

# A pool may hold more than one stale connection. Each repetition uses one up; a new connection is never stale.
_MOST_STALE = 3

_HEADERS = {
    b"User-Agent": [b"txserviceregistry/" + __version__.encode("ascii")],
    b"Accept": [b"application/json"],
}


class ClientClosed(ConnectionFailed):
    """The client was closed before the request was done."""


class _Away(Exception):
    """
    The server says that it can't do its work.

    :ivar response: what it says.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Server:
    """
    The URL of one server, and the headers of requests to it, without a body and with one. They name the host: Twisted's
    agent copies headers that don't, and checks them all again.

    :param url: it, with no port that goes without saying.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        headers = {b"Host": [url.split("/")[2].encode("ascii")], **_HEADERS}
        self._withoutBody = FixedHeaders(headers)
        self._withBody = FixedHeaders({**headers, b"Content-Type": [b"application/json; charset=UTF-8"]})

    def headersFor(self, request: Request) -> Headers:
        headers = self._withoutBody if request.body is None else self._withBody
        return headers.having(b"X-Auth-Token", request.token.encode("utf-8")) if request.token else headers


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
    :param lanes: sends the requests of these lanes, instead of the *agent*.
    :param random: gives numbers from 0 to 1; draws the server to begin with.
    :param isFault: takes the status, the headers and the JSON of a response that is an error, and returns whether it is
        the server's own. If not, it comes from a gateway that does not reach the server, and the request goes to the
        next server. Without it every response is the server's own.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        baseUrls: Sequence[str],
        *,
        timeout: float = TIMEOUT,
        name: str = "the registry",
        lanes: Mapping[Lane, IAgent] | None = None,
        random: Callable[[], float] = randomModule.random,
        isFault: Callable[[int, Headers, object], bool] = lambda status, headers, value: True,
    ) -> None:
        self._agents = [agent if lanes is None else lanes.get(lane, agent) for lane in Lane]
        self._clock = clock
        self._bases = [_Server(url) for url in baseUrls]
        self._timeout = timeout
        self._name = name
        self._isFault = isFault
        self._servers = Servers(len(baseUrls), clock, random)
        self._wasAnswered = False
        # The requests whose responses servers hold back: of each its server, and what takes it away from there.
        self._heldBack: dict[Deferred[Any], tuple[int, Callable[[], None]]] = {}

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return len(self._bases)

    @property
    def baseUrl(self) -> str:
        """The URL of the server that is asked first: the one that worked last, or is about to be tried."""
        return self._bases[self._servers.current].url

    @property
    def stage(self) -> str:
        """What a request to that server waits for, for error messages."""
        return self._stageAt(self.baseUrl)

    def _stageAt(self, url: str) -> str:
        return stageOf(self._clock, urlsplit(url).hostname or "") or f"waiting for {self._name}"

    def isServer(self, url: str) -> bool:
        """Whether one of the servers has this URL's scheme, host and port."""
        return any(_originOf(base.url) == _originOf(url) for base in self._bases)

    def request(
        self, method: str, path: str, *, body: Any = None, timeout: float | None = None, **options: Any
    ) -> Deferred[Response]:
        """
        Send a request, once or as often as it takes.

        :param method: the HTTP method.
        :param path: below the base URL, encoded, beginning with a slash.
        :param body: what to send as JSON; ``None`` for no body.
        :param timeout: seconds for all of it: queue, connecting, headers and body.
        :param options: see :meth:`~txserviceregistry.http.messages.Request.make`.
        :return: fires with the :class:`~txserviceregistry.http.messages.Response`, whatever its status. Fails with
            :class:`~txserviceregistry.errors.ConnectionFailed`, :class:`~txserviceregistry.errors.RequestTimedOut`,
            or, if a 2xx has no JSON or any response is cut short, with
            :class:`~txserviceregistry.errors.MalformedResponse`.
        """
        seconds = self._timeout if timeout is None else timeout
        request = Request.make(method, path, self._clock, self._stageAt, seconds, body=body, **options)
        return request.inTime(self._clock, self.send(request))

    async def send(self, request: Request) -> Response:
        """
        Send a request to one server after the other. It has no deadline here; see
        :meth:`~txserviceregistry.http.messages.Request.inTime`.
        """
        request.stage = self._stageAt
        # A response that is held back would tell too late whether a server is back.
        order = self._servers.order(mayTry=request.isRepeatable and request.wait is None)
        # After a wait for events there is no time left for another server to wait.
        isFinal = not request.isRepeatable or request.wait is not None
        race: Race[Response] | None = Race(self._clock) if len(order) > 1 and not isFinal else None
        refusal: Response | None = None
        problem: ServiceRegistryError | None = None
        wasSent = False
        for left, server in zip(range(len(order), 0, -1), order, strict=True):
            request.leave = partial(self._left, server)
            request.url = self._bases[server].url + request.path
            asking = self._ask(request, server, left)
            isUnsent = False
            try:
                if race is None:
                    return await asking
                # The request to a server that is late runs on beside the one to the next.
                share = None if left == 1 else max(0.0, shareOf(request.deadline - self._clock.seconds(), left))
                return await race.run(Deferred.fromCoroutine(asking), share)
            except ClientClosed:
                raise
            except _Away as error:
                refusal, problem = error.response, None
            except TryIsLate:
                problem = self._lateInItsShare(request)
            except ConnectionFailed as error:
                problem, isUnsent = error, not error.wasSent
                error.wasSent = wasSent = wasSent or error.wasSent
            except (MalformedResponse, RequestTimedOut) as error:
                problem = error
            wasSent = wasSent or not isUnsent
            self._left(server)
            if left > 1 and (isUnsent or not isFinal):
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

    async def _ask(self, request: Request, server: int, left: int) -> Response:
        """
        The response of one server. The request is sent once more when the connection turns out to be stale.

        :param left: how many servers are left, this one included.
        :raises _Away: if it could not do its work.
        """
        url, leave = request.url, request.leave
        for attempt in range(1, _MOST_STALE + 1):
            try:
                answer = await self._attempt(request, server, url, left)
                break
            except (CancelledError, ServiceRegistryError):
                raise
            except Exception as error:
                if not isinstance(error, StaleConnection) or not request.isRepeatable or attempt == _MOST_STALE:
                    raise self._explained(error, request) from error
        status, headers = answer.code, answer.headers
        value = self._valueOf(answer, request, url)
        isAway = status >= 300 and (status in _AWAY or not self._isFault(status, headers, value))
        if not isAway:
            self._servers.worked(server)
            self._wasAnswered = True
        response = Response(status, headers, value, answer.body, request.method, url, leave)
        if isAway:
            raise _Away(response)
        return response

    def _attempt(self, request: Request, server: int, url: str, left: int) -> Deferred[WholeResponse]:
        sent: Deferred[Any] = self._agents[request.lane].request(
            request.method.encode("ascii"),
            url.encode("ascii"),
            self._bases[server].headersFor(request),
            None if request.body is None else BytesProducer(request.body),
        )
        wait = request.wait
        if left > 1 and (request.isTraced or (request.isRepeatable and wait is not None)):
            # No server can be asked to wait for a shorter time than the others.
            share = (wait or 0.0) + shareOf(request.deadline - (wait or 0.0) - self._clock.seconds(), left)
            late = self._lateInItsShare
            sent.addTimeout(max(0.0, share), self._clock, lambda _, timeout: Failure(late(request)))
        if wait is not None:
            self._holdBack(request, server, sent)
        return sent

    def _holdBack(self, request: Request, server: int, sent: Deferred[Any]) -> None:
        isTaken = False

        def takeAway() -> None:
            nonlocal isTaken
            isTaken = True
            sent.cancel()

        def over(result: Any) -> Any:
            del self._heldBack[sent]
            return Failure(self._lateInItsShare(request)) if isTaken and isinstance(result, Failure) else result

        self._heldBack[sent] = server, takeAway
        sent.addBoth(over)

    def _valueOf(self, answer: WholeResponse, request: Request, url: str) -> Any:
        if not answer.body:
            return None
        try:
            return _linesOf(answer.body) if request.lines else json.loads(answer.body)
        except (ValueError, RecursionError):
            if answer.code >= 300:
                return None
            raise MalformedResponse(
                f"{request.method} {url} returned {answer.code}, but the body is not JSON. Check that this is the URL "
                f"of {self._name}"
            )

    def giveUp(self) -> None:
        """A caller did not wait for the server that is asked first: the next request goes to another."""
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

    # -- errors

    def _lateInItsShare(self, request: Request) -> RequestTimedOut:
        stage = stageOf(self._clock, urlsplit(request.url).hostname or "")
        why = f", {stage}. {NAME_SERVER}" if stage else ": the server hangs"
        return RequestTimedOut(f"{request.asked} timed out in its share of {request.timeout:g} s{why}")

    def _explained(self, error: Exception, request: Request) -> ServiceRegistryError:
        """What the failure of an agent means, and what to do."""
        asked, name, why = request.asked, self._name, describeFailure(error)
        if isinstance(error, AgentClosed):
            return ClientClosed(f"{asked} failed: this client has been closed")
        if isinstance(error, InsecureConnection):
            return _unsent(f"{asked} failed: can't connect to {name}: {error}")
        if isinstance(error, (ConnectError, DNSLookupError)):
            advice = NAME_SERVER if isinstance(error, ResolvingTimedOut) else "Check that it runs, and the URL"
            return _unsent(f"{asked} failed: can't connect to {name} ({why}). {advice}")
        if isinstance(error, ResponseTooLarge):
            return MalformedResponse(f"{asked} failed: the response is too long ({error})")
        advice = ""
        if not self._wasAnswered and request.url.startswith("http:"):
            # Servers that want TLS close a connection that is not TLS, most of them without a word.
            advice = ". If the server uses TLS, its URL begins with https://"
        if isinstance(error, ResponseFailed) and not isinstance(error, ResponseNeverReceived):
            return MalformedResponse(f"{asked} failed: the response is truncated, or not HTTP ({why}){advice}")
        return ConnectionFailed(f"{asked} failed: no response from {name} ({why}){advice}")


def _unsent(text: str) -> ConnectionFailed:
    error = ConnectionFailed(text)
    error.wasSent = False
    return error


def shareOf(left: float, serversLeft: int) -> float:
    """Seconds of those that are *left* that one of several servers has before the request goes to the next one."""
    return left if serversLeft == 1 else max(left / serversLeft, min(left / 2, _SHORTEST_SHARE))


def _originOf(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _linesOf(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines() if line.strip()]
