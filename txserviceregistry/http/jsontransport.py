"""JSON over HTTP to a server, or to several that are one service: URLs, headers, failover, errors."""

from __future__ import annotations

import json
import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
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
from ..util.backoff import NothingLeft, Race, TryIsLate
from .agent import ResolvingTimedOut, describeFailure, stageOf
from .bodies import BytesProducer, FixedHeaders, ResponseTooLarge, WholeResponse
from .failover import Servers
from .messages import NAME_SERVER, Lane, Request, Response, pathOf
from .pool import InsecureConnection, StaleConnection
from .queueing import AgentClosed

#: Seconds that a request may take, unless it says otherwise.
TIMEOUT = 10.0

# The statuses of a server that is unavailable, or of a gateway before it.
_AWAY = frozenset({500, 502, 503, 504})

# When several servers share a timeout, the first has at least so many seconds, or half of the timeout.
_SHORTEST_SHARE = 0.25

# A pool may hold more than one stale connection. Each repetition uses one up; a new connection is never stale.
_MOST_STALE = 3

#: The header with the name and the version of this library.
USER_AGENT = {"User-Agent": f"txserviceregistry/{__version__}"}


class ClientClosed(ConnectionFailed):
    """The client was closed before the request was done."""


class _Away(Exception):
    """The server is unavailable."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


def _headers(base: str, hasBody: bool, token: str, traceparent: str, more: tuple[bytes, bytes] | None) -> FixedHeaders:
    """All headers of a request to the server with this *base* URL, which has no default port."""
    fields = {
        "Host": base.split("/")[2],
        **USER_AGENT,
        "Accept": "application/json",
        "Content-Type": "application/json; charset=UTF-8" if hasBody else "",
        "traceparent": traceparent,
        "X-Auth-Token": token,
    }
    raw = {name.encode("ascii"): [value.encode("utf-8")] for name, value in fields.items() if value}
    return FixedHeaders(raw if more is None else {**raw, more[0]: [more[1]]})


class JSONTransport:
    """
    JSON over HTTP to one server, or to several that are one service.

    When a server is unreachable or unavailable, requests go to the next one, and stay with one that works
    (:class:`~txserviceregistry.http.failover.Servers`). A request without a response is sent again only if it is
    repeatable. Each of several servers has a share of the request's time. After that the request is sent to the next
    server too, and the first response counts.

    :param agent: a :class:`~txserviceregistry.http.queueing.QueueingAgent`, or an agent over one.
    :param baseUrls: the URLs before the paths, without a slash at the end.
    :param lanes: sends the requests of these lanes, instead of the *agent*.
    :param timeout: seconds that a request may take by default.
    :param name: the name of the server for error messages.
    :param random: returns numbers from 0 to 1; draws the server to begin with.
    :param isFault: takes the status, the headers and the JSON of a response that is an error, and returns whether it is
        the server's own. If not, it is a gateway's, and the request goes to the next server.
    :param onForeign: called after a response that is not the server's own. Another program may have its address now:
        idle connections are best closed, so that the next request looks up the name.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        baseUrls: Sequence[str],
        *,
        lanes: Mapping[Lane, IAgent] = MappingProxyType({}),
        timeout: float = TIMEOUT,
        name: str = "the registry",
        random: Callable[[], float] = randomModule.random,
        isFault: Callable[[int, Headers, object], bool] = lambda status, headers, value: True,
        onForeign: Callable[[], object] = lambda: None,
    ) -> None:
        self._agents = [lanes.get(lane, agent) for lane in Lane]
        self._clock = clock
        self._bases = baseUrls
        self._timeout = timeout
        self._name = name
        self._isFault = isFault
        self._onForeign = onForeign
        self._servers = Servers(len(baseUrls), clock, random)
        self._wasAnswered = False
        self._headers = lru_cache(maxsize=16)(_headers)

    @property
    def servers(self) -> int:
        return len(self._bases)

    @property
    def baseUrl(self) -> str:
        """The URL of the server that is asked first."""
        return self._bases[self._servers.current]

    @property
    def stage(self) -> str:
        """The stage of a request to that server, for error messages."""
        return self._stageAt(self.baseUrl)

    def _stageAt(self, url: str) -> str:
        return stageOf(self._clock, url) or f"waiting for {self._name}"

    def isServer(self, url: str) -> bool:
        """Whether one of the servers has this URL's scheme, host and port."""
        return any(_originOf(base) == _originOf(url) for base in self._bases)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Deferred[Response]:
        """
        Send a request. *path*, which is encoded, is below the base URL; *options* are of the ``Request``.

        :return: fires with the ``Response``, of any status. Fails with ``ConnectionFailed``, ``RequestTimedOut``, or
            ``MalformedResponse`` for a 2xx without JSON and a truncated response.
        """
        seconds = self._timeout if timeout is None else timeout
        request = Request(method, pathOf(path, query), self._clock, self._stageAt, seconds, **options)
        return request.inTime(self.send(request))

    async def send(self, request: Request) -> Response:
        """Send a request to one server after the other, without a deadline."""
        request.stage = self._stageAt
        # A response that is held back shows too late whether a server works again.
        order = self._servers.order(mayTry=request.isRepeatable and request.wait is None)
        # After a wait for events there is no time left for another server to wait.
        isFinal = not request.isRepeatable or request.wait is not None
        race: Race[Response] | None = Race(self._clock) if len(order) > 1 and not isFinal else None
        refusal: Response | None = None
        problem: ServiceRegistryError | None = None
        wasSent = False
        for left, server in zip(range(len(order), 0, -1), order, strict=True):
            request.leave = partial(self._servers.failed, server)
            request.url = self._bases[server] + request.path
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
                refusal = error.response
            except TryIsLate:
                problem = self._lateInItsShare(request)
            except ConnectionFailed as error:
                problem, isUnsent = error, not error.wasSent
                error.wasSent = error.wasSent or wasSent
            except (MalformedResponse, RequestTimedOut) as error:
                problem = error
            wasSent = wasSent or not isUnsent
            self._servers.failed(server)
            if isFinal and not isUnsent:
                break
        if race is not None:
            try:
                # Late servers may still answer, until the deadline.
                return await race.rest()
            except NothingLeft:
                pass
        if refusal is not None:
            return refusal
        assert problem is not None
        raise problem

    async def _ask(self, request: Request, server: int, left: int) -> Response:
        """The response of a *server*, or :class:`_Away`. The request is sent again over a stale connection."""
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
        isForeign = status >= 300 and not self._isFault(status, headers, value)
        response = Response(status, headers, value, answer.body, request.method, url, leave)
        if isForeign:
            self._onForeign()
        if isForeign or status in _AWAY:
            raise _Away(response)
        self._servers.worked(server)
        self._wasAnswered = True
        return response

    def _attempt(self, request: Request, server: int, url: str, left: int) -> Deferred[WholeResponse]:
        base, body, wait = self._bases[server], request.body, request.wait
        sent: Deferred[Any] = self._agents[request.lane].request(
            request.method.encode("ascii"),
            url.encode("ascii"),
            self._headers(base, body is not None, request.token, request.traceparent, request.header),
            None if body is None else BytesProducer(body),
        )
        if left > 1 and (request.isTraced or (request.isRepeatable and wait is not None)):
            # No server can be asked to wait for a shorter time than the others.
            share = (wait or 0.0) + shareOf(request.deadline - (wait or 0.0) - self._clock.seconds(), left)
            late = self._lateInItsShare
            sent.addTimeout(max(0.0, share), self._clock, lambda _, timeout: Failure(late(request)))
        return sent

    def _valueOf(self, answer: WholeResponse, request: Request, url: str) -> Any:
        try:
            return json.loads(answer.body) if answer.body else None
        except (ValueError, RecursionError):
            if answer.code >= 300:
                return None
            self._onForeign()
            wrong = f"{request.method} {url} returned {answer.code}, but the body is not JSON"
            raise MalformedResponse(f"{wrong}. Check that this is the URL of {self._name}")

    def giveUp(self) -> None:
        """A caller did not wait for the server that is asked first: the next request goes to another."""
        self._servers.failed(self._servers.current)

    def _lateInItsShare(self, request: Request) -> RequestTimedOut:
        stage = stageOf(self._clock, request.url)
        why = f", {stage}. {NAME_SERVER}" if stage else ": the server hangs"
        return RequestTimedOut(f"{request.asked} timed out in its share of {request.timeout:g} s{why}")

    def _explained(self, error: Exception, request: Request) -> ServiceRegistryError:
        asked, name, why = request.asked, self._name, describeFailure(error)
        if isinstance(error, AgentClosed):
            return ClientClosed(f"{asked} failed: this client has been closed")
        if isinstance(error, (InsecureConnection, ConnectError, DNSLookupError)):
            advice = NAME_SERVER if isinstance(error, ResolvingTimedOut) else "Check that it runs, and the URL"
            reason = f": {error}" if isinstance(error, InsecureConnection) else f" ({why}). {advice}"
            unsent = ConnectionFailed(f"{asked} failed: can't connect to {name}{reason}")
            unsent.wasSent = False
            return unsent
        if isinstance(error, ResponseTooLarge):
            return MalformedResponse(f"{asked} failed: the response is too long ({error})")
        advice = ""
        if not self._wasAnswered and request.url.startswith("http:"):
            # Servers that want TLS close a connection that is not TLS, most of them without a word.
            advice = ". If the server uses TLS, its URL begins with https://"
        if isinstance(error, ResponseFailed) and not isinstance(error, ResponseNeverReceived):
            return MalformedResponse(f"{asked} failed: the response is truncated, or not HTTP ({why}){advice}")
        return ConnectionFailed(f"{asked} failed: no response from {name} ({why}){advice}")


def shareOf(left: float, serversLeft: int) -> float:
    """The part of the seconds that are *left* after which the request goes to the next of several servers."""
    return left if serversLeft == 1 else max(left / serversLeft, min(left / 2, _SHORTEST_SHARE))


def _originOf(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
