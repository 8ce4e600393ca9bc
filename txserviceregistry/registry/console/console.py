"""The console's requests: the files of the page, its sessions, and the API as the user of a session."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from secrets import token_urlsafe
from typing import Any, cast
from urllib.parse import parse_qs

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from ..._version import __version__
from ...util.fields import HOST_KEYS, PORT_KEYS
from ..core import Registry
from ..faults import Fault, forbidden, pageNotFound, validationError
from ..http.connections import ipOf, originOf, recognize
from ..http.messages import API, EXTENSIONS, Response, header, parseBody
from ..http.operations import resolve
from ..http.pages import Health
from ..http.requestlog import RequestRecord
from ..http.resource import ApiResource
from ..identity import Identity, InvalidCredentials, InvalidToken
from ..roles import Role
from ..storecache import StoreCache
from ..stores.interfaces import ISharedStore, IStore, NoSuchObject, TokenRecord, UserRecord
from ..tasks import available

#: How long a session lasts, and a link that begins one, in seconds.
LIFETIME = 8 * 3600.0
LINK_LIFETIME = 60.0

_ROOT = "/console"
# Below it everything is there as below /v1.0/{tenant}, with the same rules and roles, and what only the page needs.
_API = _ROOT + "/api"
_COOKIE, _SECURE_COOKIE = "registry-console", "__Host-registry-console"
# The modules of the page, each after those that it imports, and the statements that are only for separate modules.
_ORDER = """time turns dom diff api model heartbeat event table service services events configuration locks cluster \
account app"""
_IMPORT = re.compile(r'^import (\{.*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
# The page may use nothing but its own script, styles and requests.
_POLICY = """default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src 'self'; \
form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"""
_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::([0-9]{1,5}))?", re.ASCII)

_SECRET = b"X-Console-Secret"  # the header with the secret that the page keeps
_MOST_COOKIES = 8  # of so many with the name of a session's, the one that fits is looked for
# So many services' last heartbeats are asked for at once; their ids fit into a body of 5,000 bytes.
_MOST_SEEN = 60
_MOST_CHANGES = 100  # of a value's, the newest ones


@attrs.frozen
class Session:
    user: UserRecord
    expires: float  # in seconds since the epoch
    cookie: str = attrs.field(repr=False)
    secret: str = attrs.field(repr=False)  # the page sends it in a header


def _hash(purpose: str, *secrets: str) -> str:
    text = json.dumps(secrets).encode("ascii")
    # The person makes it another function than the hash of auth tokens, and one for each purpose.
    return hashlib.blake2b(text, digest_size=32, person=b"console-" + purpose.encode("ascii")).hexdigest()


def _roleDigest(role: Role) -> str:
    text = json.dumps(role.asJson(), sort_keys=True).encode("ascii")
    return hashlib.blake2b(text, digest_size=8, person=b"console-role").hexdigest()


def _read(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text("utf-8")


def _asFunction(module: str) -> str:
    text = _read(f"{module}.js")
    code = _EXPORT.sub("", _IMPORT.sub(r"const \1 = $\2;", text))
    return f"const ${module} = (() => {{\n{code}return {{ {', '.join(_EXPORT.findall(text))} }};\n}})();\n"


@cache
def loadPage() -> tuple[Mapping[str, str], Mapping[str, Response]]:
    """The headers of all responses, and the files by name. One has all code, so that no cache mixes two releases."""
    script, style = "".join(map(_asFunction, _ORDER.split())), _read("style.css")
    hashes = [b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    page = _read("index.html").replace("</style>", f"{style}</style>").replace("</script>", f"{script}</script>")
    security = {"Content-Security-Policy": _POLICY.format(*hashes), "X-Content-Type-Options": "nosniff"}
    responses = {}
    for name, kind, text in (("", "text/html", page), ("mark.svg", "image/svg+xml", _read("mark.svg"))):
        # No-cache: a browser asks again after an update of the registry.
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-cache"}
        responses[name] = Response(200, headers=headers, text=text.encode())
    return {**security, "Referrer-Policy": "no-referrer"}, responses


@attrs.define(eq=False, repr=False)
class Console:
    """
    Answers the requests of the console, which is served under these *names* too.

    A session needs two random secrets, because a browser sends cookies to every port of a host. The store keeps a hash
    of both, so that sessions work on every node and after a restart, and end with the user's API key. A session has the
    digest of its user's role, and ends when the role changes.
    """

    _resource: ApiResource
    _registry: Registry
    _store: IStore
    _identity: Identity
    _health: Health
    _clock: IReactorTime
    _wallClock: Callable[[], float] = time.time
    _names: Collection[str] = ()
    # Of sessions, and of links that begin one.
    _records: StoreCache[tuple[TokenRecord, UserRecord]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._records = StoreCache(self._store.getToken, self._clock)
        loadPage()  # an upgrade can replace the files while the registry runs

    async def makeLink(self, user: UserRecord, root: str) -> dict[str, Any]:
        """A link that opens the page as this user, once, as JSON; *root* is the registry's URL."""
        link = token_urlsafe(32)
        await self._add(_hash("link", link), user, LINK_LIFETIME)
        return {"href": f"{root}{_ROOT}/#once={link}", "expires_in": int(LINK_LIFETIME)}

    def serves(self, request: Request, path: str) -> bool:
        if path == "/":
            return request.method in (b"GET", b"HEAD") and "text/html" in header(request, b"Accept")
        return path == _ROOT or path.startswith(_ROOT + "/")

    async def answer(self, record: RequestRecord, path: str) -> Response:
        """Answer a request that is for the console; raises a fault if it is refused."""
        request = record.request
        record.headers = loadPage()[0]
        record.route = _ROOT
        try:
            self._checkOrigin(request)
        except Fault:
            if path == _API + "/login":
                with suppress(Fault, InvalidToken):  # a link is spent, though it is refused
                    await self._redeem(_text(parseBody(request), "once"))
            raise
        if not path.startswith(_API + "/"):
            return self._page(request, path)
        api = path.removeprefix(_API)
        handler = _REQUESTS.get((request.method, api))
        # Not any path, because each route is counted.
        record.route = _API if handler is None else path
        if request.method == b"POST" and api == "/login":
            return await self._logIn(request)
        session = await self._session(request)
        user = session.user
        record.user, record.tenant = user.name, user.tenant
        if handler is not None:
            return await handler(self, request, session)
        target = resolve(request.method, f"{API}/{user.tenant}".encode() + request.path.partition(b"/api")[2])
        target.note(record)
        if target.operation is not None and target.operation.name == "createConsoleLink":
            # It would outlive the session, and a logout.
            raise forbidden("A session can't begin others; use an API key")

        async def authenticate() -> UserRecord:
            return (await self._session(request)).user

        return await self._resource.operate(record, user, target, parseBody(request), authenticate)

    def _checkOrigin(self, request: Request) -> None:
        # A page of another site can let a browser connect to this machine under a name of its own (DNS rebinding). It
        # has no names of the loopback, no address, and none that the operator has listed.
        host = header(request, b"Host")
        name, _ = splitHost(host)
        own = {splitHost(each)[0] for each in self._names}
        if not (name in own or _isLoopback(name) or name == str(ipOf(request.getHost()))):
            raise forbidden(f"The console is not served under the name {name[:100]!r} (see --console-host)")
        origin = header(request, b"Origin")
        if not origin:
            if request.method not in (b"GET", b"HEAD"):
                raise forbidden("The request has no Origin header")
        elif origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise forbidden(f"Origin {origin[:90]!r} is not Host {host[:90]!r}: another site, or a proxy changes Host")

    def _page(self, request: Request, path: str) -> Response:
        if request.method in (b"GET", b"HEAD"):
            if path in ("/", _ROOT):
                return Response(303, headers={"Location": _ROOT + "/"})
            if response := loadPage()[1].get(path.removeprefix(_ROOT + "/")):
                return response
        raise pageNotFound()

    # -- sessions and links

    async def _add(self, tokenHash: str, user: UserRecord, seconds: float) -> float:
        expires = float(int(self._wallClock() + seconds))
        record = TokenRecord(tokenHash, user.name, user.tenant, expires)
        await self._store.addToken(record)
        try:
            await self._identity.confirm(record, user)
        except InvalidCredentials:
            raise _unauthorized("The API key of the user has changed")
        return expires

    async def _get(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        """Raises InvalidToken if there is no such session or link, or it has ended."""
        try:
            found = self._records.recent(tokenHash) or await self._records.get(tokenHash)
        except NoSuchObject:
            raise InvalidToken()
        if found[0].expires <= self._wallClock():
            raise InvalidToken()
        return found

    async def _remove(self, tokenHash: str) -> bool:
        removed = await self._store.removeToken(tokenHash)
        self._records.forget(tokenHash)
        return removed

    async def _redeem(self, link: str) -> UserRecord:
        """The user to whom a link was issued; it is spent."""
        _, user = await self._get(_hash("link", link))
        # Of several requests at the same time, on any node, one removes it.
        if not await self._remove(_hash("link", link)):
            raise InvalidToken()
        return user

    async def _session(self, request: Request) -> Session:
        secret = header(request, _SECRET)
        reason = "There is no session; log in"
        # Any server of the host can set a cookie of this name, for more or fewer paths, and a browser may have one from
        # here, and another through a proxy with TLS.
        names = {_cookieName(request, isSecure=isSecure) for isSecure in {True, request.isSecure()}}
        lines = request.requestHeaders.getRawHeaders(b"Cookie", [])
        pairs = [pair.strip().partition("=") for line in lines for pair in line.decode("latin-1").split(";")]
        for cookie in [value for name, _, value in pairs if name in names][:_MOST_COOKIES]:
            if cookie and secret and (cookie + secret).isascii():
                reason = "The session has ended; log in again"
                with suppress(InvalidToken):
                    record, user = await self._get(_hash("session", cookie, secret))
                    if cookie.rpartition(".")[2] == _roleDigest(user.role):
                        recognize(request)
                        return Session(user, record.expires, cookie, secret)
        raise _unauthorized(reason)

    async def _logIn(self, request: Request) -> Response:
        body = parseBody(request)
        try:
            if "once" in body:
                user = await self._redeem(_text(body, "once"))
            else:
                user = await self._identity.verify(_text(body, "user"), _text(body, "key"), originOf(request))
        except (InvalidCredentials, InvalidToken):
            raise _unauthorized("Username or api key is invalid")
        recognize(request)
        cookie, secret = f"{token_urlsafe(32)}.{_roleDigest(user.role)}", token_urlsafe(32)
        expires = await self._add(_hash("session", cookie, secret), user, LIFETIME)
        body = {**_describe(Session(user, expires, cookie, secret)), "secret": secret}
        return Response(200, body, _setCookie(request, cookie, int(LIFETIME)))

    async def _logOut(self, request: Request, session: Session) -> Response:
        await self._remove(_hash("session", session.cookie, session.secret))
        return Response(204, headers=_setCookie(request, "", 0))

    async def _getSession(self, request: Request, session: Session) -> Response:
        return Response(200, _describe(session))

    # -- what only the page asks for

    async def _getHeartbeats(self, request: Request, session: Session) -> Response:
        ids = parseBody(request).get("ids")
        if not isinstance(ids, list) or len(ids) > _MOST_SEEN or not all(isinstance(id, str) for id in ids):
            raise validationError("ids", f"Not an array of at most {_MOST_SEEN} strings")
        seen = self._registry.lastSeen(session.user.tenant, ids)
        return Response(200, {"now": int(self._wallClock() * 1000), "seen": seen})

    async def _getOverview(self, request: Request, session: Session) -> Response:
        registry, store = self._registry, cast(Any, self._store)
        members = store.members if ISharedStore.providedBy(store) else []
        nodes = [
            {"name": name, "is_this": place == 0, "may_acknowledge": None if place else store.isValid}
            for place, name in enumerate(members)
        ]
        figures = {
            "services": registry.counts().get(session.user.tenant, 0),
            "subscribers": registry.followers.count + registry.feed.streams.places.count,
            "heartbeats": registry.engine.heartbeats,
            "requests": sum(sum(each.codes.values()) for each in self._resource.requestLog.routes.values()),
        }
        return Response(200, {**await self._health.report(), "figures": figures, "nodes": nodes})

    async def _getHistory(self, request: Request, session: Session) -> Response:
        """The newest changes of a value that the store still has, oldest first."""
        (key, *_) = parse_qs(request.uri.partition(b"?")[2].decode("latin-1")).get("key", [""])
        changes = await available(self._store.listChanges(session.user.tenant, key, _MOST_CHANGES))
        metadata = {"count": len(changes), "next_marker": None}
        return Response(200, {"values": [change.shown for change in changes], "metadata": metadata})


_REQUESTS: Mapping[tuple[bytes, str], Callable[[Console, Request, Session], Awaitable[Response]]] = {
    (b"GET", "/session"): Console._getSession,
    (b"POST", "/logout"): Console._logOut,
    (b"POST", "/heartbeats-seen"): Console._getHeartbeats,
    (b"GET", "/cluster"): Console._getOverview,
    (b"GET", "/value-history"): Console._getHistory,
}


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


def splitHost(host: str) -> tuple[str, str]:
    """The name of a ``Host`` header, in lower case, with IP addresses in their shortest form, and the port, or ""."""
    if (found := _HOST.fullmatch(host.lower())) is None:
        return "", ""
    name = (found[1] or found[2]).removesuffix(".")
    with suppress(ValueError):
        name = str(ipaddress.ip_address(name))
    return name, found[3] or ""


def _isLoopback(name: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _cookieName(request: Request, *, isSecure: bool) -> str:
    # Browsers send a cookie to every port of a host, and another registry can be at each.
    _, port = splitHost(header(request, b"Host"))
    return (_SECURE_COOKIE if isSecure else _COOKIE) + (port and f"-{port}")


def _setCookie(request: Request, value: str, seconds: int) -> dict[str, str]:
    # The Origin says what the browser uses, where a proxy ends TLS.
    isSecure = request.isSecure() or header(request, b"Origin").lower().startswith("https://")
    # A browser takes the prefix __Host- only with these two.
    where = "Path=/; Secure" if isSecure else f"Path={_API}"
    name = _cookieName(request, isSecure=isSecure)
    return {"Set-Cookie": f"{name}={value}; {where}; HttpOnly; SameSite=Strict; Max-Age={seconds}"}
