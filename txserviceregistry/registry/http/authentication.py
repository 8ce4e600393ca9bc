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

from ..faults import Fault, badRequest, forbidden
from ..identity import Identity, InvalidCredentials, InvalidToken, IssuedToken
from ..stores.interfaces import UserRecord
from .connections import originOf, recognize
from .messages import API, AUTH, Response, baseUrl, parseBody

#: The kinds of credentials, and the name of the API key in each. The key is the only password that there is.
CREDENTIALS = {"RAX-KSKEY:apiKeyCredentials": "apiKey", "passwordCredentials": "password"}

# The entries of the catalog: name, type, and whether it has the region. Clients of different ages look for the
# tenant in each of these four; two of them take no region.
_CATALOG = (
    ("cloudServersOpenStack", "compute", True),
    ("cloudServers", "compute", False),
    ("cloudMonitoring", "rax:monitor", False),
    ("serviceRegistry", "rax:service-registry", True),
)
_INVALID = "Username or api key is invalid"


@attrs.frozen
class Authenticator:
    _identity: Identity

    async def userOf(self, request: Request) -> UserRecord:
        """
        The user who sends a request, or the fault 401, or 403 for credentials that a page of another origin sends.

        :raises Overloaded: if too many API keys are waiting to be checked.
        """
        token, basic = _shown(request)
        if basic is not None:
            if _isForeign(request):
                text = "Basic credentials are not accepted from a web page of another origin; send X-Auth-Token"
                raise forbidden(text)
            try:
                user = await self._identity.verify(*_pair(basic), originOf(request))
            except (ValueError, InvalidCredentials):
                raise _unauthorized(request, _INVALID)
        else:
            if not token:
                raise _unauthorized(request, "No authentication token provided")
            try:
                user = self._identity.knownUser(token) or await self._identity.userOf(token)
            except InvalidToken:
                raise invalidToken(request)
        recognize(request)
        return user

    async def issueToken(self, request: Request) -> Response:
        """Answer a ``POST /tokens``, also where it fails; raises Overloaded as above."""
        code, kind, message = 401, "unauthorized", _INVALID
        try:
            token = await self._identity.authenticate(*credentials(parseBody(request)), originOf(request))
        except Fault as fault:
            code, kind, message = fault.code, "badRequest", fault.message
        except InvalidCredentials:
            pass
        else:
            recognize(request)
            return Response(200, access(token, f"{baseUrl(request)}{API}/{token.tenant}"))
        return Response(code, {kind: {"code": code, "message": message}})

    def vouchesFor(self, request: Request) -> bool:
        """Whether a request shows a token or credentials that were valid when the store was last asked for them."""
        try:
            token, basic = _shown(request)
            if basic is not None:
                return self._identity.remembers(*_pair(basic))
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
    given = request.requestHeaders.getRawHeaders(b"Authorization") or [b""]
    if len(given) > 1:
        raise badRequest("Several Authorization headers", "Send one Authorization header, or X-Auth-Token")
    scheme, _, value = given[0].decode("latin-1").partition(" ")
    if scheme.lower() == "basic":
        return "", value
    return value.strip() if scheme.lower() == "bearer" else "", None


def _pair(basic: str) -> tuple[str, str]:
    """The user's name and API key in the value of a Basic authorization; the ValueError means that it has none."""
    username, _, key = base64.b64decode(basic.strip(), validate=True).decode("utf-8").partition(":")
    if not username or not key:
        raise ValueError("no name, or no key")
    return username, key


def _isForeign(request: Request) -> bool:
    headers = request.requestHeaders
    sites = headers.getRawHeaders(b"Sec-Fetch-Site")
    if sites is not None:
        return not {b"same-origin", b"none"}.issuperset(sites)
    # Browsers send Sec-Fetch-Site over TLS and to this machine only, and Origin with each request that may change
    # something.
    hosts = headers.getRawHeaders(b"Host")
    return any([each.partition(b"://")[2]] != hosts for each in headers.getRawHeaders(b"Origin") or ())


def invalidToken(request: Request) -> Fault:
    return _unauthorized(request, "Invalid or expired authentication token")


def _unauthorized(request: Request, details: str) -> Fault:
    challenges = [f'Keystone uri="{baseUrl(request)}{AUTH}"', "Bearer"]
    names = (name.lower() for name, _ in request.requestHeaders.getAllRawHeaders())
    if not any(name.startswith(b"sec-fetch-") for name in names):
        challenges.append('Basic realm="service registry", charset="UTF-8"')
    return Fault("unauthorizedError", "forbidden", details, {"WWW-Authenticate": tuple(challenges)})


def credentials(body: Mapping[str, Any]) -> tuple[str, str]:
    """The user's name and API key in the body of a ``POST /tokens``; the fault 400 names what was expected."""

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
    # The one offset and the one fraction that every old client can read.
    expires = datetime.fromtimestamp(token.expires, timezone(timedelta(hours=-6))).strftime("%Y-%m-%dT%H:%M:%S")
    endpoint = {"tenantId": token.tenant, "publicURL": url}
    catalog = [
        {"name": name, "type": type, "endpoints": [{"region": "LOCAL", **endpoint} if hasRegion else endpoint]}
        for name, type, hasRegion in _CATALOG
    ]
    tenant = {"id": token.tenant, "name": token.tenant}
    return {
        "access": {
            "token": {"id": token.id, "expires": f"{expires}.000-06:00", "tenant": tenant},
            "user": {"id": token.user, "name": token.user, "roles": []},
            "serviceCatalog": catalog,
        }
    }
