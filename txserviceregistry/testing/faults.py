"""Faults of requests on their way to a registry and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ..errors import FAULT_TYPES
from ..http.bodies import WholeResponse, readWhole
from ..util.deferred import returnsDeferred

#: Sends a request to the registry; fires with its response.
Send = Callable[[], Deferred[IResponse]]
#: A fault of a request: called with a function that sends it; returns the response for the client.
Fault = Callable[[Send], Deferred[IResponse]]


@attrs.frozen
class Request:
    """
    A request that a client of the fake has made, as it went out: before any fault that was scripted for it.

    :ivar method: the HTTP method.
    :ivar path: the path, with the query.
    :ivar body: the body; it may hold a secret, and is not compared.
    """

    method: str
    path: str
    body: bytes = attrs.field(default=b"", eq=False, repr=False)


def isForEvents(request: Request) -> bool:
    """Whether it reads the event feed."""
    return request.path.partition("?")[0].endswith("/events")


def givesToken(request: Request) -> bool:
    """Whether its response has a heartbeat token."""
    return request.method == "POST" and request.path.rstrip("/").endswith(("/heartbeat", "/heartbeats", "/services"))


def checkStatus(status: int) -> None:
    """Refuse what is not an HTTP status now, not in the middle of the request that would get it."""
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"status is {status!r}, but it has to be an int")
    if not 200 <= status <= 599:
        raise ValueError(f"status is {status}, but it has to be from 200 to 599")


def checkCount(count: int | None) -> None:
    """Refuse what is not a number of requests."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise TypeError(f"count is {count!r}, but it has to be an int")
    if count is not None and count < 0:
        raise ValueError(f"count is {count}, but it has to be 0 or more")


def answer(
    status: int,
    body: bytes,
    contentType: str = "application/json; charset=UTF-8",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Fault:
    """This response, from something in front of the registry."""

    fields = {"Content-Type": contentType, **headers}
    raw = Headers({name.encode("utf-8"): [value.encode("utf-8")] for name, value in fields.items()})
    return lambda send: succeed(WholeResponse(status, raw, body))


def drop(send: Send) -> Deferred[IResponse]:
    """The connection is lost before the registry gets the request."""
    return fail(ResponseNeverReceived([Failure(ConnectionLost())]))


def lose(send: Send) -> Deferred[IResponse]:
    """The connection is lost before the client gets the response."""
    send().addErrback(lambda _: None)
    return drop(send)


def hang(send: Send) -> Deferred[IResponse]:
    """No response comes."""
    return never()


def truncate(send: Send) -> Deferred[IResponse]:
    """The response breaks off in the middle."""
    send().addErrback(lambda _: None)
    return answer(200, b'{"token": "')(send)


def foreignTokens(tokens: Iterator[str]) -> Fault:
    """The response has tokens that the registry never issued."""

    @returnsDeferred
    async def fault(send: Send) -> IResponse:
        whole = await readWhole(await send())
        content = json.loads(whole.body)
        for outcome in content.get("values", [content]):
            if "token" in outcome:
                outcome["token"] = next(tokens)
        return attrs.evolve(whole, body=json.dumps(content).encode("utf-8"))

    return fault


def never() -> Deferred[IResponse]:
    """A response that never comes. A client that cancels it gets the same error as from Twisted's own agent."""
    return Deferred(lambda it: it.errback(ResponseNeverReceived([Failure(CancelledError())])))


# The most general type of fault for each status: the first one that the API lists; and that of the Auth API.
_TYPES = {status: type for type, status in reversed(list(FAULT_TYPES.items()))}
_AUTH_TYPES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    500: "identityFault",
    503: "serviceUnavailable",
}


def apiFault(status: int, request: Request) -> Fault:
    """A fault of the API for *request* with this status, or the page of a gateway if no fault has this status."""
    isAuth = request.path.startswith("/v2.0/")
    type = (_AUTH_TYPES if isAuth else _TYPES).get(status)
    if type is None:
        return answer(status, b"<html><h1>scripted</h1></html>", "text/html")
    fault = {"code": status, "message": "scripted"}
    body = {type: fault} if isAuth else {"type": type, **fault, "details": "", "txnId": "fake"}
    return answer(status, json.dumps(body).encode("ascii"))
