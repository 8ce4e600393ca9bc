"""JSON over HTTP to a server, or to several that are one service: URLs, headers, failover, errors."""

from __future__ import annotations

import json
import math
import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from .._version import __version__
from ..errors import UNKNOWN_OUTCOME, ConnectionFailed, MalformedResponse, RequestTimedOut, ServiceRegistryError
from ..util.deferred import cancelWith
from .agent import ResolvingTimedOut, describeFailure, stageOf
from .messages import (
    NAME_SERVER,
    BytesProducer,
    FixedHeaders,
    Lane,
    Request,
    Response,
    ResponseTooLarge,
    pathOf,
)
from .pool import AgentClosed, InsecureConnection, StaleConnection, originOf

#: Seconds that a request may take, unless it says otherwise.
TIMEOUT = 10.0

# When several servers share a timeout, the first has at least so many seconds, or half of the timeout.
_SHORTEST_SHARE = 0.25

# A pool may hold more than one stale connection. Each repetition uses one up; a new connection is never stale.
_MOST_STALE = 3

#: The header with the name and the version of this library.
USER_AGENT = {"User-Agent": f"txserviceregistry/{__version__}"}

# Seconds for which a server that failed is asked last.
_PENALTY = 10.0
# A client returns to its first server after 20 to 80 seconds. Each draws its own time, so that a server that works
# again gets its clients one after the other.
_EARLIEST_RETURN, _RETURN_SPREAD = 20.0, 60.0


class Servers:
    """
    The servers of one service, by their numbers, as one client sees them. It draws its first server and the order of
    the others, so that the clients of a server that fails spread, and stays with a server that works (*current*). After
    a while a repeatable request tries the first server again.
    """

    def __init__(self, count: int, clock: IReactorTime, random: Callable[[], float] = randomModule.random) -> None:
        self._clock = clock
        self._random = random
        left = list(range(count))
        self._ring = [left.pop(int(random() * len(left)) % len(left)) for _ in range(count)]
        self.current = self._ring[0] if count else 0
        self._shunnedUntil = [0.0] * count
        self._returnAt = math.inf

    def __len__(self) -> int:
        return len(self._ring)

    def order(self, *, mayTry: bool) -> Sequence[int]:
        """The order in which to ask; *mayTry* the first server again with a request that is repeatable."""
        if len(self._ring) == 1:
            return self._ring
        now = self._clock.seconds()
        first = self.current
        if mayTry and now >= self._returnAt:
            # Only one request tries.
            self._drawReturn()
            first = self._ring[0]
        at = self._ring.index(self.current)
        others = [number for number in self._ring[at:] + self._ring[:at] if number != first]
        # Sorting is stable.
        return [first, *sorted(others, key=lambda number: self._shunnedUntil[number] > now)]

    def worked(self, number: int) -> None:
        """There was a response."""
        self._shunnedUntil[number] = 0.0
        if self.current != number:
            self.current = number
            self._drawReturn()

    def failed(self, number: int) -> None:
        """There was no response, or the server is unavailable."""
        self._shunnedUntil[number] = self._clock.seconds() + _PENALTY
        if number == self.current:
            self.current = self.order(mayTry=False)[1 % len(self._ring)]
            self._drawReturn()

    def _drawReturn(self) -> None:
        delay = _EARLIEST_RETURN + _RETURN_SPREAD * self._random()
        self._returnAt = math.inf if self.current == self._ring[0] else self._clock.seconds() + delay


class ClientClosed(ConnectionFailed):
    """The client was closed before the request was done."""


@attrs.define
class _Away(Exception):
    """The server is unavailable."""

    response: Response


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


@attrs.define(eq=False, slots=False, repr=False)
class JSONTransport:
    """
    JSON over HTTP to one server, or to several that are one service.

    When a server is unreachable or unavailable, requests go to the next one. A request without a response is sent again
    only if it is repeatable. Each of several servers has a share of the request's time. After that the request is sent
    to the next server too, and the first response counts.

    :param agent: a :class:`~txserviceregistry.http.pool.QueueingAgent`, or an agent over one; *lanes* has others.
    :param baseUrls: the URLs before the paths, without a slash at the end.
    :param isFault: whether the status, the headers and the JSON of an error are the server's own, not a gateway's.
    :param onForeign: called after a response that is not the server's own: another program may have its address now.
    """

    _agent: IAgent
    clock: IReactorTime
    _baseUrls: Sequence[str]
    _lanes: Mapping[Lane, IAgent] = MappingProxyType({})
    _timeout: float = TIMEOUT
    _name: str = "the registry"
    _random: Callable[[], float] = randomModule.random
    _isFault: Callable[[int, Headers, object], bool] = lambda status, headers, value: True
    _onForeign: Callable[[], object] = lambda: None

    def __attrs_post_init__(self) -> None:
        self._agents = [self._lanes.get(lane, self._agent) for lane in Lane]
        self.servers = Servers(len(self._baseUrls), self.clock, self._random)
        self._wasAnswered = False
        self._headers = lru_cache(maxsize=16)(_headers)

    @property
    def baseUrl(self) -> str:
        """The URL of the server that is asked first."""
        return self._baseUrls[self.servers.current]

    @property
    def stage(self) -> str:
        """The stage of a request to that server, for error messages."""
        return self._stageAt(self.baseUrl)

    def _stageAt(self, url: str) -> str:
        return stageOf(self.clock, url) or f"waiting for {self._name}"

    def isServer(self, url: str) -> bool:
        """Whether one of the servers has this URL's scheme, host and port."""
        return any(originOf(base) == originOf(url) for base in self._baseUrls)

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
        Send a request. *path*, which is encoded, is below the base URL; *options* are of the ``Request``. Fires with
        the ``Response``, of any status. Fails with ``ConnectionFailed``, ``RequestTimedOut``, or ``MalformedResponse``.
        """
        seconds = self._timeout if timeout is None else timeout
        request = Request(method, pathOf(path, query), self.clock, self._stageAt, seconds, **options)
        return request.inTime(self.send(request))

    async def send(self, request: Request) -> Response:
        """Send a request to one server after the other, without a deadline."""
        request.stage = self._stageAt
        # A response that is held back shows too late whether a server works again.
        order = self.servers.order(mayTry=request.isRepeatable and request.wait is None)
        if len(order) > 1:
            return await _Tries(self, request, order).result
        try:
            return await self.ask(request, order[0])
        except _Away as away:
            return away.response

    async def ask(self, request: Request, server: int) -> Response:
        """The response of a *server*, or :class:`_Away`. The request is sent again over a stale connection."""
        base, body = self._baseUrls[server], request.body
        request.leave = leave = partial(self.servers.failed, server)
        request.url = url = base + request.path
        agent, producer = self._agents[request.lane], None if body is None else BytesProducer(body)
        headers = self._headers(base, body is not None, request.token, request.traceparent, request.header)
        for attempt in range(1, _MOST_STALE + 1):
            try:
                sent: Any = agent.request(request.method.encode("ascii"), url.encode("ascii"), headers, producer)
                answer = await sent
                break
            except (CancelledError, ServiceRegistryError):
                raise
            except Exception as error:
                if not isinstance(error, StaleConnection) or not request.isRepeatable or attempt == _MOST_STALE:
                    raise self._explained(error, request) from error
        status, headers = answer.code, answer.headers
        try:
            value = json.loads(answer.body) if answer.body else None
        except (ValueError, RecursionError):
            value = None
            if status < 300:
                self._onForeign()
                wrong = f"{request.method} {url} returned {status}, but the body is not JSON"
                raise MalformedResponse(f"{wrong}. Check that this is the URL of {self._name}") from None
        isForeign = status >= 300 and not self._isFault(status, headers, value)
        response = Response(status, headers, value, answer.body, request.method, url, leave)
        if isForeign:
            self._onForeign()
        if isForeign or status in (500, 502, 503, 504):
            raise _Away(response)
        self.servers.worked(server)
        self._wasAnswered = True
        return response

    def lateInItsShare(self, request: Request) -> RequestTimedOut:
        stage = stageOf(self.clock, request.url)
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
        # Servers that expect TLS close a connection that is not TLS, most of them without a response.
        mayBeTLS = not self._wasAnswered and request.url.startswith("http:")
        advice = ". If the server uses TLS, its URL begins with https://" if mayBeTLS else ""
        if isinstance(error, ResponseFailed) and not isinstance(error, ResponseNeverReceived):
            return MalformedResponse(f"{asked} failed: the response is truncated, or not HTTP ({why}){advice}")
        return ConnectionFailed(f"{asked} failed: no response from {name} ({why}){advice}")


class _Tries:
    """
    The tries of one request at one server after the other; *result* fires with the first response. One that is late in
    its share of the time runs on beside the next: to cancel it would close its connection.
    """

    def __init__(self, transport: JSONTransport, request: Request, order: Sequence[int]) -> None:
        self.result: Deferred[Response] = Deferred(lambda _: self._end())
        self._transport = transport
        self._request = request
        self._order = list(order)
        self._running: list[Deferred[Response]] = []
        self._wasSent = False
        self._refusal: Response | None = None
        self._problem: BaseException | None = None
        # After a wait for events there is no time left for another server to wait.
        self._isFinal = not request.isRepeatable or request.wait is not None
        self._next()

    def _next(self) -> None:
        transport, request, left = self._transport, self._request, len(self._order)
        server = self._order.pop(0)
        trying = Deferred.fromCoroutine(transport.ask(request, server))
        self._running.append(trying)
        if left > 1 and not trying.called:
            # No server can be asked to wait for a shorter time than the others.
            wait = request.wait or 0.0
            seconds = request.deadline - wait - transport.clock.seconds()
            share = max(0.0, wait + max(seconds / left, min(seconds / 2, _SHORTEST_SHARE)))
            if not self._isFinal:
                cancelWith(transport.clock.callLater(share, self._late, server), trying)
            elif request.isTraced or request.isRepeatable:
                late = transport.lateInItsShare
                trying.addTimeout(share, transport.clock, lambda _, timeout: Failure(late(request)))
        arguments = (trying, server)
        trying.addCallbacks(self._succeeded, self._failed, callbackArgs=arguments, errbackArgs=arguments)

    def _late(self, server: int) -> None:
        self._problem, self._wasSent = self._transport.lateInItsShare(self._request), True
        self._transport.servers.failed(server)
        self._next()

    def _succeeded(self, response: Response, trying: Deferred[Response], server: int) -> None:
        # One that was cancelled may still succeed.
        if trying in self._running:
            self._running.remove(trying)
            self._end()
            self.result.callback(response)

    def _failed(self, failure: Failure, trying: Deferred[Response], server: int) -> None:
        if trying not in self._running:
            return
        isLast = trying is self._running[-1]
        self._running.remove(trying)
        error, isUnsent = failure.value, False
        if isinstance(error, _Away):
            isUnsent = error.response.status == 429
            self._refusal = self._refusal if isUnsent and self._wasSent else error.response
        else:
            self._problem = error
            if isinstance(error, ClientClosed) or not isinstance(error, UNKNOWN_OUTCOME):
                self._order.clear()
            elif isinstance(error, ConnectionFailed):
                isUnsent = not error.wasSent
                error.wasSent = error.wasSent or self._wasSent
        self._wasSent = self._wasSent or not isUnsent
        self._transport.servers.failed(server)
        if self._order and isLast and (isUnsent or not self._isFinal):
            self._next()
        elif not self._running and self._refusal is not None and not (self._wasSent and self._refusal.status == 429):
            self.result.callback(self._refusal)
        elif not self._running:
            self.result.errback(self._problem)

    def _end(self) -> None:
        running, self._running = self._running, []
        for trying in running:
            trying.cancel()
