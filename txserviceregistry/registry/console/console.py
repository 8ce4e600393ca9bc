"""
The console's requests: the files of the page, its sessions, and the API as the user of a session.

Below ``/console/api`` a request needs both secrets of a session (see
:mod:`~txserviceregistry.registry.console.sessions`); everything of the API is there as below ``/v1.0/{tenant}``, with
the same rules and roles. Besides, there are a few requests that only the page needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs

import attrs
from twisted.web.server import Request

from ..._version import __version__
from ...util.fields import HOST_KEYS, PORT_KEYS
from ..core import Registry
from ..eventids import position
from ..faults import Fault, pageNotFound, validationError
from ..http.admission import originOf, recognize
from ..http.messages import API, EXTENSIONS, Response, header, parseBody
from ..http.operations import resolve
from ..http.requestlog import RequestRecord
from ..http.resource import ApiResource
from ..identity.identity import Identity, InvalidCredentials, InvalidToken
from ..stores.interfaces import IStore, UserRecord
from ..tasks import available
from . import origins
from .overview import Overview
from .sessions import LIFETIME, LINK_LIFETIME, Session, Sessions

_ROOT = "/console"
_API = _ROOT + "/api"
_COOKIE, _SECURE_COOKIE = "registry-console", "__Host-registry-console"
#: The page's content security policy: nothing but its own scripts, styles and requests.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

# The header with the secret that the page keeps.
_SECRET = b"X-Console-Secret"
# Of so many cookies with the name of a session's, the one that fits is looked for.
_MOST_COOKIES = 8
# So many services' last heartbeats are asked for at once; their ids fit into a body of 5,000 bytes.
_MOST_SEEN = 60
# The events that change a configuration value, and how many are read at once.
_CHANGES = frozenset({"configuration_value.update", "configuration_value.remove"})
_EVENTS = 1000
# The history of a value has at most this many changes, the newest ones.
_MOST_CHANGES = 100


def _loadFiles() -> Mapping[str, Response]:
    """The responses with the files, by name; the page itself has the empty name too."""
    responses = {}
    for file in (files(__package__) / "assets").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            # No-cache: a browser asks again after an update of the registry.
            headers = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-cache"}
            responses[file.name] = Response(200, headers=headers, text=file.read_bytes())
    responses[""] = responses["index.html"]
    return MappingProxyType(responses)


@attrs.define(eq=False)
class Console:
    """
    Answers the requests of the console, which is served under these *names*, those of the loopback and its address.
    """

    _resource: ApiResource
    _registry: Registry
    _store: IStore
    _identity: Identity
    _sessions: Sessions
    _overview: Overview
    _names: frozenset[str] = attrs.field(converter=origins.namesOf)
    _files: Mapping[str, Response] = attrs.field(init=False, factory=_loadFiles)

    async def makeLink(self, user: UserRecord, root: str) -> dict[str, Any]:
        """A link that opens the page as this user, once, as JSON; *root* is the registry's URL."""
        link = await self._sessions.issueLink(user)
        return {"href": f"{root}{_ROOT}/#once={link}", "expires_in": int(LINK_LIFETIME)}

    def serves(self, request: Request, path: str) -> bool:
        """Whether a request, of which *path* is the decoded path, is for the console."""
        if path == "/":
            return request.method in (b"GET", b"HEAD") and "text/html" in header(request, b"Accept")
        return path == _ROOT or path.startswith(_ROOT + "/")

    async def answer(self, record: RequestRecord, path: str) -> Response:
        """Answer a request that is for the console; raises a fault if it is refused."""
        request = record.request
        record.headers = HEADERS
        record.route = _ROOT
        try:
            origins.check(request, self._names)
        except Fault:
            if path == _API + "/login":
                await self._spend(request)
            raise
        if not path.startswith(_API + "/"):
            return self._page(request, path)
        record.route = path
        api = path.removeprefix(_API)
        if request.method == b"POST" and api == "/login":
            return await self._logIn(request)
        session = await self._session(request)
        user = session.user
        record.user, record.tenant = user.name, user.tenant
        handler = _REQUESTS.get((request.method, api))
        if handler is not None:
            return await handler(self, record, session)
        target = resolve(request.method, f"{API}/{user.tenant}".encode() + request.path.partition(b"/api")[2])
        target.note(record)
        return await self._resource.operate(record, user, target, parseBody(request), partial(self._user, request))

    def _page(self, request: Request, path: str) -> Response:
        if request.method in (b"GET", b"HEAD"):
            if path in ("/", _ROOT):
                return Response(303, headers={"Location": _ROOT + "/"})
            response = self._files.get(path.removeprefix(_ROOT + "/"))
            if response is not None:
                return response
        raise pageNotFound()

    # -- sessions

    async def _session(self, request: Request) -> Session:
        secret = header(request, _SECRET)
        reason = "There is no session; log in"
        for cookie in _cookies(request):
            if cookie and secret and (cookie + secret).isascii():
                try:
                    session = await self._sessions.find(cookie, secret)
                except InvalidToken:
                    reason = "The session has ended; log in again"
                else:
                    recognize(request)
                    return session
        raise _unauthorized(reason)

    async def _user(self, request: Request) -> UserRecord:
        return (await self._session(request)).user

    async def _logIn(self, request: Request) -> Response:
        body = parseBody(request)
        try:
            if "once" in body:
                user = await self._sessions.redeem(_text(body, "once"))
            else:
                user = await self._identity.verify(_text(body, "user"), _text(body, "key"), originOf(request))
        except (InvalidCredentials, InvalidToken):
            raise _unauthorized("Username or api key is invalid")
        recognize(request)
        session = await self._sessions.begin(user)
        described = {**_describe(session), "secret": session.secret}
        return Response(200, described, _setCookie(request, session.cookie, int(LIFETIME)))

    async def _spend(self, request: Request) -> None:
        """Spend the link in a request that is refused."""
        try:
            await self._sessions.redeem(_text(parseBody(request), "once"))
        except (Fault, InvalidToken):
            pass

    async def _logOut(self, record: RequestRecord, session: Session) -> Response:
        await self._sessions.end(session)
        return Response(204, headers=_setCookie(record.request, "", 0))

    async def _getSession(self, record: RequestRecord, session: Session) -> Response:
        return Response(200, _describe(session))

    # -- what only the page asks for

    async def _getHeartbeats(self, record: RequestRecord, session: Session) -> Response:
        ids = parseBody(record.request).get("ids")
        if not isinstance(ids, list) or len(ids) > _MOST_SEEN or not all(isinstance(id, str) for id in ids):
            raise validationError("ids", f"Not an array of at most {_MOST_SEEN} strings")
        return Response(200, {"now": self._overview.now(), "seen": self._registry.lastSeen(session.user.tenant, ids)})

    async def _getOverview(self, record: RequestRecord, session: Session) -> Response:
        return Response(200, await self._overview.report(session.user.tenant))

    async def _getHistory(self, record: RequestRecord, session: Session) -> Response:
        keys = parse_qs(record.request.uri.partition(b"?")[2].decode("latin-1")).get("key", [""])
        changes = await _changesOf(self._store, session.user.tenant, keys[0])
        return Response(200, {"values": changes, "metadata": {"count": len(changes), "next_marker": None}})


_REQUESTS: Mapping[tuple[bytes, str], Callable[[Console, RequestRecord, Session], Awaitable[Response]]] = {
    (b"GET", "/session"): Console._getSession,
    (b"POST", "/logout"): Console._logOut,
    (b"POST", "/heartbeats-seen"): Console._getHeartbeats,
    (b"GET", "/cluster"): Console._getOverview,
    (b"GET", "/value-history"): Console._getHistory,
}


async def _changesOf(store: IStore, tenant: str, key: str) -> list[Mapping[str, Any]]:
    """The newest events of a value that the store still has, oldest first."""
    changes: deque[Mapping[str, Any]] = deque(maxlen=_MOST_CHANGES)
    since = 0
    while True:
        records = await available(store.listEvents(tenant, since, _EVENTS, _CHANGES))
        changes.extend(record.shown for record in records if record.payload["configuration_value_id"] == key)
        if len(records) < _EVENTS:
            return [*changes]
        since = position(records[-1].id) + 1


def _describe(session: Session) -> dict[str, Any]:
    user, role = session.user, session.user.role
    return {
        "user": user.name,
        "tenant": user.tenant,
        "role": role.name,
        "limits": {kind: [*prefixes] for kind, prefixes in role.prefixes().items()},
        "expires": int(session.expires * 1000),
        "extensions": [*EXTENSIONS],
        "address_keys": {"host": [*HOST_KEYS], "port": [*PORT_KEYS]},
        "version": __version__,
    }


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise validationError(name, "Not a string")
    return value


def _unauthorized(details: str) -> Fault:
    # No challenge: a browser would ask for a password in a window of its own.
    return Fault("unauthorizedError", "forbidden", details)


def _cookieName(request: Request, *, isSecure: bool) -> str:
    # Browsers send a cookie to every port of a host, and another registry can be at each.
    port = origins.portOf(header(request, b"Host"))
    return (_SECURE_COOKIE if isSecure else _COOKIE) + (port and f"-{port}")


def _cookies(request: Request) -> list[str]:
    """
    The session's cookie, among others of its name: any server of the host can set one, for more or fewer paths, and a
    browser may have one from here, and another through a proxy with TLS.
    """
    names = {_cookieName(request, isSecure=isSecure) for isSecure in {True, request.isSecure()}}
    lines = request.requestHeaders.getRawHeaders(b"Cookie", [])
    pairs = (pair.strip().partition("=") for line in lines for pair in line.decode("latin-1").split(";"))
    return [value for name, _, value in pairs if name in names][:_MOST_COOKIES]


def _setCookie(request: Request, value: str, seconds: int) -> dict[str, str]:
    # The Origin says what the browser uses, where a proxy ends TLS.
    isSecure = request.isSecure() or header(request, b"Origin").lower().startswith("https://")
    # A browser takes the prefix __Host- only with these two.
    where = "Path=/; Secure" if isSecure else f"Path={_API}"
    name = _cookieName(request, isSecure=isSecure)
    return {"Set-Cookie": f"{name}={value}; {where}; HttpOnly; SameSite=Strict; Max-Age={seconds}"}
