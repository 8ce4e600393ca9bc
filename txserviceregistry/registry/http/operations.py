"""
The operations of the API, each one method of one path below ``/v1.0/{tenant}``: their records, routing, and calls. The
operations themselves are in :mod:`~txserviceregistry.registry.http.handlers`.

Nothing redirects, and no slash is merged, because each slash in a configuration key counts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

import attrs
from twisted.web.server import Request

from ..faults import Fault, badRequest
from ..model import UNCONDITIONAL, Page, Precondition
from ..stores.interfaces import UserRecord
from .messages import API, AUTH, Response, baseUrl
from .requestlog import RequestRecord
from .validation import IF_MATCH, IF_NONE_MATCH, Field, Parameter

#: A body of so many bytes is too large, unless an operation has another limit.
MAXIMUM_BODY = 5_000
#: The one resource of the Auth API.
TOKENS = AUTH + "/tokens"

_CONFIGURATION = "/configuration/"
_MAY_END_IN_SLASH = ("/services/", "/events/", "/limits/")
_URL = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@attrs.frozen
class Operation:
    """
    One method of one path. Routing, the checks of queries and bodies, and ``/openapi.json`` come from these records.

    :ivar path: below the tenant, with at most one placeholder.
    :ivar success: the meaning of the response to a request that succeeds; *code* is its status, and *schema* the name
        of its schema in ``/openapi.json``, ``None`` if it has no body.
    :ivar query: the parameters of the query, in the order in which they are checked; *body*: the fields of the body, so
        too, ``None`` if it takes no body; *headers*: those of the request that its handler looks at.
    :ivar faults: the types of its faults, beside those that all operations have.
    :ivar sends: the names of the response's headers, beside those that every response has.
    :ivar maximumBody: a body of so many bytes is too large.
    :ivar needsStore: whether it may wait for the store, and makes the account.
    """

    name: str
    handler: Callable[[Any, Call], Awaitable[Response]]
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
    maximumBody: int = MAXIMUM_BODY
    needsStore: bool = True


#: All operations, by path and method.
ROUTES: dict[str, dict[str, Operation]] = {}
# By the first segment of a path, the placeholder for its second one, if it has one. No segment is a number.
_RESOURCES: dict[str, str] = {}

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Response]])


def operation(target: str, code: int, schema: str | None = None, **more: Any) -> Callable[[_Handler], _Handler]:
    """
    The handler below answers this operation. The first sentence of its docstring is the operation's summary, the rest
    says what success means.

    :param target: method and path.
    :param more: arguments of :class:`Operation`, as *code* and *schema* are.
    """
    method, path = target.split(" ")
    _, first, *rest = path.split("/")

    def add(handler: _Handler) -> _Handler:
        summary, _, success = " ".join((handler.__doc__ or "").split()).partition(". ")
        made = Operation(handler.__name__, handler, method, path, summary, success, code, schema, **more)
        ROUTES.setdefault(path, {})[method] = made
        _RESOURCES[first] = next((each for each in rest if each.startswith("{")), _RESOURCES.get(first, ""))
        return handler

    return add


@attrs.frozen
class Target:
    """
    The target of a request.

    :ivar path: decoded.
    :ivar isApi: whether it is below ``/v1.0``, so that it needs a token even if there is no such resource.
    :ivar tenant: empty if the path begins with a resource, which is then that of the user's own tenant.
    :ivar operation: ``None`` if the path is not a resource, or does not take the method.
    :ivar argument: the id, key or namespace in the path.
    :ivar isTokens: whether it is :data:`TOKENS`.
    """

    path: str = ""
    isApi: bool = False
    tenant: str = ""
    operation: Operation | None = None
    argument: str = ""
    isTokens: bool = False

    @property
    def maximumBody(self) -> int:
        return MAXIMUM_BODY if self.operation is None else self.operation.maximumBody

    @property
    def route(self) -> str:
        """The path of its operation, or :data:`TOKENS`; empty if it is neither."""
        return self.operation.path if self.operation is not None else TOKENS if self.isTokens else ""

    def note(self, record: RequestRecord) -> None:
        record.route, record.object = self.route, self.argument
        # The audit log has what changes something, but no heartbeats.
        if self.operation and self.operation.method != "GET" and "/heartbeat" not in self.operation.path:
            record.change = self.operation.name


def resolve(method: bytes, raw: bytes) -> Target:
    """Find the target of a request; the fault 400 if the path has a broken escape, or is not UTF-8."""
    path = decodePath(raw)
    if path == API or path.startswith(API + "/"):
        # A base URL with a slash too many (``/v1.0//1234``) is tolerated.
        below = path[len(API) :].lstrip("/")
        tenant, slash, rest = below.partition("/")
        if tenant in _RESOURCES:
            tenant, slash, rest = "", "/", below
        operation, argument = match(method.decode("latin-1"), slash + rest)
        return Target(path, True, tenant, operation, argument)
    isAuth = method == b"POST" and path.startswith(AUTH + "/")
    return Target(path, isTokens=isAuth and path[len(AUTH) :].lstrip("/").removesuffix("/") == "tokens")


def early(method: bytes, raw: bytes) -> Target:
    """As :func:`resolve`, for a request that is not whole: a malformed path, which is refused later, names nothing."""
    try:
        return resolve(method, raw)
    except Fault:
        return Target()


def match(method: str, path: str) -> tuple[Operation | None, str]:
    """The operation of a decoded path below the tenant, if there is one, and its argument."""
    if method == "HEAD":
        method = "GET"
    if path.endswith("/") and path.startswith(_MAY_END_IN_SLASH):
        path = path[:-1]
    argument = ""
    if path.startswith(_CONFIGURATION):
        path, argument = _configuration(method, path[len(_CONFIGURATION) :])
    else:
        segments = path.split("/", 3)
        if len(segments) > 2 and segments[2] and _RESOURCES.get(segments[1]):
            argument, segments[2] = segments[2], _RESOURCES[segments[1]]
            path = "/".join(segments)
    return ROUTES.get(path, {}).get(method), argument


def _configuration(method: str, rest: str) -> tuple[str, str]:
    if not rest:
        return "/configuration", ""
    if method != "GET" or not rest.endswith("/"):
        # The slash that begins a qualified key may be left out, except where it is all that makes it one.
        isQualified = "/" in rest and not rest.startswith("/")
        return "/configuration/{configurationId}", "/" + rest if isQualified else rest
    # One slash is all qualified keys; more of them do not name a namespace.
    isName = rest.strip("/")
    return "/configuration/{namespace}/", "/" + rest.removeprefix("/")[:-1] if isName else rest


def originForm(target: bytes) -> bytes:
    """The path and query of a request. Some clients send the whole URL to every server (RFC 9112, 3.2.2)."""
    authority = None if target.startswith(b"/") else _URL.match(target)
    if authority is None:
        return target
    rest = target[authority.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def decodePath(raw: bytes) -> str:
    """The path of a request, without its escapes: ``%2F`` is a slash like any other."""
    try:
        if b"%" in raw:
            if _BROKEN_ESCAPE.search(raw):
                raise ValueError("broken escape")
            raw = unquote_to_bytes(raw)
        return raw.decode("utf-8")
    except ValueError:
        raise badRequest("URI malformed")


def sentQuery(request: Request) -> list[tuple[str, str]]:
    """The query of a request. Bytes that are not UTF-8 become characters that no rule lets pass."""
    text = request.uri.partition(b"?")[2].decode("latin-1")
    return parse_qsl(text, keep_blank_values=True, errors="surrogateescape")


@attrs.frozen(repr=False)
class Call:
    """
    A request that has passed authentication, routing and the checks of its query.

    :ivar argument: the id, key or namespace in its path, not checked so far; empty if it has none.
    :ivar query: the values of the operation's parameters, by name.
    :ivar authenticate: checks the token once more; raises a fault if it has ended.
    """

    record: RequestRecord
    user: UserRecord
    operation: Operation
    argument: str
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    authenticate: Callable[[], Awaitable[UserRecord]]

    @property
    def tenant(self) -> str:
        return self.user.tenant

    def fields(self) -> list[Any]:
        """The values of the operation's fields in the body; raises the fault of the first invalid one."""
        return [field.value(self.body) for field in self.operation.body or ()]

    def authorize(self, kind: str, key: str) -> None:
        """
        Check that the user may change an object of this kind, or raise the fault 403; after the checks of the body and
        before the look whether the object exists.
        """
        self.record.object = key
        self.user.role.check(kind, key)

    def precondition(self) -> Precondition:
        """The precondition of a write (RFC 9110, 13.1). ``W/``, which proxies that compress add, is ignored."""
        match, noneMatch = self._header(b"If-Match"), self._header(b"If-None-Match")
        if match is not None and noneMatch is not None:
            raise badRequest("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
        if match is not None:
            tags = IF_MATCH.value(match)
            return Precondition(True, None if tags == "*" else frozenset(re.findall('"([^"]*)"', tags)))
        if noneMatch is not None:
            IF_NONE_MATCH.value(noneMatch)
            return Precondition(False)
        return UNCONDITIONAL

    def _header(self, name: bytes) -> str | None:
        # Its lines are one list; any bytes may come in it.
        lines = self.record.request.requestHeaders.getRawHeaders(name)
        return None if lines is None else b", ".join(lines).decode("latin-1")

    def url(self, path: str) -> str:
        """The absolute URL of *path* below the tenant. No id or key contains a character to escape."""
        return f"{baseUrl(self.record.request)}{API}/{self.tenant}{path}"

    def page(self, page: Page) -> dict[str, Any]:
        request, marker, href = self.record.request, page.nextMarker, None
        if marker is not None:
            query = [(name, value) for name, value in sentQuery(request) if name != "marker"] + [("marker", marker)]
            # The path as the client wrote it: what was an escape stays one.
            path = quote(request.path, safe="/%:@!$&'()*+,;=~")
            href = f"{baseUrl(request)}{path}?{urlencode(query, errors='surrogateescape')}"
        metadata = {"count": len(page.values), "limit": self.query["limit"], "marker": self.query["marker"]}
        return {"values": page.values, "metadata": {**metadata, "next_marker": marker, "next_href": href}}
