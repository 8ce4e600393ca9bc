"""
Routing: the operation that a request asks for. Nothing redirects, and no slash is merged, because each slash in a
configuration key counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import attrs

from ..faults import Fault, badRequest
from .handlers import OPERATIONS
from .messages import API, AUTH
from .operations import MAXIMUM_BODY, Operation
from .requestlog import RequestRecord

#: The operations by path and method.
ROUTES: Mapping[str, Mapping[str, Operation]] = {
    path: {operation.method: operation for operation in OPERATIONS if operation.path == path}
    for path in dict.fromkeys(operation.path for operation in OPERATIONS)
}
#: The one resource of the Auth API.
TOKENS = AUTH + "/tokens"

_CONFIGURATION = "/configuration/"
_MAY_END_IN_SLASH = ("/services/", "/events/", "/limits/")
# By the first segment of a path, the placeholder for its second one.
_PLACEHOLDERS = {
    segments[1]: segments[2] for segments in (path.split("/") for path in ROUTES) if segments[2:] and "{" in segments[2]
}
# The first segments of all paths below the tenant; none is a number.
_RESOURCES = frozenset(path.split("/")[1] for path in ROUTES)
_URL = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@attrs.frozen
class Target:
    """
    The target of a request.

    :ivar path: decoded.
    :ivar route: the path of its operation, or :data:`TOKENS`; empty if it is neither.
    :ivar isApi: whether it is below ``/v1.0``, so that it needs a token even if there is no such resource.
    :ivar tenant: empty if the path begins with a resource, which is then that of the user's own tenant.
    :ivar operation: ``None`` if the path is not a resource, or does not take the method.
    :ivar argument: the id, key or namespace in the path.
    """

    path: str
    route: str = ""
    isApi: bool = False
    tenant: str = ""
    operation: Operation | None = None
    argument: str = ""

    def note(self, record: RequestRecord) -> None:
        record.route, record.object = self.route, self.argument
        if self.operation is not None and self.operation.isAudited:
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
    return Target(path, TOKENS if isAuth and path[len(AUTH) :].lstrip("/").removesuffix("/") == "tokens" else "")


def match(method: str, path: str) -> tuple[Operation | None, str]:
    """
    The operation of a decoded path below the tenant, if there is one, and its argument. Paths of the original protocol
    may end with a slash too many, except in configuration, where it has a meaning.
    """
    if method == "HEAD":
        method = "GET"
    if path.endswith("/") and path.startswith(_MAY_END_IN_SLASH):
        path = path[:-1]
    argument = ""
    if path.startswith(_CONFIGURATION):
        path, argument = _configuration(method, path[len(_CONFIGURATION) :])
    else:
        segments = path.split("/", 3)
        if len(segments) > 2 and segments[2] and segments[1] in _PLACEHOLDERS:
            argument, segments[2] = segments[2], _PLACEHOLDERS[segments[1]]
            path = "/".join(segments)
    return ROUTES.get(path, {}).get(method), argument


def originForm(target: bytes) -> bytes:
    """
    The path and query of a request. Clients send the whole URL to proxies, and some to every server (RFC 9112, 3.2.2);
    its authority, and a name and password in it, are ignored.
    """
    if target.startswith(b"/"):
        return target
    authority = _URL.match(target)
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


def targetOf(method: bytes, raw: bytes) -> Target:
    """As :func:`resolve`; a malformed path, which is refused later, names nothing."""
    try:
        return resolve(method, raw)
    except Fault:
        return Target("")


def bodyLimit(method: bytes, raw: bytes) -> int:
    """How many bytes of a body are too many for a request, known as soon as its first line is."""
    operation = targetOf(method, raw).operation
    return MAXIMUM_BODY if operation is None else operation.maximumBody


def _configuration(method: str, rest: str) -> tuple[str, str]:
    if not rest:
        return "/configuration", ""
    if method != "GET" or not rest.endswith("/"):
        # The slash that begins a qualified key may be left out, except where it is all that makes it one.
        isQualified = "/" in rest and not rest.startswith("/")
        return "/configuration/{configurationId}", "/" + rest if isQualified else rest
    if not rest.strip("/"):
        # One slash is all qualified keys; more of them do not name a namespace.
        return "/configuration/{namespace}/", rest
    return "/configuration/{namespace}/", "/" + rest.removeprefix("/")[:-1]
