"""
An operation of the API: one method of one path below ``/v1.0/{tenant}``; and a call of one. The operations
themselves are in :mod:`~txserviceregistry.registry.http.handlers`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode

import attrs
from twisted.web.server import Request

from ..model import Page
from ..stores.interfaces import UserRecord
from .messages import API, Response, baseUrl
from .requestlog import RequestRecord
from .rules import Field, Parameter

#: A body of so many bytes is too large, unless an operation has another limit.
MAXIMUM_BODY = 5_000


@attrs.frozen
class Call:
    """
    A request that has passed authentication, routing and the checks of its query.

    :ivar user: the user that sends it.
    :ivar tenant: the owner of the objects that it is about.
    :ivar argument: the id, key or namespace in its path, not checked so far; empty if it has none.
    :ivar query: the values of the operation's parameters, by name.
    :ivar authenticate: checks the token of the request once more; raises a fault if it has ended.
    """

    record: RequestRecord
    user: UserRecord
    tenant: str
    argument: str
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    authenticate: Callable[[], Awaitable[UserRecord]]
    _fields: Sequence[Field]

    def fields(self) -> list[Any]:
        """
        The values of the operation's fields in the body, in their order; raises the fault of the first invalid one.
        """
        return [field.value(self.body) for field in self._fields]

    def authorize(self, kind: str, key: str) -> None:
        """
        Check that the user may change an object of this kind (see :mod:`txserviceregistry.registry.roles`), or raise
        the fault 403. Each handler that changes one calls this, after the checks of the body and before it looks
        whether the object exists.
        """
        self.record.object = key
        self.user.role.check(kind, key)

    def header(self, name: bytes) -> str | None:
        """A header, whose lines are one list; any bytes may come in it."""
        lines = self.record.request.requestHeaders.getRawHeaders(name)
        return None if lines is None else b", ".join(lines).decode("latin-1")

    def url(self, path: str) -> str:
        """The absolute URL of *path* below the tenant. No id or key contains a character to escape."""
        return f"{baseUrl(self.record.request)}{API}/{self.tenant}{path}"

    def page(self, page: Page) -> dict[str, Any]:
        """A page of a collection, as JSON."""
        marker = page.nextMarker
        return {
            "values": page.values,
            "metadata": {
                "count": len(page.values),
                "limit": self.query["limit"],
                "marker": self.query["marker"],
                "next_marker": marker,
                "next_href": None if marker is None else self._nextHref(marker),
            },
        }

    def _nextHref(self, marker: str) -> str:
        request = self.record.request
        query = [(name, value) for name, value in sentQuery(request) if name != "marker"]
        query.append(("marker", marker))
        # The path as the client wrote it: what was an escape stays one.
        path = quote(request.path, safe="/%:@!$&'()*+,;=~")
        return f"{baseUrl(request)}{path}?{urlencode(query, errors='surrogateescape')}"


def sentQuery(request: Request) -> list[tuple[str, str]]:
    """The query of a request. Bytes that are not UTF-8 become characters that no rule lets pass."""
    text = request.uri.partition(b"?")[2].decode("latin-1")
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
    # A seventh of the time of a short list.
    parts = (part.partition("=") for part in text.split("&") if part)
    return [(name, value) for name, _, value in parts]


#: Answers a request; a method of :class:`~txserviceregistry.registry.http.handlers.Handlers`.
Handler: TypeAlias = Callable[[Any, Call], Awaitable[Response]]


@attrs.frozen
class Operation:
    """
    One method of one path. Routing, the checks of queries and bodies, and ``/openapi.json`` come from these records.

    :ivar path: below the tenant, with at most one placeholder.
    :ivar summary: its purpose.
    :ivar success: the meaning of the response to a request that succeeds.
    :ivar code: its status.
    :ivar schema: the name of its body's schema (:mod:`~txserviceregistry.registry.http.components`); ``None`` if it has
        no body.
    :ivar query: the parameters of the query, in the order in which they are checked.
    :ivar body: the fields of the body, in the order in which they are checked; ``None`` if it takes no body.
    :ivar faults: the types of its faults, beside those that all operations have, and those of its parameters.
    :ivar headers: the headers of the request that its handler looks at.
    :ivar sends: the names of the response's headers, beside those that every response has.
    :ivar links: the operations that the response leads to, as links of OpenAPI.
    :ivar maximumBody: a body of so many bytes is too large.
    :ivar needsStore: whether it may wait for the store. An operation that is answered from memory does not make the
        account: a tenant that has a service has one.
    :ivar isAudited: whether its requests are in the audit log: it changes something, and is not a heartbeat.
    """

    name: str
    handler: Handler
    method: str
    path: str
    summary: str
    success: str
    code: int
    schema: str | None = None
    query: tuple[Parameter, ...] = ()
    body: tuple[Field, ...] | None = None
    faults: tuple[str, ...] = ()
    headers: tuple[Parameter, ...] = ()
    sends: tuple[str, ...] = ()
    links: Mapping[str, Any] = attrs.field(factory=dict)
    mediaType: str = "application/json"
    maximumBody: int = MAXIMUM_BODY
    needsStore: bool = True
    isAudited: bool = attrs.field(init=False)

    @isAudited.default
    def _audited(self) -> bool:
        return self.method != "GET" and not self.path.endswith(("/heartbeat", "/heartbeats"))
