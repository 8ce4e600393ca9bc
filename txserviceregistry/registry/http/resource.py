"""
The API as a resource of twisted.web: what requests ask for goes to the registry's rules and to identity, what these
answer goes back as JSON, and what they refuse as faults.

How requests and answers are framed is in :mod:`txserviceregistry.registry.http.messages`, how connections are served in
:mod:`txserviceregistry.registry.http.server`, which path means what in :mod:`txserviceregistry.registry.http.routes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ...util.logs import Logger
from ..core import Registry
from ..faults import Fault, internalError, pageNotFound, systemFailure, unauthorized
from ..identity.apikeys import Overloaded
from ..identity.identity import Identity, InvalidCredentials, InvalidToken, isTenant
from ..limits import RateLimiter, ResourceLimits
from ..model import Page
from ..stores.interfaces import StoreUnavailable
from . import routes, validation
from .keystone import access, credentials
from .messages import Answer, baseUrl, checkSize, faultAnswer, faultBody, inJSON, parseBody, send, whenGone
from .requestlog import GONE, WAITING, RequestLog, RequestRecord
from .server import inTurn, originOf, recognized
from .statuspages import NO_PAGES, Pages

_T = TypeVar("_T")
_Parameters: TypeAlias = tuple[tuple[str, str], ...]

# In bytes; clients need no longer ones, but for some with markers.
_SHORT_QUERY = 512

# The token of a request, wherever it stands in what has come; and how a request begins that brings credentials.
_TOKEN = re.compile(rb"\r\nX-Auth-Token:[ \t]*([^\s]{1,200})[ \t]*\r\n", re.IGNORECASE)
_LOGIN = b"POST " + routes.AUTH.encode()

_API = routes.API
_AUTH = routes.AUTH
# What is answered from memory alone.
_HEARTBEATS = frozenset({"heartbeat", "heartbeats"})
# What the rate limit counts.
_COUNTED = frozenset({b"GET", b"HEAD"})


@attrs.frozen
class _Call:
    """A request that has passed authentication and routing, with what its handler may want of it."""

    record: RequestRecord
    request: Request
    name: str
    tenant: str
    argument: str
    body: dict[str, Any]
    used: int
    queryText: bytes
    parameters: _Parameters

    def query(self, name: str) -> str | None:
        """See :func:`_first`."""
        return _first(self.name, self.parameters, name)

    def url(self, path: str) -> str:
        """The absolute URL of what is at *path* below the tenant; no id or key holds what has to be an escape there."""
        return f"{baseUrl(self.request)}{_API}/{self.tenant}{path}"


def _keepsShort(read: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """
    Let what is read from a query be remembered: of those who come again and again, most ask with the same words. A long
    one is read each time, because thousands of parameters, which anybody may send, would fill the memory.
    """
    kept = lru_cache(maxsize=128)(read)

    def look(query: bytes) -> _T:
        return kept(query) if len(query) <= _SHORT_QUERY else read(query)

    return look


@_keepsShort
def _parametersIn(query: bytes) -> _Parameters:
    # Bytes that are not UTF-8 become characters that no rule lets pass.
    text = query.decode("latin-1")
    if "%" in text or "+" in text:
        return tuple(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))
    parts = [part.partition("=") for part in text.split("&") if part]
    return tuple([(name, value) for name, _, value in parts])


def _first(route: str, parameters: _Parameters, name: str) -> str | None:
    """The first value of a query parameter, which has to be in the table of queries."""
    assert name in validation.QUERIES[route], name
    for key, value in parameters:
        if key == name:
            return value
    return None


@attrs.frozen
class _FeedQuery:
    """What is asked of the feed; *since* is the marker."""

    limit: int
    since: str | None
    type: str | None
    seconds: int | None


@_keepsShort
def _feedQuery(query: bytes) -> _FeedQuery:
    parameters = _parametersIn(query)
    marker, type, wait = (_first("listEvents", parameters, name) for name in ("marker", "type", "wait"))
    return _FeedQuery(
        _limit(parameters),
        None if marker is None else validation.eventMarker(marker),
        validation.eventType(type) if type else None,
        None if wait is None else validation.wait(wait),
    )


class ApiResource(Resource):
    """
    The whole API: identity at ``/v2.0``, the registry at ``/v1.0``; and the pages beside it. It answers every path
    itself.

    :param registry: the rules; has been started.
    :param identity: knows users and tokens.
    :param rateLimiter: counts GETs.
    :param limits: what ``GET /limits`` says of resources; the same that the *registry* goes by.
    :param exchanges: notices every request and its answer.
    :ivar pages: what is beside the API (:mod:`txserviceregistry.registry.http.statuspages`).
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        registry: Registry,
        identity: Identity,
        *,
        rateLimiter: RateLimiter,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008 (it is immutable)
        pages: Pages = NO_PAGES,
        requestLog: RequestLog | None = None,
    ) -> None:
        Resource.__init__(self)
        self._registry = registry
        self._identity = identity
        self._rateLimiter = rateLimiter
        self._limits = limits
        self.pages = pages
        self._requestLog = requestLog or RequestLog()
        self._told: tuple[Page, int, Answer] | None = None

    def vouchesFor(self, data: bytes) -> bool:
        """
        Whether the beginning of a request, as it came, shows a token or credentials that counted when the store was
        last asked for them.
        """
        found = _TOKEN.search(data)
        if found is not None:
            return self._identity.isFamiliar(found[1].decode("latin-1"))
        if not data.startswith(_LOGIN):
            return False
        try:
            username, key = credentials(json.loads(data.partition(b"\r\n\r\n")[2]))
        except (Fault, ValueError, RecursionError, AttributeError):
            return False
        return self._identity.remembers(username, key)

    def render(self, request: Request) -> int:
        """
        Answer a request, at once if all that it needs is in memory.

        :return: ``NOT_DONE_YET``: the answer is sent from here, now or later.
        """
        record = self._requestLog.begin(request)
        answered = Deferred.fromCoroutine(self._answer(record))
        if not answered.called:
            whenGone(request, partial(self._gone, record, answered))
            answered.addBoth(inTurn, request)
        answered.addBoth(self._finish, record)
        return NOT_DONE_YET

    def _gone(self, record: RequestRecord, answered: Deferred[Answer]) -> None:
        # What a client that has hung up had asked for is done all the same; only nobody is there to be told. That is
        # all that those want who wait.
        record.isGone = True
        if record.route == WAITING:
            answered.cancel()

    def _finish(self, outcome: Answer | Failure, record: RequestRecord) -> None:
        if record.isGone:
            self._requestLog.end(record, GONE)
            return
        try:
            if isinstance(outcome, Failure):
                outcome.raiseException()
            self._send(outcome, record)
        except Exception:
            self._log.failure("The answer to request {txnId} can't be sent", txnId=record.txnId)
            if not record.request.startedWriting:
                self._send(faultAnswer(internalError(), record.txnId), record)

    def _send(self, answer: Answer, record: RequestRecord) -> None:
        if record.headers:
            answer = Answer(answer.code, answer.body, {**answer.headers, **record.headers}, answer.text)
        send(record.request, answer, record.txnId)
        self._requestLog.end(record, answer.code)

    async def _answer(self, record: RequestRecord) -> Answer:
        txnId = record.txnId
        try:
            return await self._route(record)
        except Fault as fault:
            _forgetTraces(fault)
            return faultAnswer(fault, txnId)
        except StoreUnavailable:
            return faultAnswer(systemFailure(), txnId)
        except Overloaded:
            return faultAnswer(systemFailure("Too many authentications are under way"), txnId)
        except Exception as error:
            if record.isGone and isinstance(error, CancelledError):
                raise
            self._log.failure("Request {txnId} met an error of the registry's own", txnId=txnId)
            return faultAnswer(internalError(), txnId)

    async def _route(self, record: RequestRecord) -> Answer:
        request = record.request
        checkSize(request)
        path = routes.decodePath(request.path)
        if path.startswith(_API + "/") or path == _API:
            return await self._serve(record, path[len(_API) :])
        if path.startswith(_AUTH + "/") and routes.isTokensPath(path[len(_AUTH) :]) and request.method == b"POST":
            record.route = routes.TOKENS
            return await self._authenticate(request)
        page = self.pages.get(path)
        if page is not None and request.method in (b"GET", b"HEAD"):
            record.route = path
            return await page(request)
        raise pageNotFound()

    # -- identity

    async def _authenticate(self, request: Request) -> Answer:
        try:
            username, key = credentials(parseBody(request))
        except Fault as fault:
            return _identityFault("badRequest", fault.code, fault.message)
        try:
            token = await self._identity.authenticate(username, key, originOf(request))
        except InvalidCredentials:
            return _identityFault("unauthorized", 401, "Username or api key is invalid")
        recognized(request)
        return Answer(200, access(token, f"{baseUrl(request)}{_API}/{token.tenant}"))

    async def _tenantOf(self, request: Request) -> str:
        token = (request.requestHeaders.getRawHeaders(b"X-Auth-Token") or [b""])[0].decode("latin-1")
        if not token:
            raise unauthorized("No authentication token provided", baseUrl(request) + _AUTH)
        tenant = self._identity.knownTenant(token)
        if tenant is None:
            try:
                tenant = await self._identity.tenantOf(token)
            except InvalidToken:
                raise _refused(request)
        recognized(request)
        return tenant

    # -- the API

    async def _serve(self, record: RequestRecord, path: str) -> Answer:
        request = record.request
        body = parseBody(request)
        record.tenant = owner = await self._tenantOf(request)
        tenant, rest = routes.splitTenant(path)
        if not isTenant(tenant):
            raise pageNotFound()
        if tenant != owner:
            raise _refused(request)
        match = routes.match(request.method.decode("latin-1"), rest)
        record.route = routes.PATTERNS[match.name]
        if match.name not in _HEARTBEATS and not self._registry.hasAccount(tenant):
            # A heartbeat needs no store, and an account that has a service is there already.
            await self._registry.account(tenant)
        used = 0
        if request.method in _COUNTED:
            used = self._rateLimiter.used(tenant)
            record.headers = self._rateLimiter.headers(tenant)
            self._rateLimiter.check(tenant)
        handler: Callable[[_Call], Awaitable[Answer]] = getattr(self, "_" + match.name)
        query = request.uri.partition(b"?")[2]
        parameters = _parametersIn(query)
        return await handler(_Call(record, request, match.name, tenant, match.argument, body, used, query, parameters))

    async def _getLimits(self, call: _Call) -> Answer:
        resource = {"service": self._limits.service, "configuration_value": self._limits.configurationValue}
        return Answer(200, {"resource": resource, "rate": self._rateLimiter.usage(call.used)})

    async def _listServices(self, call: _Call) -> Answer:
        limit, marker = _limitAndMarker(call)
        tag = call.query("tag")
        if tag is not None:
            tag = validation.tag(tag)
        return _page(call, await self._registry.list(call.tenant, marker, limit, tag), limit, marker)

    async def _createService(self, call: _Call) -> Answer:
        service = validation.newService(call.body)
        token = await self._registry.create(call.tenant, service)
        return Answer(201, {"token": token}, {"Location": call.url(f"/services/{service.id}")})

    async def _getService(self, call: _Call) -> Answer:
        return Answer(200, await self._registry.get(call.tenant, validation.serviceId(call.argument)))

    async def _updateService(self, call: _Call) -> Answer:
        id = validation.serviceId(call.argument)
        await self._registry.update(call.tenant, id, validation.serviceChanges(call.body, id))
        return Answer(204, headers={"Location": call.url(f"/services/{id}")})

    async def _removeService(self, call: _Call) -> Answer:
        await self._registry.remove(call.tenant, validation.serviceId(call.argument))
        return Answer(204)

    async def _heartbeat(self, call: _Call) -> Answer:
        token = validation.heartbeatToken(call.body)
        id = validation.heartbeatId(call.argument)
        return Answer(200, {"token": await self._registry.heartbeat(call.tenant, id, token)})

    async def _heartbeats(self, call: _Call) -> Answer:
        entries = validation.heartbeats(call.body)
        beats: list[tuple[str, str]] = []
        unfit: dict[int, Fault] = {}
        for place, entry in enumerate(entries):
            try:
                beats.append(validation.heartbeatOfBatch(entry))
            except Fault as fault:
                unfit[place] = fault
        outcomes = list(await self._registry.heartbeats(call.tenant, beats))
        for place, reason in unfit.items():
            outcomes.insert(place, reason)
        values = ", ".join(
            [
                # Neither an id that a service has nor a token holds anything that JSON would write in another way.
                f'{{"id": "{entry["id"]}", "token": "{outcome}"}}'
                if isinstance(outcome, str)
                else _unbeaten(entry, outcome, call.record.txnId)
                for entry, outcome in zip(entries, outcomes, strict=True)
            ]
        )
        return Answer(200, text=f'{{"values": [{values}]}}'.encode())

    async def _listValues(self, call: _Call) -> Answer:
        limit, marker = _limitAndMarker(call, validation.configurationMarker)
        return _page(call, await self._registry.listValues(call.tenant, marker, limit, None), limit, marker)

    async def _listNamespace(self, call: _Call) -> Answer:
        limit, marker = _limitAndMarker(call, validation.configurationMarker)
        # A namespace is written as a key is. "/" is the one that all qualified keys are in.
        namespace = "/" if call.argument == "/" else validation.configurationKey(call.argument)
        return _page(call, await self._registry.listValues(call.tenant, marker, limit, namespace), limit, marker)

    async def _getValue(self, call: _Call) -> Answer:
        return Answer(200, await self._registry.getValue(call.tenant, validation.configurationKey(call.argument)))

    async def _setValue(self, call: _Call) -> Answer:
        key = validation.configurationKey(call.argument)
        await self._registry.setValue(call.tenant, key, validation.configurationValue(call.body))
        return Answer(204, headers={"Location": call.url(f"/configuration/{key}")})

    async def _removeValue(self, call: _Call) -> Answer:
        await self._registry.removeValue(call.tenant, validation.configurationKey(call.argument))
        return Answer(204)

    async def _listEvents(self, call: _Call) -> Answer:
        asked = _feedQuery(call.queryText)
        if asked.seconds is None:
            page = await self._registry.feed.list(call.tenant, asked.since, asked.limit, asked.type)
        else:
            call.record.route = WAITING
            if call.record.isGone:
                raise CancelledError()
            page = await self._registry.feed.wait(call.tenant, asked.since, asked.limit, asked.type, asked.seconds)
            # The token may have ended meanwhile, and what happened since is none of its bearer's business.
            await self._tenantOf(call.request)
            if page.nextMarker is None:
                return self._toldToAll(call, page, asked.limit)
        # The original never filled in the marker here.
        return _page(call, page, asked.limit, None)

    def _toldToAll(self, call: _Call, page: Page, limit: int) -> Answer:
        """The answer with a page that many may be waiting for: it is put into words once for all of them."""
        told = self._told
        if told is None or told[0] is not page or told[1] != limit:
            body = _page(call, page, limit, None).body or {}
            self._told = told = page, limit, Answer(200, text=inJSON(body).encode())
        return told[2]


def _forgetTraces(fault: Fault) -> None:
    """
    Let go of where a fault comes from, which nobody will ask. The way that an error takes through Deferreds leads back
    to itself, and all that a refused request was made of would wait for Python's collector.
    """
    error: BaseException | None = fault
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _unbeaten(entry: Any, fault: Fault, txnId: str) -> str:
    """What one entry of a batch that was refused is answered with, as JSON."""
    # The id is told as it was given, be it one that a service can have or not.
    id = entry.get("id") if isinstance(entry, dict) else None
    return inJSON({"id": id if isinstance(id, str) else None, "fault": faultBody(fault, txnId)})


def _refused(request: Request) -> Fault:
    return unauthorized("Invalid or expired authentication token", baseUrl(request) + _AUTH)


def _limit(parameters: _Parameters) -> int:
    return validation.limit(*[value for name, value in parameters if name == "limit"])


def _limitAndMarker(call: _Call, checked: Callable[[str], str] = validation.marker) -> tuple[int, str | None]:
    limit = _limit(call.parameters)
    marker = call.query("marker")
    return limit, None if marker is None else checked(marker)


def _page(call: _Call, page: Page, limit: int, marker: str | None) -> Answer:
    values: Sequence[object] = page.values
    href = None if page.nextMarker is None else _nextHref(call, page.nextMarker)
    metadata = {
        "count": len(values),
        "limit": limit,
        "marker": marker,
        "next_marker": page.nextMarker,
        "next_href": href,
    }
    return Answer(200, {"values": values, "metadata": metadata})


def _nextHref(call: _Call, marker: str) -> str:
    request = call.request
    query = [(name, value) for name, value in call.parameters if name != "marker"]
    query.append(("marker", marker))
    # The path as the client wrote it: what was an escape stays one.
    path = quote(request.path, safe="/%:@!$&'()*+,;=~")
    return f"{baseUrl(request)}{path}?{urlencode(query, errors='surrogateescape')}"


def _identityFault(kind: str, code: int, message: str) -> Answer:
    return Answer(code, {kind: {"code": code, "message": message}})
