"""Credentials, and the session that the Auth API gives for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from twisted.web.http_headers import Headers

from ..util.faults import faultIn
from .shapes import objectsIn

_REGISTRY_TYPE = "rax:service-registry"

_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?\s*(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)


@attrs.frozen
class Credentials:
    """
    A user.

    :ivar username: the user's name.
    :ivar apiKey: the user's key, a secret.
    """

    username: str
    apiKey: str = attrs.field(repr=False)


@attrs.frozen
class Session:
    """
    The response of the Auth API to credentials.

    :ivar token: the value of ``X-Auth-Token``; a secret.
    :ivar tenantId: the user's account.
    :ivar expires: when the token expires; ``None`` if that is unknown.
    :ivar catalog: the service catalog.
    """

    token: str = attrs.field(repr=False)
    tenantId: str
    expires: datetime | None = None
    catalog: Sequence[Any] = attrs.field(default=(), repr=False)

    def registryUrls(self) -> dict[str, str]:
        """The URLs of the service registries in the catalog, without the tenant, by region."""
        urls = {}
        for entry in objectsIn(self.catalog):
            if entry.get("type") == _REGISTRY_TYPE:
                for endpoint in objectsIn(entry.get("endpoints")):
                    url, region = endpoint.get("publicURL"), endpoint.get("region")
                    if isinstance(url, str) and url.strip("/"):
                        name = region if isinstance(region, str) else ""
                        urls[name] = url.rstrip("/").removesuffix(f"/{self.tenantId}")
        return urls


def parseTime(text: object) -> datetime | None:
    """A time in any common form of ISO 8601, in UTC without an offset; ``None`` if *text* is none of them."""
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return None
    *numbers, fraction, _, sign, hours, minutes = match.groups()
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        # A datetime can't be a leap second.
        return datetime(year, month, day, hour, minute, min(second, 59), microsecond, zone)
    except ValueError:
        return None


def refusesToken(headers: Headers, value: object) -> bool:
    """
    Whether a 401 refuses the auth token, and is not a proxy's own.

    :param headers: the response's.
    :param value: its JSON; ``None`` if it is not JSON.
    """
    schemes = headers.getRawHeaders(b"WWW-Authenticate") or ()
    return any(scheme.lower().startswith(b"keystone ") for scheme in schemes) or faultIn(value, 401) is not None
