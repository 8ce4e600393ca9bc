"""
Authentication of requests by a token or credentials, and tokens for credentials.

A request shows a token in ``X-Auth-Token`` or as ``Authorization: Bearer``, or a user's name and API key as
``Authorization: Basic``. Browsers remember Basic credentials for a host and send them for pages on all of its ports, so
that these are not accepted from pages of another origin, and pages are never asked for them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from twisted.web.server import Request

from ..faults import Fault, badRequest, forbidden, unauthorized
from ..identity.identity import Identity, InvalidCredentials, InvalidToken, IssuedToken
from ..stores.interfaces import UserRecord
from .admission import originOf, recognize
from .messages import API, AUTH, Response, baseUrl, parseBody

#: The kinds of credentials, and the name of the API key in each. The key is the only password that there is.
CREDENTIALS = {"RAX-KSKEY:apiKeyCredentials": "apiKey", "passwordCredentials": "password"}
#: The region of the registry.
REGION = "LOCAL"
#: The entries of the catalog: name, type, and whether it has the region. Clients of different ages look for the
#: tenant in each of these four; two of them take no region.
CATALOG = (
    ("cloudServersOpenStack", "compute", True),
    ("cloudServers", "compute", False),
    ("cloudMonitoring", "rax:monitor", False),
    ("serviceRegistry", "rax:service-registry", True),
)

# The one offset and the one fraction that every old client can read.
_EXPIRES = "%Y-%m-%dT%H:%M:%S.000-06:00"
_EXPIRES_ZONE = timezone(timedelta(hours=-6))

# A browser's Sec-Fetch-Site of requests that no page of another origin has made.
_OWN_SITES = frozenset({b"same-origin", b"none"})


@attrs.frozen
class Authenticator:
    _identity: Identity

    async def userOf(self, request: Request) -> UserRecord:
        """
        The user who sends a request.

        :raises Fault: 401 if it shows neither a valid token nor valid credentials; 403 for credentials that a page of
            another origin sends.
        :raises Overloaded: if too many API keys are waiting to be checked.
        """
        token, pair = _shown(request)
        if pair is None:
            user = self._identity.knownUser(token) or await self._userOfToken(request, token)
        elif _isForeign(request):
            raise forbidden("Basic credentials are not accepted from a web page of another origin; send X-Auth-Token")
        else:
            try:
                user = await self._identity.verify(*_basic(pair), originOf(request))
            except (ValueError, InvalidCredentials):
                raise _unauthorized(request, "Username or api key is invalid")
        recognize(request)
        return user

    async def _userOfToken(self, request: Request, token: str) -> UserRecord:
        if not token:
            raise _unauthorized(request, "No authentication token provided")
        try:
            return await self._identity.userOf(token)
        except InvalidToken:
            raise invalidToken(request)

    async def issueToken(self, request: Request) -> Response:
        """Answer a ``POST /tokens``, also where it fails; raises Overloaded as above."""
        try:
            username, key = credentials(parseBody(request))
        except Fault as fault:
            return _refusal("badRequest", fault.code, fault.message)
        try:
            token = await self._identity.authenticate(username, key, originOf(request))
        except InvalidCredentials:
            return _refusal("unauthorized", 401, "Username or api key is invalid")
        recognize(request)
        return Response(200, access(token, f"{baseUrl(request)}{API}/{token.tenant}"))

    def vouchesFor(self, request: Request) -> bool:
        """
        Whether a request shows a token or credentials that were valid when the store was last asked for them.
        """
        try:
            token, pair = _shown(request)
            if pair is not None:
                return self._identity.remembers(*_basic(pair))
            if not token and request.method == b"POST" and request.path.startswith(AUTH.encode()):
                return self._identity.remembers(*credentials(parseBody(request)))
        except (Fault, ValueError):
            return False
        return self._identity.isFamiliar(token)


def _shown(request: Request) -> tuple[str, str | None]:
    """The token that a request shows, empty if there is none; and the value of a Basic authorization instead of one."""
    tokens = request.requestHeaders.getRawHeaders(b"X-Auth-Token")
    if tokens is not None:
        return tokens[0].decode("latin-1"), None
    given = request.requestHeaders.getRawHeaders(b"Authorization") or []
    if len(given) > 1:
        raise badRequest("Several Authorization headers", "Send one Authorization header, or X-Auth-Token")
    scheme, _, value = "".join(each.decode("latin-1") for each in given).partition(" ")
    if scheme.lower() == "basic":
        return "", value
    return value.strip() if scheme.lower() == "bearer" else "", None


def invalidToken(request: Request) -> Fault:
    """401: the token of a request is invalid, or another tenant's."""
    return _unauthorized(request, "Invalid or expired authentication token")


def _unauthorized(request: Request, details: str) -> Fault:
    challenges = [f'Keystone uri="{baseUrl(request)}{AUTH}"', "Bearer"]
    names = (name.lower() for name, _ in request.requestHeaders.getAllRawHeaders())
    if not any(name.startswith(b"sec-fetch-") for name in names):
        challenges.append('Basic realm="service registry", charset="UTF-8"')
    return unauthorized(details, tuple(challenges))


def _isForeign(request: Request) -> bool:
    """Whether a browser sends the request for a page of another origin."""
    headers = request.requestHeaders
    sites = headers.getRawHeaders(b"Sec-Fetch-Site")
    if sites is not None:
        return not _OWN_SITES.issuperset(sites)
    # Browsers send Sec-Fetch-Site over TLS and to this machine only, and Origin with each request that may change
    # something.
    hosts = headers.getRawHeaders(b"Host")
    return any([each.partition(b"://")[2]] != hosts for each in headers.getRawHeaders(b"Origin") or ())


def _basic(value: str) -> tuple[str, str]:
    """The user's name and API key in the value of a Basic authorization; the ValueError means that it has none."""
    username, _, key = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    if not username or not key:
        raise ValueError("no name, or no key")
    return username, key


def _refusal(kind: str, code: int, message: str) -> Response:
    return Response(code, {kind: {"code": code, "message": message}})


def credentials(body: Mapping[str, Any]) -> tuple[str, str]:
    """
    The user's name and API key in the body of a ``POST /tokens``; or the fault 400, which names what was expected.
    """

    def member(of: Mapping[str, Any], name: str, type: type[Any] = str) -> Any:
        value = of.get(name)
        if not isinstance(value, type) or value == "":
            raise badRequest(f"Expecting {name}")
        return value

    auth = member(body, "auth", dict)
    kind = next((kind for kind in CREDENTIALS if kind in auth), next(iter(CREDENTIALS)))
    given = member(auth, kind, dict)
    return member(given, "username"), member(given, CREDENTIALS[kind])


def access(token: IssuedToken, url: str) -> dict[str, Any]:
    """The response to valid credentials; *url* is that of the tenant, without a slash at the end."""
    expires = datetime.fromtimestamp(token.expires, _EXPIRES_ZONE).strftime(_EXPIRES)
    endpoint = {"tenantId": token.tenant, "publicURL": url}
    regional = {"region": REGION, **endpoint}
    return {
        "access": {
            "token": {"id": token.id, "expires": expires, "tenant": {"id": token.tenant, "name": token.tenant}},
            "user": {"id": token.user, "name": token.user, "roles": []},
            "serviceCatalog": [
                {"name": name, "type": type, "endpoints": [regional if hasRegion else endpoint]}
                for name, type, hasRegion in CATALOG
            ],
        }
    }
