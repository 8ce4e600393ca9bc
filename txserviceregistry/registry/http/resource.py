"""
The API as a resource of twisted.web: the way of a request through the checks to its handler, and of its response back.

How requests and responses are framed is in :mod:`txserviceregistry.registry.http.messages`, how connections are served
in :mod:`txserviceregistry.registry.http.server`, which operations there are in
:mod:`txserviceregistry.registry.http.operations`.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ...util.logs import Logger
from ..core import Registry
from ..faults import Fault, internalError, pageNotFound, requestTooLarge, systemFailure
from ..identity.apikeys import Overloaded
from ..identity.identity import Identity, isTenant
from ..limits import RateLimiter, ResourceLimits
from ..stores.interfaces import StoreUnavailable
from .authentication import Authenticator, invalidToken
from .channel import inTurn
from .handlers import Call, Handlers
from .messages import Answer, closeAfterwards, faultAnswer, parseBody, send
from .operations import MAXIMUM_BODY
from .requestlog import GONE, WAITING, RequestLog, RequestRecord
from .routes import TOKENS, Target, bodyLimit, resolve
from .statuspages import NO_PAGES, Pages

# What the rate limit counts.
_COUNTED = frozenset({b"GET", b"HEAD"})


class ApiResource(Resource):
    """
    The whole API: identity at ``/v2.0``, the registry at ``/v1.0``; and the pages beside it. It answers every path
    itself.

    :param registry: the rules; has been started.
    :param identity: knows users and tokens.
    :param rateLimiter: counts GETs.
    :param limits: what ``GET /limits`` says of resources; the same that the *registry* goes by.
    :param requestLog: notices every request and its response.
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
        self.pages = pages
        self.requestLog = requestLog or RequestLog()
        self._registry = registry
        self._rateLimiter = rateLimiter
        self._authenticator = Authenticator(identity)
        self.vouchesFor = self._authenticator.vouchesFor
        self._handlers = Handlers(registry, rateLimiter, limits)

    def render(self, request: Request) -> int:
        """
        Answer a request, at once if all that it needs is in memory.

        :return: ``NOT_DONE_YET``: the response is sent from here, now or later.
        """
        record = self.requestLog.begin(request)
        answered = Deferred.fromCoroutine(self._answer(record))
        if not answered.called:
            request.notifyFinish().addErrback(lambda _: self._gone(record, answered))
            answered.addBoth(inTurn, request)
        answered.addBoth(self._finish, record)
        return NOT_DONE_YET

    def _gone(self, record: RequestRecord, answered: Deferred[Answer]) -> None:
        # What the client had asked for is done all the same, unless it was only waiting.
        record.isGone = True
        if record.route == WAITING:
            answered.cancel()

    def _finish(self, outcome: Answer | Failure, record: RequestRecord) -> None:
        if record.isGone:
            self.requestLog.end(record, GONE)
            return
        try:
            if isinstance(outcome, Failure):
                outcome.raiseException()
            self._send(outcome, record)
        except Exception:
            self._log.failure("Cannot send the response to request {txnId}", txnId=record.txnId)
            if not record.request.startedWriting:
                self._send(faultAnswer(internalError(), record.txnId), record)

    def _send(self, answer: Answer, record: RequestRecord) -> None:
        if record.headers:
            answer = Answer(answer.code, answer.body, {**answer.headers, **record.headers}, answer.text)
        send(record.request, answer, record.txnId)
        self.requestLog.end(record, answer.code)

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
            return faultAnswer(systemFailure("Too many authentications in progress; retry later"), txnId)
        except Exception as error:
            if record.isGone and isinstance(error, CancelledError):
                raise
            self._log.failure("Internal error while answering request {txnId}", txnId=txnId)
            return faultAnswer(internalError(), txnId)

    async def _route(self, record: RequestRecord) -> Answer:
        request = record.request
        _checkSize(request)
        target = resolve(request.method, request.path)
        record.route = target.route
        if target.isApi:
            return await self._serve(record, target)
        if target.route == TOKENS:
            return await self._authenticator.issueToken(request)
        page = self.pages.get(target.path)
        if page is None or request.method not in _COUNTED:
            raise pageNotFound()
        record.route = target.path
        return await page(request)

    async def _serve(self, record: RequestRecord, target: Target) -> Answer:
        request = record.request
        body = parseBody(request)
        tenant = record.tenant = await self._authenticator.tenantOf(request)
        if target.tenant != tenant:
            raise invalidToken(request) if isTenant(target.tenant) else pageNotFound()
        operation = target.operation
        if operation is None:
            raise pageNotFound()
        if operation.limits.needsStore and not self._registry.hasAccount(tenant):
            await self._registry.account(tenant)
        used = 0
        if request.method in _COUNTED:
            used = self._rateLimiter.used(tenant)
            record.headers = self._rateLimiter.headers(tenant)
            self._rateLimiter.check(tenant)
        parameters = _parametersIn(request.uri.partition(b"?")[2]) if operation.query else []
        query = {
            parameter.name: parameter.value(*[value for name, value in parameters if name == parameter.name])
            for parameter in operation.query
        }
        authenticate = partial(self._authenticator.tenantOf, request)
        return await operation.handler(
            self._handlers,
            Call(record, tenant, target.argument, query, parameters, body, used, authenticate, operation.body or ()),
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


def _parametersIn(query: bytes) -> list[tuple[str, str]]:
    # Bytes that are not UTF-8 become characters that no rule lets pass.
    text = query.decode("latin-1")
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
    parts = [part.partition("=") for part in text.split("&") if part]
    return [(name, value) for name, _, value in parts]


def _forgetTraces(fault: Fault) -> None:
    """
    Drop the traceback of a fault. The way of an error through Deferreds leads back to itself, so all that a refused
    request was made of would wait for Python's collector.
    """
    error: BaseException | None = fault
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
