"""The operations of the API, each one method of one path below ``/v1.0/{tenant}``: records, routing, and calls."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

import attrs
from twisted.web.server import Request

from ..faults import badRequest
from ..model import UNCONDITIONAL, Page, Precondition
from ..stores.interfaces import UserRecord
from .messages import API, AUTH, Response, baseUrl
from .requestlog import RequestRecord
from .validation import IF_MATCH, IF_NONE_MATCH, Field, Parameter

#: A body of so many bytes is too large, unless an operation has another limit.
MAXIMUM_BODY = 5_000
#: The one resource of the Auth API.
TOKENS = AUTH + "/tokens"

_MAY_END_IN_SLASH = ("/services/", "/events/", "/limits/")
_URL = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@attrs.frozen
class Operation:
    """One method of one path. Routing, checks of queries and bodies, and ``/openapi.json`` come from these records."""

    name: str
    handler: Callable[[Any, Call], Awaitable[Response]]
    method: str
    path: str  # below the tenant, with at most one placeholder
    summary: str
    success: str  # the meaning of the response to a request that succeeds
    code: int  # of that response
    schema: str | None = None  # the name of its schema in /openapi.json, if it has a body
    query: tuple[Parameter, ...] = ()  # in the order in which they are checked
    body: tuple[Field, ...] | None = None  # as query; None if it takes no body
    faults: tuple[str, ...] = ()  # types, beside those that all operations have
    headers: tuple[Parameter, ...] = ()  # of the request
    sends: tuple[str, ...] = ()  # names of headers, beside those that every response has
    maximumBody: int = MAXIMUM_BODY  # a body of so many bytes is too large
    needsStore: bool = True  # whether it may wait for the store, and makes the account


#: All operations, by path and method.
ROUTES: dict[str, dict[str, Operation]] = {}
# By the first segment of a path, the placeholder for its second one, if it has one. No segment is a number.
_RESOURCES: dict[str, str] = {}

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Response]])


def operation(target: str, code: int, schema: str | None = None, **more: Any) -> Callable[[_Handler], _Handler]:
    """
    The handler below answers this operation, *target* being its method and path; *more* are other attributes. The first
    sentence of its docstring is the operation's summary, the rest says what success means.
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
    """The target of a request."""

    path: str = ""  # decoded
    route: str = ""  # the path of its operation, or TOKENS; empty if it is neither
    isApi: bool = False  # whether it is below /v1.0, so that it needs a token even if there is no such resource
    tenant: str = ""  # empty if the path begins with a resource, which is then that of the user's own tenant
    operation: Operation | None = None
    argument: str = ""  # the id, key or namespace in the path

    @property
    def maximumBody(self) -> int:
        return MAXIMUM_BODY if self.operation is None else self.operation.maximumBody

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
        return Target(path, "" if operation is None else operation.path, True, tenant, operation, argument)
    isAuth = method == b"POST" and path.startswith(AUTH + "/")
    isTokens = isAuth and path[len(AUTH) :].lstrip("/").removesuffix("/") == "tokens"
    return Target(path, TOKENS if isTokens else "")


def match(method: str, path: str) -> tuple[Operation | None, str]:
    """The operation of a decoded path below the tenant, if there is one, and its argument."""
    # Nothing redirects, and no slash is merged, because each slash in a configuration key counts.
    if method == "HEAD":
        method = "GET"
    if path.endswith("/") and path.startswith(_MAY_END_IN_SLASH):
        path = path[:-1]
    argument = path.removeprefix("/configuration/")
    if argument == path:
        argument = ""
        segments = path.split("/", 3)
        if len(segments) > 2 and segments[2] and _RESOURCES.get(segments[1]):
            argument, segments[2] = segments[2], _RESOURCES[segments[1]]
            path = "/".join(segments)
    elif not argument:
        path = "/configuration"
    elif method != "GET" or not argument.endswith("/"):
        path = "/configuration/{configurationId}"
        # The slash that begins a qualified key may be left out, except where it is all that makes it one.
        if "/" in argument and not argument.startswith("/"):
            argument = "/" + argument
    else:
        path = "/configuration/{namespace}/"
        # One slash is all qualified keys; more of them do not name a namespace.
        if argument.strip("/"):
            argument = "/" + argument.removeprefix("/")[:-1]
    return ROUTES.get(path, {}).get(method), argument


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
    """A request that has passed authentication, routing and the checks of its query."""

    record: RequestRecord
    user: UserRecord
    operation: Operation
    argument: str  # the id, key or namespace in its path, not checked so far; empty if it has none
    query: Mapping[str, Any]  # the values of the operation's parameters, by name
    body: Mapping[str, Any]
    authenticate: Callable[[], Awaitable[UserRecord]]  # checks the token once more; raises a fault if it has ended

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
        headers = self.record.request.requestHeaders
        # The lines of each are one list; any bytes may come in it.
        match, noneMatch = (
            None if lines is None else b", ".join(lines).decode("latin-1")
            for lines in map(headers.getRawHeaders, (b"If-Match", b"If-None-Match"))
        )
        if match is not None and noneMatch is not None:
            raise badRequest("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
        if match is not None:
            tags = IF_MATCH.value(match)
            return Precondition(True, None if tags == "*" else frozenset(re.findall('"([^"]*)"', tags)))
        if noneMatch is not None:
            IF_NONE_MATCH.value(noneMatch)
            return Precondition(False)
        return UNCONDITIONAL

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
