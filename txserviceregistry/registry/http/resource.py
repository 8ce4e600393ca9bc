"""
The API as a resource of twisted.web: the way of a request through the checks to its handler, and of its response back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ...util.logs import Logger
from ..core import Registry
from ..faults import Fault, internalError, pageNotFound, requestTooLarge, systemFailure
from ..identity.apikeys import Overloaded
from ..identity.identity import Identity, isTenant
from ..limits import RateLimiter, ResourceLimits
from ..stores.interfaces import StoreUnavailable, UserRecord
from .admission import inTurn
from .authentication import Authenticator, invalidToken
from .call import Call
from .consolehandlers import Console
from .handlers import Handlers
from .messages import Response, closeAfterwards, faultResponse, parseBody, send
from .operations import MAXIMUM_BODY, Operation
from .requestlog import GONE, LOCK_WAITING, STREAM, WAITING, RequestLog, RequestRecord
from .routes import TOKENS, Target, bodyLimit, resolve
from .statuspages import NO_PAGES, Pages

# What the rate limit counts.
_COUNTED = frozenset({b"GET", b"HEAD"})
_NO_QUERY: tuple[Sequence[tuple[str, str]], Mapping[str, Any]] = ((), {})


class ApiResource(Resource):
    """
    All paths: the registry at ``/v1.0``, the Auth API at ``/v2.0``, and the pages beside the API.

    :param registry: the rules; has been started.
    :param identity: knows users and tokens.
    :param rateLimiter: counts GETs.
    :param limits: the same that the *registry* has.
    :ivar requestLog: logs and counts requests.
    :ivar pages: see :mod:`~txserviceregistry.registry.http.statuspages`.
    :ivar vouchesFor: see :meth:`Authenticator.vouchesFor`.
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
        self.pages = pages
        self.requestLog = requestLog or RequestLog()
        self._registry = registry
        self._rateLimiter = rateLimiter
        self._authenticator = Authenticator(identity)
        self.vouchesFor = self._authenticator.vouchesFor
        self._handlers = Handlers(registry, rateLimiter, limits)

    @property
    def console(self) -> Console | None:
        """The console, which answers requests of its own; ``None`` if there is none."""
        return self._handlers.console

    @console.setter
    def console(self, console: Console | None) -> None:
        self._handlers.console = console

    def render(self, request: Request) -> int:
        """
        Answer a request, for a plain Site.

        :return: ``NOT_DONE_YET``: the response is sent from here, now or later.
        """
        self.answer(self.requestLog.begin(request))
        return NOT_DONE_YET

    def answer(self, record: RequestRecord) -> None:
        """Answer a request, at once if all that it needs is in memory."""
        answering = Deferred.fromCoroutine(self._answer(record))
        if not answering.called:
            record.isLate = True
            record.request.notifyFinish().addErrback(lambda _: self._gone(record, answering))

    def _gone(self, record: RequestRecord, answering: Deferred[None]) -> None:
        # What the client had asked for is done all the same, unless it was only waiting.
        record.isGone = True
        if record.route in (WAITING, LOCK_WAITING, STREAM):
            answering.cancel()

    async def _answer(self, record: RequestRecord) -> None:
        txnId = record.txnId
        try:
            response = await self._outcome(record)
        except Fault as fault:
            _forgetTraces(fault)
            response = faultResponse(fault, txnId)
        except StoreUnavailable:
            response = faultResponse(systemFailure(), txnId)
        except Overloaded:
            response = faultResponse(systemFailure("Too many authentications in progress; retry later"), txnId)
        except Exception as error:
            if not (record.isGone and isinstance(error, CancelledError)):
                self._log.failure("Internal error while answering request {request}", request=record.name)
            response = faultResponse(internalError(), txnId)
        if record.isLate:
            await inTurn(record.request)
        if record.isGone:
            self.requestLog.end(record, GONE, response.code)
            return
        if record.request.startedWriting:
            # An event stream, which ends later, or has ended.
            if record.request.finished:
                self.requestLog.end(record, 200)
            else:
                record.request.notifyFinish().addCallbacks(
                    lambda _: self.requestLog.end(record, 200), lambda _: self.requestLog.end(record, GONE)
                )
            return
        if record.headers:
            response = attrs.evolve(response, headers={**response.headers, **record.headers})
        try:
            send(record.request, response, txnId)
        except Exception:
            self._log.failure("Cannot send the response to request {request}", request=record.name)
            if not record.request.startedWriting:
                response = faultResponse(internalError(), txnId)
                send(record.request, response, txnId)
        self.requestLog.end(record, response.code)

    async def _outcome(self, record: RequestRecord) -> Response:
        request = record.request
        _checkSize(request)
        target = resolve(request.method, request.path)
        record.route, record.object = target.route, target.argument
        if not target.isApi:
            if target.route == TOKENS:
                return await self._authenticator.issueToken(request)
            if self.console is not None and self.console.serves(request, target.path):
                return await self.console.answer(record, target.path)
            page = self.pages.get(target.path)
            if page is None or request.method not in _COUNTED:
                raise pageNotFound()
            record.route = target.path
            return await page(request)
        operation = target.operation
        if operation is not None and operation.isAudited:
            record.change = operation.name
        body = parseBody(request)
        user = await self._authenticator.userOf(request)
        record.user, record.tenant = user.name, user.tenant
        if target.tenant != user.tenant and (target.tenant or operation is None):
            raise invalidToken(request) if isTenant(target.tenant) else pageNotFound()
        return await self.operate(record, user, target, body, partial(self._authenticator.userOf, request))

    async def operate(
        self,
        record: RequestRecord,
        user: UserRecord,
        target: Target,
        body: Mapping[str, Any],
        authenticate: Callable[[], Awaitable[object]],
    ) -> Response:
        """
        Answer a request of the API.

        :param user: who sends it.
        :param authenticate: see :class:`Call`.
        """
        request, operation, tenant = record.request, target.operation, user.tenant
        if operation is None:
            raise pageNotFound()
        if operation.limits.needsStore and not self._registry.hasAccount(tenant):
            await self._registry.account(tenant)
        used = 0
        if request.method in _COUNTED:
            used = self._rateLimiter.used(tenant)
            record.headers = {**record.headers, **self._rateLimiter.headers(tenant)}
            self._rateLimiter.check(tenant)
        parameters, query = _queryOf(operation, request) if operation.query else _NO_QUERY
        return await operation.handler(
            self._handlers,
            Call(
                record, user, tenant, target.argument, query, parameters, body, used, authenticate, operation.body or ()
            ),
        )


def _checkSize(request: Request) -> None:
    """
    Refuse what an :class:`~txserviceregistry.registry.http.server.ApiSite` refuses while it comes in, for a request
    that was read whole (by a plain Site).

    :raises Fault: if the body is too large.
    """
    content: Any = request.content
    size: int = content.seek(0, 2)
    content.seek(0)
    if size >= MAXIMUM_BODY:
        limit = bodyLimit(request.method, request.path)
        if size >= limit:
            closeAfterwards(request)
            raise requestTooLarge(limit)


def _queryOf(operation: Operation, request: Request) -> tuple[Sequence[tuple[str, str]], Mapping[str, Any]]:
    """The query of a request as it was sent, and the values of the operation's parameters."""
    text = request.uri.partition(b"?")[2].decode("latin-1")
    if "%" in text or "+" in text:
        # Bytes that are not UTF-8 become characters that no rule lets pass.
        sent = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
    else:
        parts = [part.partition("=") for part in text.split("&") if part]
        sent = [(name, value) for name, _, value in parts]
    query = {
        parameter.name: parameter.value(*[value for name, value in sent if name == parameter.name])
        for parameter in operation.query
    }
    return sent, query


def _forgetTraces(fault: Fault) -> None:
    """
    Drop the traceback of a fault. The way of an error through Deferreds leads back to itself, so all that a refused
    request was made of would wait for Python's collector.
    """
    error: BaseException | None = fault
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
