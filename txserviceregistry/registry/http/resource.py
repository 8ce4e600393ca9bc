"""The API as a resource: the way of a request through the checks to its handler, and of its response back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ...util.logs import Logger
from ..core import Registry
from ..faults import Fault, pageNotFound, requestTooLarge, systemFailure
from ..identity import Identity, Overloaded, isTenant
from ..limits import RateLimiter, ResourceLimits
from ..stores.interfaces import StoreUnavailable, UserRecord
from .authentication import Authenticator, invalidToken
from .connections import inTurn
from .handlers import Handlers
from .messages import Response, faultResponse, parseBody, write
from .operations import TOKENS, Call, Target, resolve, sentQuery
from .requestlog import GONE, LOCK_WAITING, STREAM, WAITING, RequestLog, RequestRecord
from .statuspages import Pages

# The methods that the rate limit counts.
_COUNTED = frozenset({b"GET", b"HEAD"})


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
        self._rateLimiter = rateLimiter
        self.authenticator = Authenticator(identity)
        self.handlers = Handlers(registry, rateLimiter, limits)

    def render(self, request: Request) -> int:
        """Answer a request, for a plain Site: the response is sent from here, now or later."""
        self.answer(request)
        return NOT_DONE_YET

    def answer(self, request: Request) -> None:
        """Answer a request, at once if all that it needs is in memory."""
        record = self.requestLog.begin(request)
        answering = Deferred.fromCoroutine(self._answer(record))
        if not answering.called:
            record.isLate = True
            request.notifyFinish().addErrback(lambda _: self._gone(record, answering))

    def _gone(self, record: RequestRecord, answering: Deferred[None]) -> None:
        # The client's request is carried out all the same, unless it was only waiting.
        record.isGone = True
        if record.route in (WAITING, LOCK_WAITING, STREAM):
            answering.cancel()

    async def _answer(self, record: RequestRecord) -> None:
        response = await self._outcome(record)
        request = record.request
        if record.isLate:
            with suppress(CancelledError):  # the client is gone
                await inTurn(request)
        if record.isGone:
            self.requestLog.end(record, GONE, response.code)
        elif not request.startedWriting:
            if record.headers:
                response = attrs.evolve(response, headers={**response.headers, **record.headers})
            self._send(record, response)
        elif request.finished:
            # An event stream that has ended.
            self.requestLog.end(record, 200)
        else:
            request.notifyFinish().addCallbacks(
                lambda _: self.requestLog.end(record, 200), lambda _: self.requestLog.end(record, GONE)
            )

    def _send(self, record: RequestRecord, response: Response) -> None:
        try:
            write(record.request, response, record.txnId)
        except Exception:
            self._log.failure("Cannot send the response to request {request}", request=record.name)
            response = faultResponse(Fault("internalError", "Internal Error"), record.txnId)
            write(record.request, response, record.txnId)
        self.requestLog.end(record, response.code)
        record.request.finish()

    async def _outcome(self, record: RequestRecord) -> Response:
        try:
            return await self._respond(record)
        except Fault as error:
            fault = error
            _forgetTraces(fault)
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
        user = await self.authenticator.userOf(request)
        record.user, record.tenant = user.name, user.tenant
        if target.tenant != user.tenant and (target.tenant or target.operation is None):
            raise invalidToken(request) if isTenant(target.tenant) else pageNotFound()
        return await self.operate(record, user, target, body, partial(self.authenticator.userOf, request))

    async def _outside(self, record: RequestRecord, target: Target) -> Response:
        request, path = record.request, target.path
        if target.route == TOKENS:
            return await self.authenticator.issueToken(request)
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
        if operation.needsStore and not self._registry.hasAccount(tenant):
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


def _forgetTraces(fault: Fault) -> None:
    """Drop the traceback of a fault: it leads back to the request, which would wait for Python's collector."""
    error: BaseException | None = fault
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
