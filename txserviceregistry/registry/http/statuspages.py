"""
The pages beside the API, for operators and monitoring: health, metrics and the description of the API.

They need no token, are outside ``/v1.0`` and ``/v2.0``, and take ``GET`` and ``HEAD``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.server import Request

from ..._version import installCommand
from ..faults import NO_STORE, forbidden
from ..statistics import Sources
from . import openapi
from .health import OK, Health
from .messages import Response, baseUrl

if TYPE_CHECKING:
    from .metrics import Metrics

#: By path, the handlers of pages.
Pages: TypeAlias = Mapping[str, Callable[[Request], Awaitable[Response]]]

NO_PAGES: Pages = MappingProxyType({})

#: Who may read the metrics: every client, clients on this machine, none.
ANYWHERE = "anywhere"
LOOPBACK = "loopback"
OFF = "off"

_NOT_INSTALLED = f"""\
No metrics: prometheus_client is not installed. Install it where the registry runs:

    {installCommand("metrics")}
""".encode()


class StatusPages:
    """The handlers of the pages, by path; the *audience* may have the metrics."""

    def __init__(self, health: Health, sources: Sources, audience: str = LOOPBACK) -> None:
        self._health = health
        self._sources = sources
        self._audience = audience
        self._metrics: Metrics | None = None
        pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/health": self._getHealth,
            "/health/ready": self._getHealth,
            "/health/live": self._getLife,
            openapi.PATH: self._getDescription,
        }
        if audience != OFF:
            pages["/metrics"] = self._getMetrics
        self.pages: Pages = pages

    async def _getHealth(self, request: Request) -> Response:
        report = await self._health.report()
        return Response(200 if report["store"]["state"] == OK else 503, report, NO_STORE)

    async def _getLife(self, request: Request) -> Response:
        # That it responds is the news.
        return Response(200, {"state": "alive"}, NO_STORE)

    async def _getDescription(self, request: Request) -> Response:
        return Response(200, text=openapi.document(baseUrl(request)))

    async def _getMetrics(self, request: Request) -> Response:
        if self._audience != ANYWHERE and not _isOnThisMachine(request.getClientAddress()):
            raise forbidden("Metrics are available only on the registry's machine (see its option --metrics)")
        try:
            from .metrics import CONTENT_TYPE, Metrics
        except ImportError:
            return Response(501, headers={"Content-Type": "text/plain; charset=utf-8"}, text=_NOT_INSTALLED)
        self._metrics = self._metrics or Metrics(self._sources)
        return Response(200, headers={"Content-Type": CONTENT_TYPE}, text=self._metrics.text())


def _isOnThisMachine(address: IAddress) -> bool:
    if isinstance(address, (IPv4Address, IPv6Address)):
        host = ipaddress.ip_address(address.host.partition("%")[0])
        mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
        return (mapped or host).is_loopback
    return isinstance(address, UNIXAddress)
