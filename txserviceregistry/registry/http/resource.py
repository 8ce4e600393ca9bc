"""The API as a resource: the way of a request through authentication and checks to its handler, and of its response."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ...util.logs import Logger
from ..core import Registry
from ..faults import Fault, badRequest, forbidden, pageNotFound, requestTooLarge, systemFailure
from ..identity import Identity, InvalidCredentials, InvalidToken, IssuedToken, Overloaded, isTenant
from ..limits import RateLimiter, ResourceLimits
from ..stores.interfaces import StoreUnavailable, UserRecord
from .connections import inTurn, originOf, recognize
from .handlers import Handlers
from .messages import API, AUTH, CREDENTIALS, Response, baseUrl, faultResponse, parseBody, write
from .operations import TOKENS, Call, Target, resolve, sentQuery
from .pages import Pages
from .requestlog import GONE, LOCK_WAITING, STREAM, WAITING, RequestLog, RequestRecord

# The methods that the rate limit counts.
_COUNTED = frozenset({b"GET", b"HEAD"})
# The entries of the catalog: name, type, and whether it has the region. Clients of different ages look for the
# tenant in each of these four; two of them take no region.
_CATALOG = (
    ("cloudServersOpenStack", "compute", True),
    ("cloudServers", "compute", False),
    ("cloudMonitoring", "rax:monitor", False),
    ("serviceRegistry", "rax:service-registry", True),
)
_INVALID = "Username or api key is invalid"


class ApiResource(Resource):
    """All paths: the registry at ``/v1.0``, the Auth API at ``/v2.0``, and the pages beside the API."""

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        registry: Registry,
        identity: Identity,
        *,
        rateLimiter: RateLimiter,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008 (it is immutable)
        requestLog: RequestLog | None = None,
    ) -> None:
        Resource.__init__(self)
        self.pages: Pages = {}
        self.requestLog = requestLog or RequestLog()
        self._registry = registry
        self._identity = identity
        self._rateLimiter = rateLimiter
        self.handlers = Handlers(registry, rateLimiter, limits)

    def render(self, request: Request) -> int:
        """Answer a request, for a plain Site."""
        self.answer(request)
        return NOT_DONE_YET

    def answer(self, request: Request) -> None:
        """Answer a request, at once if all that it needs is in memory."""
        record = self.requestLog.begin(request)
        answering = Deferred.fromCoroutine(self._answer(record))

        def gone(_: object) -> None:
            # The client's request is carried out all the same, unless it was only waiting.
            record.isGone = True
            if record.route in (WAITING, LOCK_WAITING, STREAM):
                answering.cancel()

        if not answering.called:
            record.isLate = True
            request.notifyFinish().addErrback(gone)

    async def _answer(self, record: RequestRecord) -> None:
        response = await self._outcome(record)
        request, end = record.request, partial(self.requestLog.end, record)
        if record.isLate:
            with suppress(CancelledError):  # the client is gone
                await inTurn(request)
        if record.isGone:
            end(GONE, response.code)
        elif not request.startedWriting:
            if record.headers:
                response = attrs.evolve(response, headers={**response.headers, **record.headers})
            try:
                write(request, response, record.txnId)
            except Exception:
                self._log.failure("Cannot send the response to request {request}", request=record.name)
                response = faultResponse(Fault("internalError", "Internal Error"), record.txnId)
                write(request, response, record.txnId)
            end(response.code)
            request.finish()
        elif request.finished:
            # An event stream that has ended.
            end(200)
        else:
            request.notifyFinish().addCallbacks(lambda _: end(200), lambda _: end(GONE))

    async def _outcome(self, record: RequestRecord) -> Response:
        try:
            return await self._respond(record)
        except Fault as error:
            # Tracebacks lead back to the request, which would wait for Python's collector.
            cause: BaseException | None = error
            while cause is not None:
                cause.__traceback__ = None
                cause = cause.__context__
            return faultResponse(error, record.txnId)
        except StoreUnavailable:
            fault = systemFailure()
        except Overloaded:
            fault = systemFailure("Too many authentications in progress; retry later")
        except Exception as error:
            if not (record.isGone and isinstance(error, CancelledError)):
                self._log.failure("Internal error while answering request {request}", request=record.name)
            fault = Fault("internalError", "Internal Error")
        return faultResponse(fault, record.txnId)

    async def _respond(self, record: RequestRecord) -> Response:
        request = record.request
        target = resolve(request.method, request.path)
        target.note(record)
        content: Any = request.content
        if content.seek(0, 2) >= target.maximumBody:
            # An ApiSite refuses it while it comes in.
            request.channel.persistent = False
            raise requestTooLarge(target.maximumBody)
        if not target.isApi:
            return await self._outside(record, target)
        body = parseBody(request)
        user = await self.userOf(request)
        record.user, record.tenant = user.name, user.tenant
        if target.tenant != user.tenant and (target.tenant or target.operation is None):
            raise _invalidToken(request) if isTenant(target.tenant) else pageNotFound()
        return await self.operate(record, user, target, body, partial(self.userOf, request))

    async def _outside(self, record: RequestRecord, target: Target) -> Response:
        request, path = record.request, target.path
        if target.route == TOKENS:
            return await self._issueToken(request)
        console = self.handlers.console
        if console is not None and console.serves(request, path):
            answer: Response = await console.answer(record, path)
            return answer
        page = self.pages.get(path)
        if page is None or request.method not in _COUNTED:
            raise pageNotFound()
        record.route = path
        return await page(request)

    async def operate(
        self,
        record: RequestRecord,
        user: UserRecord,
        target: Target,
        body: Mapping[str, Any],
        authenticate: Callable[[], Awaitable[UserRecord]],
    ) -> Response:
        """Answer a request of the API that this user sends; *authenticate* is that of :class:`Call`."""
        request, operation, tenant = record.request, target.operation, user.tenant
        if operation is None:
            raise pageNotFound()
        if not self._registry.isStarted:
            raise systemFailure("This node has not joined the cluster yet")
        if operation.needsStore:
            await self._registry.account(tenant)
        if request.method in _COUNTED:
            record.headers = {**record.headers, **self._rateLimiter.headers(tenant)}
            self._rateLimiter.check(tenant)
        sent = sentQuery(request) if operation.query else []
        query = {
            parameter.name: parameter.value(*[value for name, value in sent if name == parameter.name])
            for parameter in operation.query
        }
        return await operation.handler(
            self.handlers, Call(record, user, operation, target.argument, query, body, authenticate)
        )

    # -- authentication

    async def userOf(self, request: Request) -> UserRecord:
        """The user who sends a request; raises the fault 401 or 403, or Overloaded if too many API keys wait."""
        token, basic = _shown(request)
        if basic is not None:
            if _isForeign(request):
                text = "Basic credentials are not accepted from a web page of another origin; send X-Auth-Token"
                raise forbidden(text)
            try:
                user = await self._identity.verify(*_pair(basic), originOf(request))
            except (ValueError, InvalidCredentials):
                raise _unauthorized(request, _INVALID)
        else:
            if not token:
                raise _unauthorized(request, "No authentication token provided")
            try:
                user = self._identity.knownUser(token) or await self._identity.userOf(token)
            except InvalidToken:
                raise _invalidToken(request)
        recognize(request)
        return user

    async def _issueToken(self, request: Request) -> Response:
        code, kind, message = 401, "unauthorized", _INVALID
        try:
            token = await self._identity.authenticate(*_credentials(parseBody(request)), originOf(request))
        except Fault as fault:
            code, kind, message = fault.code, "badRequest", fault.message
        except InvalidCredentials:
            pass
        else:
            recognize(request)
            return Response(200, _access(token, f"{baseUrl(request)}{API}/{token.tenant}"))
        return Response(code, {kind: {"code": code, "message": message}})

    def vouchesFor(self, request: Request) -> bool:
        """Whether a request shows a token or credentials that were valid when the store was last asked for them."""
        try:
            token, basic = _shown(request)
            if basic is not None:
                return self._identity.remembers(*_pair(basic))
            if not token and request.method == b"POST" and request.path.startswith(AUTH.encode()):
                return self._identity.remembers(*_credentials(parseBody(request)))
        except (Fault, ValueError):
            return False
        return self._identity.isFamiliar(token)


def _shown(request: Request) -> tuple[str, str | None]:
    """The token that a request shows, empty if there is none; and the value of a Basic authorization instead of one."""
    tokens = request.requestHeaders.getRawHeaders(b"X-Auth-Token")
    if tokens is not None:
        return tokens[0].decode("latin-1"), None
    given = request.requestHeaders.getRawHeaders(b"Authorization") or [b""]
    if len(given) > 1:
        raise badRequest("Several Authorization headers", "Send one Authorization header, or X-Auth-Token")
    scheme, _, value = given[0].decode("latin-1").partition(" ")
    if scheme.lower() == "basic":
        return "", value
    return value.strip() if scheme.lower() == "bearer" else "", None


def _pair(basic: str) -> tuple[str, str]:
    """The user's name and API key in the value of a Basic authorization; the ValueError means that it has none."""
    username, _, key = base64.b64decode(basic.strip(), validate=True).decode("utf-8").partition(":")
    if not username or not key:
        raise ValueError("no name, or no key")
    return username, key


def _isForeign(request: Request) -> bool:
    """Whether a page of another origin sends a request: browsers send Basic credentials to all ports of a host."""
    headers = request.requestHeaders
    sites = headers.getRawHeaders(b"Sec-Fetch-Site")
    if sites is not None:
        return not {b"same-origin", b"none"}.issuperset(sites)
    # Browsers send Sec-Fetch-Site over TLS and to this machine only, and Origin with each request that may change
    # something.
    hosts = headers.getRawHeaders(b"Host")
    return any([each.partition(b"://")[2]] != hosts for each in headers.getRawHeaders(b"Origin") or ())


def _invalidToken(request: Request) -> Fault:
    return _unauthorized(request, "Invalid or expired authentication token")


def _unauthorized(request: Request, details: str) -> Fault:
    challenges = [f'Keystone uri="{baseUrl(request)}{AUTH}"', "Bearer"]
    names = (name.lower() for name, _ in request.requestHeaders.getAllRawHeaders())
    if not any(name.startswith(b"sec-fetch-") for name in names):
        challenges.append('Basic realm="service registry", charset="UTF-8"')
    return Fault("unauthorizedError", "forbidden", details, {"WWW-Authenticate": tuple(challenges)})


def _credentials(body: Mapping[str, Any]) -> tuple[str, str]:
    """The user's name and API key in the body of a ``POST /tokens``; the fault 400 names what was expected."""

    def member(of: Mapping[str, Any], name: str, type: type[Any] = str) -> Any:
        value = of.get(name)
        if not isinstance(value, type) or value == "":
            raise badRequest(f"Expecting {name}")
        return value

    auth = member(body, "auth", dict)
    kind = next((kind for kind in CREDENTIALS if kind in auth), next(iter(CREDENTIALS)))
    given = member(auth, kind, dict)
    return member(given, "username"), member(given, CREDENTIALS[kind])


def _access(token: IssuedToken, url: str) -> dict[str, Any]:
    """The response to valid credentials; *url* is that of the tenant, without a slash at the end."""
    # The one offset and the one fraction that every old client can read.
    expires = datetime.fromtimestamp(token.expires, timezone(timedelta(hours=-6))).strftime("%Y-%m-%dT%H:%M:%S")
    endpoint = {"tenantId": token.tenant, "publicURL": url}
    catalog = [
        {"name": name, "type": type, "endpoints": [{"region": "LOCAL", **endpoint} if hasRegion else endpoint]}
        for name, type, hasRegion in _CATALOG
    ]
    tenant = {"id": token.tenant, "name": token.tenant}
    return {
        "access": {
            "token": {"id": token.id, "expires": f"{expires}.000-06:00", "tenant": tenant},
            "user": {"id": token.user, "name": token.user, "roles": []},
            "serviceCatalog": catalog,
        }
    }
