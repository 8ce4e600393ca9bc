"""The registry's API: a tenant and a token in each request, extensions, faults, lists page by page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from ..errors import (
    ConnectionFailed,
    ForeignResponse,
    InvalidSettings,
    LockHeld,
    MalformedResponse,
    NotSupported,
    OutcomeUnknown,
    PreconditionFailed,
    RateLimited,
    ServerError,
    ServiceRegistryError,
    apiErrorFor,
    faultIn,
    isUnknown,
)
from ..http.jsontransport import TIMEOUT, USER_AGENT, ClientClosed, JSONTransport
from ..http.messages import NO_REGISTRY, FixedHeaders, Request, Response, pathOf, readWhole, segment
from ..util.deferred import Waiters, cancelWith, returnsDeferred
from ..util.fields import parseRetryAfter, redacted, validTraceparent
from ..util.logs import Logger, Outage
from .auth import KeystoneAuthenticator, Session, refusesToken
from .shapes import readHolder

_T = TypeVar("_T")

# Extensions of the API.
EVENTS_WAIT = "events-wait"
EVENT_STREAM = "event-stream"
EVENT_TYPES = "event-types"
ETAG = "etag"
LOCKS = "locks"
SERVICE_STATE = "service-state"
HEARTBEATS = "heartbeats"

_EXTENSIONS = b"X-Service-Registry-Extensions"
_EVENT_STREAM = "text/event-stream"
_CLOSED = "This client has been closed"


@attrs.define(eq=False, repr=False, slots=False)
class Transport:
    """The registry's API: paths below the tenant's URL, and faults as exceptions."""

    _servers: Callable[[Sequence[str]], JSONTransport]
    _clock: IReactorTime
    _authenticator: KeystoneAuthenticator
    # The base URLs, without the tenant.
    _basesFor: Callable[[Session], Sequence[str]]
    # Sends the requests of stream().
    _streaming: IAgent
    #: Seconds that a request may take by default.
    timeout: float = TIMEOUT
    _traceparent: Callable[[], str | None] | None = None
    #: The extensions of the API that the registry has, by its last response.
    extensions: frozenset[str] = attrs.field(default=frozenset(), init=False)
    isClosed: bool = attrs.field(default=False, init=False)
    # Known after the first authentication.
    _tenant: str = attrs.field(default="", init=False)
    _pauses: Waiters[None] = attrs.field(factory=Waiters, init=False)

    def __attrs_post_init__(self) -> None:
        self._json = self._servers(())
        failed = "The function traceparent failed: requests are sent without the header"
        self._tracing = Outage(Logger(), self._clock, failed)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Deferred[Response]:
        """
        Send a :class:`~txserviceregistry.http.messages.Request` with these *options*. The *path* is encoded, and below
        the tenant's URL. Fires with a 2xx; fails with a ``ServiceRegistryError``, or ``ValueError`` for an argument.
        """
        seconds = self.timeout if timeout is None else timeout
        try:
            request = Request(
                method, pathOf(path, query), self._clock, self._authenticator.stage, seconds, body=body, **options
            )
        except ValueError:
            return fail()
        if self._traceparent is not None:
            try:
                request.traceparent = validTraceparent(self._traceparent()) or ""
            except BaseException:
                # It is the application's. Heartbeats must not depend on it.
                self._tracing.failed(Failure())
            else:
                self._tracing.succeeded()
        return request.inTime(self._send(request, body))

    async def require(self, extension: str) -> None:
        """Raise ``NotSupported`` unless the registry has an extension; ask it if no response has named it so far."""
        if extension not in self.extensions:
            await self.request("GET", "/limits")
        if extension not in self.extensions:
            raise NotSupported(extension)

    async def adapted(
        self, names: Collection[str], send: Callable[[float], Awaitable[_T]], timeout: float | None = None
    ) -> _T:
        """Send a request, and again if its response is the first to name an extension that its result depends on."""
        known, seconds = self.extensions, self.timeout if timeout is None else timeout
        began = self._clock.seconds()
        result = await send(seconds)
        if not (self.extensions - known).intersection(names):
            return result
        return await send(max(0.0, began + seconds - self._clock.seconds()))

    async def write(self, method: str, path: str, condition: tuple[str, str], body: object = None) -> Response:
        """Send a write with a condition, again if its outcome is unknown; ``OutcomeUnknown`` if the first may count."""
        await self.require(ETAG)
        name, value = condition
        options: Any = {"body": body, "header": (name.encode("ascii"), value.encode("ascii"))}
        end = self._clock.seconds() + self.timeout
        try:
            response = await self.request(method, path, repeatable=False, isTraced=True, **options)
        except ServiceRegistryError as lost:
            left = end - self._clock.seconds()
            if not isUnknown(lost) or left <= 0:
                raise
            try:
                response = await self.request(method, path, timeout=left, **options)
            except PreconditionFailed as error:
                raise OutcomeUnknown(error.etag) from lost
            except (ConnectionFailed, ForeignResponse) as error:
                error.wasSent = True
                raise
        if ETAG not in self.extensions:
            # Another server behind the same URL, which ignored the condition.
            raise NotSupported(ETAG)
        return response

    async def _send(self, request: Request, body: object) -> Response:
        for isRetry in (False, True):
            session = await self._authenticator.session()
            request.token = session.token
            if self._tenant != session.tenantId:
                self._adopt(session)
            response = await self._json.send(request)
            if response.status != 401 or isRetry:
                break
            if not refusesToken(response.headers, response.json):
                self._authenticator.suspect(session.token)
                break
            self._authenticator.invalidate(session.token)
            request.stage, request.leave = self._authenticator.stage, lambda: None
        named = response.headers.getRawHeaders(_EXTENSIONS)
        if named is not None:
            self.extensions = frozenset(filter(None, re.split(r"[\s,]+", named[0].decode("utf-8", "replace"))))
        elif response.status < 300 or faultIn(response.json, response.status) is not None:
            # Any other error may be a load balancer's.
            self.extensions = frozenset()
        if response.status >= 300:
            raise faultOf(response, body)
        return response

    @returnsDeferred
    async def stream(self, path: str, query: Mapping[str, object], headers: Mapping[str, str]) -> IResponse:
        """Open an event stream at the server that worked last. The response's body was not read."""
        if self.isClosed:
            raise ClientClosed(_CLOSED)
        session = await self._authenticator.session()
        url = self.baseUrl + pathOf(path, query)
        fields = {"Host": urlsplit(url).netloc, **USER_AGENT, "Accept": _EVENT_STREAM, "X-Auth-Token": session.token}
        raw = {name.encode("ascii"): [value.encode("utf-8")] for name, value in {**fields, **headers}.items()}
        response = await self._streaming.request(b"GET", url.encode("ascii"), FixedHeaders(raw))
        type = (response.headers.getRawHeaders(b"Content-Type") or [b""])[0].partition(b";")[0].strip().lower()
        if response.code == 200 and type == _EVENT_STREAM.encode("ascii"):
            return response
        await readWhole(response, getattr(response, "abort", None))
        if response.code == 401:
            # The next request finds out whose response that was.
            self._authenticator.suspect(session.token)
        raise ConnectionFailed(f"GET {url} returned {response.code}, and not an event stream")

    def _adopt(self, session: Session) -> None:
        try:
            bases = [f"{base}/{segment(session.tenantId)}" for base in self._basesFor(session)]
        except InvalidSettings:
            # The next authentication may bring a catalog that names a registry.
            self._authenticator.invalidate(session.token)
            raise
        self._tenant, self._json = session.tenantId, self._servers(bases)

    @property
    def servers(self) -> int:
        """The number of the registry's URLs; 0 before the first session."""
        return len(self._json.servers)

    def isServer(self, url: str) -> bool:
        """Whether a server of the registry has this URL's scheme, host and port."""
        return self._json.isServer(url)

    @property
    def baseUrl(self) -> str:
        """The tenant's URL that worked last; empty before the first session."""
        return self._json.baseUrl if self._tenant else ""

    def pause(self, seconds: float) -> Deferred[None]:
        """Wait. Fails with :class:`ClientClosed` when this transport is closed before."""
        if self.isClosed:
            return fail(ClientClosed(_CLOSED))
        pause = self._pauses.wait()
        return cancelWith(self._clock.callLater(seconds, self._pauses.fire, None, [pause]), pause)

    def close(self) -> None:
        """End the pauses. The requests end with their agent."""
        self.isClosed = True
        self._pauses.fire(Failure(ClientClosed(_CLOSED)))


def faultOf(response: Response, sent: object = None) -> Exception:
    """The exception for a response that is not a success. Heartbeat tokens in the body that was *sent* are redacted."""
    if response.status < 400:
        advice = response.redirection("RAXSR_API_URL ([api] url)") or NO_REGISTRY
        return MalformedResponse(f"{response.method} {response.url} returned {response.status}. {advice}")
    fault = faultIn(response.json, response.status)
    if fault is None and response.status < 500:
        return ForeignResponse(response.status, method=response.method, url=response.url, doubt=response.doubt)
    bodies = [sent, *sent.get("heartbeats", ())] if isinstance(sent, dict) else []
    secrets = [token for body in bodies if isinstance(body, dict) and isinstance(token := body.get("token"), str)]
    values = ((fault or {}).get(name) for name in ("type", "message", "details", "txnId"))
    type, message, details, txnId = (redacted(each, secrets) if isinstance(each, str) else "" for each in values)
    txnId = txnId or response.header("X-Response-Id") or ""
    hasNoPage = message.startswith("The page cannot be found")
    doubt = response.doubt if not type else "Check the registry's URL, which ends in /v1.0" if hasNoPage else ""
    kind = apiErrorFor(response.status, type)
    error = kind(response.status, type, message, details, txnId, method=response.method, url=response.url, doubt=doubt)
    if isinstance(error, LockHeld):
        error.holder, error.fence, error.secondsLeft = readHolder((fault or {}).get("lock"))
    if isinstance(error, (RateLimited, ServerError)):
        error.retryAfter = parseRetryAfter(response.header("Retry-After"))
    if isinstance(error, PreconditionFailed):
        error.etag = etagOf(response)
    return error


def etagOf(response: Response) -> str | None:
    """The tag of a value, in quotes, without the ``W/`` of proxies that compress."""
    etag = response.header("ETag")
    return None if etag is None else etag.removeprefix("W/")


def isRegistryFault(status: int, headers: Headers, value: object) -> bool:
    """Whether an error is the registry's own, and not a gateway's."""
    return faultIn(value, status) is not None or (status == 401 and refusesToken(headers, value))


class APIGroup:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def _get(self, path: str, reader: Callable[[Any], _T], **options: Any) -> _T:
        response = await self._transport.request("GET", path, **options)
        return response.read(reader)

    async def _pages(
        self,
        path: str,
        reader: Callable[[Any], Any],
        *,
        marker: str | None = None,
        names: Collection[str] = (),
        further: Callable[[], Mapping[str, object]] = dict,
        **query: object,
    ) -> AsyncIterator[Any]:
        """The values from *marker* on. *further* returns more parameters, which depend on the extensions *names*."""
        seen = {marker}
        while True:

            def ask(timeout: float, parameters: Mapping[str, object] = {**query, "marker": marker}) -> Awaitable[Any]:
                return self._get(path, reader, query={**parameters, **further()}, timeout=timeout)

            page = await self._transport.adapted(names, ask)
            for value in page["values"]:
                yield value
            marker = page["metadata"]["next_marker"]
            if marker is None:
                return
            if marker in seen:
                url = self._transport.baseUrl + path
                raise MalformedResponse(f"GET {url} returned an earlier page as its next page")
            seen.add(marker)
