"""
The pages beside the API: what an operator, or a program that looks after the registry, asks it.

They need no token, and are outside ``/v1.0`` and ``/v2.0``: the protocol knows nothing of them. They are framed as all
answers are (:mod:`txserviceregistry.registry.http`), and answer ``GET`` and ``HEAD``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from twisted.web.server import Request

from . import openapi
from .health import Health
from .http import Answer, baseUrl

__all__ = ["NO_PAGES", "Operations", "Pages"]

#: By path, what answers a request for it.
Pages: TypeAlias = Mapping[str, Callable[[Request], Awaitable[Answer]]]

NO_PAGES: Pages = MappingProxyType({})


class Operations:
    """
    Answers the pages.

    :param health: of this registry.
    :ivar pages: the table of them: by path, what answers it.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self.pages: Pages = MappingProxyType({"/health": self._getHealth, openapi.PATH: self._getDescription})

    async def _getHealth(self, request: Request) -> Answer:
        report = await self._health.report()
        body = {
            "store": {"name": report.store, "state": report.state},
            "uptime": round(report.uptime, 3),
            "version": report.version,
        }
        # What was true a second ago must not be told by a cache an hour later.
        return Answer(200 if report.isWell else 503, body, {"Cache-Control": "no-store"})

    async def _getDescription(self, request: Request) -> Answer:
        text = openapi.document(baseUrl(request))
        return Answer(200, headers={"Content-Type": "application/json; charset=UTF-8"}, text=text)
