"""
Which path is which resource: one table, and the few rules of this API that no table can tell.

Nothing here redirects, and no slash is merged: of the slashes in a configuration key each one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from ..faults import Fault, badRequest, pageNotFound

#: Where the registry and the Auth API are.
API = "/v1.0"
AUTH = "/v2.0"
#: The one resource of the Auth API.
TOKENS = AUTH + "/tokens"

#: What can be asked for below ``/v1.0/{tenant}``: by pattern of paths and method, the name of what answers it.
ROUTES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "/limits": {"GET": "getLimits"},
        "/services": {"GET": "listServices", "POST": "createService"},
        "/services/{serviceId}": {"GET": "getService", "PUT": "updateService", "DELETE": "removeService"},
        "/services/{serviceId}/heartbeat": {"POST": "heartbeat"},
        "/configuration": {"GET": "listValues"},
        "/configuration/{namespace}/": {"GET": "listNamespace"},
        "/configuration/{configurationId}": {"GET": "getValue", "PUT": "setValue", "DELETE": "removeValue"},
        "/events": {"GET": "listEvents"},
        "/heartbeats": {"POST": "heartbeats"},
    }
)

#: By name of what answers, the pattern that it is found at.
PATTERNS: Mapping[str, str] = MappingProxyType(
    {name: pattern for pattern, methods in ROUTES.items() for name in methods.values()}
)

#: A body of so many bytes is too large.
MAXIMUM_BODY = 5_000
#: The same for what takes more, by name.
BODY_LIMITS: Mapping[str, int] = MappingProxyType({"heartbeats": 256 * 1024})

_CONFIGURATION = "/configuration/"
_MAY_END_IN_SLASH = ("/services/", "/events/", "/limits/")
_URL = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_HEX = frozenset(b"0123456789abcdefABCDEF")


@attrs.frozen
class Match:
    """
    What answers a request.

    :ivar name: one of the names in :data:`ROUTES`.
    :ivar argument: the id, key or namespace in the path; empty where there is none.
    """

    name: str
    argument: str = ""


# What the paths without an argument answer; one at which there may be keys as well is found by its form.
_FIXED: Mapping[tuple[str, str], Match] = {
    (method, pattern): Match(name)
    for pattern, methods in ROUTES.items()
    for method, name in methods.items()
    if "{" not in pattern
}


def originForm(target: bytes) -> bytes:
    """
    What a request asks for, below this registry. To a proxy clients send the whole URL, and some do to every server
    (RFC 9112, 3.2.2): whose it is, and the name and password that may stand in it, are nobody's business here.
    """
    if target.startswith(b"/"):
        return target
    authority = _URL.match(target)
    if authority is None:
        return target
    rest = target[authority.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def decodePath(raw: bytes) -> str:
    """
    The path of a request, without its escapes: ``%2F`` is a slash like any other.

    :raises Fault: if an escape is broken, or if what comes out is not UTF-8.
    """
    try:
        if b"%" not in raw:
            return raw.decode("utf-8")
        first, *rest = raw.split(b"%")
        parts = [first]
        for part in rest:
            if len(part) < 2 or part[0] not in _HEX or part[1] not in _HEX:
                raise ValueError(part)
            parts.append(bytes.fromhex(part[:2].decode("ascii")) + part[2:])
        return b"".join(parts).decode("utf-8")
    except ValueError:
        raise badRequest("URI malformed", "URI malformed")


def isTokensPath(path: str) -> bool:
    """Whether *path*, below ``/v2.0``, is where tokens come from."""
    return path.lstrip("/").removesuffix("/") == "tokens" and path.startswith("/")


def splitTenant(path: str) -> tuple[str, str]:
    """
    The tenant in *path*, which is what follows ``/v1.0``, and what follows the tenant. A base URL with a slash too many
    (``/v1.0//1234``) is tolerated.
    """
    tenant, slash, rest = path.lstrip("/").partition("/")
    return tenant, slash + rest


def match(method: str, path: str) -> Match:
    """
    Find what answers a request. HEAD is GET without the body. The resources of the original protocol may have one slash
    too many at the end, except configuration, where it has a meaning.

    :param path: what follows the tenant, decoded.
    :raises Fault: 404, if the path is no resource or takes no such method.
    """
    if method == "HEAD":
        method = "GET"
    if path.endswith("/") and path.startswith(_MAY_END_IN_SLASH):
        path = path[:-1]
    fixed = _FIXED.get((method, path))
    if fixed is not None:
        return fixed
    pattern, argument = _resource(method, path)
    name = ROUTES.get(pattern, {}).get(method)
    if name is None:
        raise pageNotFound()
    return Match(name, argument)


def patternOf(method: str, raw: bytes) -> str | None:
    """
    The pattern of what a request asks for: one of those in :data:`ROUTES`, or :data:`TOKENS`; ``None`` if it is
    no resource.

    :param raw: the path as it came.
    """
    try:
        path = decodePath(raw)
        if path.startswith(API + "/"):
            return PATTERNS[match(method, splitTenant(path[len(API) :])[1]).name]
    except Fault:
        return None
    return TOKENS if path.startswith(AUTH + "/") and isTokensPath(path[len(AUTH) :]) and method == "POST" else None


def bodyLimit(method: str, raw: bytes) -> int:
    """
    How many bytes of a body are too many for a request, known as soon as its first line is.

    :param raw: the path as it came.
    """
    try:
        path = decodePath(raw)
        if path.startswith(API + "/"):
            return BODY_LIMITS.get(match(method, splitTenant(path[len(API) :])[1]).name, MAXIMUM_BODY)
    except Fault:
        # What is wrong with it is told later.
        pass
    return MAXIMUM_BODY


def _resource(method: str, path: str) -> tuple[str, str]:
    if path == "/configuration" or path.startswith(_CONFIGURATION):
        return _configuration(method, path[len(_CONFIGURATION) :])
    segments = path.split("/", 3)
    if len(segments) > 2 and segments[1] == "services" and segments[2]:
        return "/".join(["/services/{serviceId}", *segments[3:]]), segments[2]
    return path, ""


def _configuration(method: str, rest: str) -> tuple[str, str]:
    if not rest:
        return "/configuration", ""
    if method != "GET" or not rest.endswith("/"):
        return "/configuration/{configurationId}", _key(rest)
    if not rest.strip("/"):
        # One slash is all qualified keys; more of them are no namespace at all.
        return "/configuration/{namespace}/", rest
    return "/configuration/{namespace}/", "/" + rest.removeprefix("/")[:-1]


def _key(rest: str) -> str:
    # The slash that begins a qualified key may be left out, except where it is all that makes it one.
    return "/" + rest if "/" in rest and not rest.startswith("/") else rest
