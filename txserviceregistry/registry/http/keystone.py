"""
The JSON of the Auth API: credentials and access.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from ..faults import Fault, badRequest
from ..identity.identity import IssuedToken

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


def credentials(body: Mapping[str, Any]) -> tuple[str, str]:
    """
    The user's name and API key in the body of a ``POST /tokens``; or the fault 400, which names what was expected.
    """
    auth = body.get("auth")
    if not isinstance(auth, dict):
        raise _malformed("auth")
    kind = next((kind for kind in CREDENTIALS if kind in auth), None)
    if kind is None:
        raise _malformed(next(iter(CREDENTIALS)))
    given = auth[kind]
    if not isinstance(given, dict):
        raise _malformed(kind)
    username, key = (given.get(name) for name in ("username", CREDENTIALS[kind]))
    if not isinstance(username, str) or not username:
        raise _malformed("username")
    if not isinstance(key, str) or not key:
        raise _malformed(CREDENTIALS[kind])
    return username, key


def access(token: IssuedToken, url: str) -> dict[str, Any]:
    """The response to valid credentials; *url* is that of the tenant, without a slash at the end."""
    expires = datetime.fromtimestamp(token.expires, _EXPIRES_ZONE).strftime(_EXPIRES)
    endpoint = {"tenantId": token.tenant, "publicURL": url}
    regional = {"region": REGION, **endpoint}
    return {
        "access": {
            "token": {
                "id": token.id,
                "expires": expires,
                "tenant": {"id": token.tenant, "name": token.tenant},
            },
            "user": {"id": token.user, "name": token.user, "roles": []},
            "serviceCatalog": [
                {"name": name, "type": type, "endpoints": [regional if hasRegion else endpoint]}
                for name, type, hasRegion in CATALOG
            ],
        }
    }


def _malformed(name: str) -> Fault:
    return badRequest(f"Expecting {name}")
