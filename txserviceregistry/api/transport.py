"""
The registry's API as paths: a tenant in the URLs, extensions, faults for errors, lists page by page.

How a request gets there and back is :mod:`~txserviceregistry.http.jsontransport`'s business; what it means, that of the
API classes above.
"""

from __future__ import annotations

import random as randomModule
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from ..errors import APIError, ForeignResponse, InvalidSettings, MalformedResponse, RateLimited, apiErrorFor
from ..http.jsontransport import TIMEOUT, ClientClosed, JSONTransport, PendingRequest, Response, WhenLate, segment
from ..util.faults import faultIn
from ..util.parsing import parseRetryAfter
from ..util.redaction import redacted

if TYPE_CHECKING:
    from .auth import IAuthenticator, Session

#: The extension with which the registry answers a query of the feed as soon as there is something new.
EVENTS_WAIT = "events-wait"
#: The extension with which the registry takes many heartbeats in one request.
HEARTBEATS = "heartbeats"
# What a registry says of a path that it does not know at all, and not of a service that is not there.
_NO_PAGE = "The page cannot be found"
_EXTENSIONS = b"X-Service-Registry-Extensions"


class Transport:
    """
    The registry's API: paths below the tenant's URL, and faults as exceptions.

    :param agent: does the requests and authenticates them.
    :param clock: for the deadlines.
    :param authenticator: knows the tenant.
    :param basesFor: the base URLs, without the tenant, for a session.
    :param timeout: seconds that a request may take, unless it says otherwise.
    :param waitingAgent: does the requests that the registry is asked to hold back; the *agent* if not given.
    :param random: gives numbers from 0 to 1; draws the server to begin with.
    :ivar timeout: seconds that a request may take, unless it says otherwise.
    :ivar extensions: the extensions of the API that the registry has, by its last answer.
    :ivar isClosed: whether :meth:`close` was called.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        authenticator: IAuthenticator,
        basesFor: Callable[[Session], Sequence[str]],
        *,
        timeout: float = TIMEOUT,
        waitingAgent: IAgent | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        self.extensions: frozenset[str] = frozenset()
        self.isClosed = False
        self._agent = agent
        self._waitingAgent = waitingAgent
        self._clock = clock
        self._authenticator = authenticator
        self._basesFor = basesFor
        self.timeout = timeout
        self._random = random
        self._session: Session | None = None
        # Before the first session the tenant is not known: this one prepares requests, and sends none.
        self._json = JSONTransport(agent, clock, (), timeout=timeout)
        self._pauses: set[Deferred[None]] = set()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        timeout: float | None = None,
        repeatable: bool | None = None,
        wait: float | None = None,
        isTraced: bool = False,
        whenLate: WhenLate | None = None,
    ) -> Deferred[Response]:
        """
        Ask the registry.

        :param method: the HTTP method.
        :param path: below the tenant's URL, encoded, beginning with a slash.
        :param query: the query's parameters; those that are ``None`` are left out.
        :param body: what to send as JSON; ``None`` for no body.
        :param timeout: seconds for all of it: queue, authentication, connecting, headers and body.
        :param repeatable: whether the request may be sent again when it is unknown whether it had its effect;
            by default a GET, PUT or DELETE may.
        :param wait: seconds for which the registry is asked to hold its answer back; they are added to the *timeout*.
            Such a request has a queue of its own.
        :param isTraced: whether the caller finds out what came of a request that may not be repeated. Then the first of
            several servers has its share of the *timeout*, and no more.
        :param whenLate: called when the *timeout* is over, with what the request would fail with. The request runs on
            for as many seconds as it gives, and fails only then.
        :return: fires with the :class:`Response`, a 2xx. Fails with :class:`~txserviceregistry.errors.APIError` or a
            subclass for a fault of the API or any 5xx, and with ``ConnectionFailed``, ``RequestTimedOut``,
            ``MalformedResponse`` (``ForeignResponse`` for any other status) or ``AuthenticationFailed``, and with
            ``ValueError`` if *timeout* or *wait* is not a number from 0 on, or *body* can't be JSON.
        """
        try:
            pending = self._json.pending(
                method,
                path,
                query=query,
                body=body,
                timeout=timeout,
                repeatable=repeatable,
                wait=wait,
                isTraced=isTraced,
                whenLate=whenLate,
            )
        except ValueError:
            return fail()
        return self._json.inTime(pending, self._send(pending, body))

    async def _send(self, pending: PendingRequest, body: object) -> Response:
        pending.stage = self._authStage
        session = await self._authenticator.session()
        if session is not self._session:
            self._adopt(session)
        response = await self._json.send(pending)
        self._learn(response)
        if response.status >= 300:
            raise faultOf(response, body, pending.path)
        return response

    def _authStage(self) -> str:
        # An authenticator that was given from outside may not tell.
        return getattr(self._authenticator, "stage", "waiting for the Auth API")

    def _learn(self, response: Response) -> None:
        named = response.headers.getRawHeaders(_EXTENSIONS)
        if named is not None:
            self.extensions = _namesIn(named[0])
        elif response.status < 300 or faultIn(response.json, response.status) is not None:
            # Any other error may be a balancer's, which says nothing about the registry behind it.
            self.extensions = frozenset()

    def _adopt(self, session: Session) -> None:
        if self._session is None or session.tenantId != self._session.tenantId:
            try:
                bases = [f"{base}/{segment(session.tenantId)}" for base in self._basesFor(session)]
            except InvalidSettings:
                # The next authentication may bring a catalog that names a registry.
                self._authenticator.invalidate(session.token)
                raise
            self._json = JSONTransport(
                self._agent,
                self._clock,
                bases,
                timeout=self.timeout,
                waitingAgent=self._waitingAgent,
                random=self._random,
                isFault=_isFault,
            )
        self._session = session

    @property
    def servers(self) -> int:
        """How many servers the registry has; 0 before the first session."""
        return self._json.servers

    def isServer(self, url: str) -> bool:
        """Whether a server of the registry has this URL's scheme, host and port; none has before the first session."""
        return self._json.isServer(url)

    @property
    def baseUrl(self) -> str:
        """The tenant's URL that worked last; after a first answer."""
        return self._json.baseUrl

    def pause(self, seconds: float) -> Deferred[None]:
        """
        Wait, but no longer than this transport is open.

        :return: fires after so many *seconds*; fails with :class:`ClientClosed`.
        """
        pause: Deferred[None] = Deferred()
        self._pauses.add(pause)
        call = self._clock.callLater(seconds, pause.callback, None)

        def over(result: object) -> Any:
            self._pauses.discard(pause)
            if call.active():
                call.cancel()
            return result

        return pause.addBoth(over)

    def close(self) -> None:
        """End the pauses. The requests end with their agent."""
        self.isClosed = True
        for pause in list(self._pauses):
            pause.errback(ClientClosed("This client has been closed"))


@lru_cache(maxsize=8)
def _namesIn(header: bytes) -> frozenset[str]:
    """The same few headers come all the time."""
    return frozenset(name for name in re.split(r"[\s,]+", header.decode("utf-8", "replace")) if name)


def _tokensIn(sent: object) -> list[str]:
    """The heartbeat tokens in a request's body."""
    bodies = [sent, *sent.get("heartbeats", ())] if isinstance(sent, dict) else []
    tokens = (body.get("token") for body in bodies if isinstance(body, dict))
    return [token for token in tokens if isinstance(token, str) and token]


def faultOf(response: Response, sent: object = None, path: str = "") -> Exception:
    """
    The exception for a response that is not a success: an ``APIError`` for a fault of the API and any 5xx.

    :param sent: the request's body, whose tokens must not come back in a text.
    :param path: the part of the response's URL that is below the tenant's.
    """
    if response.status < 400:
        advice = response.redirection("RAXSR_API_URL ([api] url)") or "No registry does that: check the URL"
        return MalformedResponse(f"{response.method} {response.url} was answered with {response.status}. {advice}")
    fault = faultIn(response.json, response.status)
    if fault is None and response.status < 500:
        return ForeignResponse(response.status, method=response.method, url=response.url, doubt=response.doubt)
    secrets = _tokensIn(sent)

    def text(name: str) -> str:
        value = None if fault is None else fault.get(name)
        return redacted(value, secrets) if isinstance(value, str) else ""

    kind = apiErrorFor(response.status, text("type"))
    error: APIError = kind(
        response.status,
        text("type"),
        text("message"),
        text("details"),
        text("txnId") or response.header("X-Response-Id") or "",
        method=response.method,
        url=response.url,
        doubt=_doubt(response, path, text("type"), text("message")),
    )
    if isinstance(error, RateLimited):
        error.retryAfter = parseRetryAfter(response.header("Retry-After"))
    return error


def _isFault(response: Response) -> bool:
    return faultIn(response.json, response.status) is not None


def _doubt(response: Response, path: str, type: str, message: str) -> str:
    """What may be wrong with the URL of an answer that is no success."""
    if not type:
        return response.doubt
    base = response.url.removesuffix(path).rpartition("/")[0]
    if response.status == 404 and message.startswith(_NO_PAGE) and not base.endswith("/v1.0"):
        return "The URL of a registry ends in /v1.0 as a rule, and this one does not"
    return ""


async def pages(
    transport: Transport,
    path: str,
    reader: Callable[[Any], Any],
    query: Mapping[str, object] | None = None,
    *,
    marker: str | None = None,
) -> AsyncIterator[Any]:
    """
    The values of a collection, page by page as they are asked for.

    :param path: the collection's.
    :param reader: validates a page: a function of :mod:`~txserviceregistry.api.shapes`.
    :param query: what belongs to each page's query.
    :param marker: where to begin.
    :raises MalformedResponse: if a page has another shape than it should, or the pages lead in a circle.
    """
    # A circle comes by one page again and again. Remembering each 2^n-th finds it, however long it is.
    passed, count = marker, 0
    while True:
        response = await transport.request("GET", path, query={**(query or {}), "marker": marker})
        page = response.read(reader)
        for value in page["values"]:
            yield value
        marker = page["metadata"]["next_marker"]
        if marker is None:
            return
        if marker == passed:
            raise MalformedResponse(f"GET {response.url} names a page before it as its next page")
        count += 1
        if count & (count - 1) == 0:
            passed = marker
