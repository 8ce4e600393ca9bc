"""
An agent that answers from memory, for tests of what stands on one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from txserviceregistry.errors import FAULT_TYPES
from txserviceregistry.http.messages import BytesProducer, WholeResponse

TOKEN = "the-auth-token"
API_KEY = "the-api-key"
WEB1 = {"id": "web1", "heartbeat_timeout": 30, "tags": ["www"], "metadata": {"port": "80"}, "last_seen": None}


def answer(status: int = 200, body: Any = None, **headers: str) -> WholeResponse:
    """A response: *body* is JSON, or bytes as they are; ``Retry_After`` is the header ``Retry-After``."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    fields = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
    return WholeResponse(status, fields, content)


def fault(type: str, message: str = "scripted", details: str = "", **headers: str) -> WholeResponse:
    """A fault of the registry's API."""
    code = FAULT_TYPES[type]
    return answer(code, {"type": type, "code": code, "message": message, "details": details}, **headers)


def authFault(status: int = 401, message: str = "Username or api key is invalid") -> WholeResponse:
    """A fault of the Auth API."""
    name = {400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound"}[status]
    return answer(status, {name: {"code": status, "message": message}})


def access(token: str = TOKEN, **changes: Any) -> dict[str, Any]:
    """The Auth API's response."""
    return {"access": {"token": {"id": token, "tenant": {"id": "7", "name": "7"}, **changes}, "serviceCatalog": []}}


class Sent:
    """A request that has come."""

    def __init__(self, method: str, url: str, headers: Headers, body: Any) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.token = (headers.getRawHeaders("X-Auth-Token") or [None])[0]

    @property
    def asked(self) -> str:
        return f"{self.method} {self.url}"


@implementer(IAgent)
class FakeAgent:
    """
    Answers as *handler* says: it gets the request and returns a response, an exception, or a Deferred of its own.
    Without one, each answer is given by the test: :attr:`pending` holds their Deferreds.
    """

    def __init__(self, handler: Callable[[Sent], Any] | None = None) -> None:
        self.handler = handler
        self.sent: list[Sent] = []
        self.pending: list[Deferred[IResponse]] = []

    @property
    def asked(self) -> list[str]:
        return [sent.asked for sent in self.sent]

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else None
        sent = Sent(method.decode(), uri.decode(), headers or Headers(), None if body is None else json.loads(body))
        self.sent.append(sent)
        result = Deferred() if self.handler is None else self.handler(sent)
        if isinstance(result, Deferred):
            self.pending.append(result)
            return result
        return fail(result) if isinstance(result, Exception) else succeed(result)


class FakeApi(FakeAgent):
    """An agent whose Auth API gives a token to anybody; the rest is answered by *handler*."""

    def __init__(self, handler: Callable[[Sent], Any]) -> None:
        super().__init__(lambda sent: answer(200, access()) if sent.url.endswith("/tokens") else handler(sent))

    @property
    def calls(self) -> list[Sent]:
        """The requests, without those for authentication."""
        return [sent for sent in self.sent if not sent.url.endswith("/tokens")]


def asOfAPlainRegistry(response: IResponse) -> IResponse:
    """The response, as a registry without extensions would give it."""
    response.headers.removeHeader(b"X-Service-Registry-Extensions")
    return response


def _withoutExtension(response: IResponse, name: str) -> IResponse:
    names = response.headers.getRawHeaders("X-Service-Registry-Extensions", [""])[0].split(", ")
    response.headers.setRawHeaders("X-Service-Registry-Extensions", [", ".join(each for each in names if each != name)])
    return response


@implementer(IAgent)
class Proxy:
    """
    A proxy between a client and a registry.

    :param agent: sends the requests.
    :param forwardsWaits: whether it forwards requests that wait; else the response is 504.
    :param isPlain: whether the registry has no extensions.
    :param without: the name of an extension that the registry does not have.
    :ivar refused: how many requests it has not forwarded.
    """

    def __init__(self, agent: IAgent, *, forwardsWaits: bool = True, isPlain: bool = False, without: str = "") -> None:
        self._without = without
        self._agent = agent
        self._forwardsWaits = forwardsWaits
        self._isPlain = isPlain
        self.refused = 0

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        if b"wait=" in uri and not self._forwardsWaits:
            self.refused += 1
            return succeed(answer(504, b"<html>"))
        asked = self._agent.request(method, uri, headers, bodyProducer)
        if self._without:
            asked.addCallback(_withoutExtension, self._without)
        return asked.addCallback(asOfAPlainRegistry) if self._isPlain else asked
