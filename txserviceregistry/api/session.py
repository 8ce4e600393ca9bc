"""
Credentials, the session that the Auth API gives for them, and where requests get it from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from zope.interface import Interface

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
    Who one is.

    :ivar username: the user's name.
    :ivar apiKey: the user's key, a secret.
    """

    username: str
    apiKey: str = attrs.field(repr=False)


@attrs.frozen
class Session:
    """
    What the Auth API gives for credentials.

    :ivar token: goes into ``X-Auth-Token``; a secret.
    :ivar tenantId: the account that the user belongs to.
    :ivar expires: when the token ends; ``None`` if that is unknown.
    :ivar catalog: the services there are, as the Auth API lists them.
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


class IAuthenticator(Interface):
    """Where tokens come from."""

    def session() -> Deferred[Session]:
        """
        A session to use now: the one there is, or a new one. However many ask while there is none, one is made.

        :return: a Deferred of one's own. Cancelling it does not disturb the others that wait.
        """

    def invalidate(token: str) -> None:
        """This *token* is not accepted any more. If it is not the current one, nothing happens."""

    def suspect(token: str) -> None:
        """
        Something that may not be the registry refused this *token*. It stays in use, and a new one takes its place as
        soon as there is one. If it is not the current one, nothing happens.
        """


def parseTime(text: object) -> datetime | None:
    """
    An instant in any common form of ISO 8601; without an offset it counts as UTC.

    :return: ``None`` if *text* is none of them.
    """
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, hours, minutes = match.groups()
    try:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        return datetime(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            # A leap second has no place of its own in a datetime.
            min(int(second or 0), 59),
            int((fraction or "0")[:6].ljust(6, "0")),
            timezone(-offset if sign == "-" else offset),
        )
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
