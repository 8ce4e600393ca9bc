"""What the rest of the HTTP layer knows of the web console."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from twisted.web.server import Request

from ..faults import pageNotFound
from ..stores.interfaces import UserRecord
from .call import Call
from .messages import Response, baseUrl
from .requestlog import RequestRecord


class Console(Protocol):
    """The console: :class:`txserviceregistry.registry.console.console.Console`."""

    ROOT: str
    LINK_SECONDS: float

    def serves(self, request: Request, path: str) -> bool: ...

    def answer(self, record: RequestRecord, path: str) -> Awaitable[Response]: ...

    def issueLink(self, user: UserRecord) -> Awaitable[str]: ...


class ConsoleHandlers:
    """
    The handler of links to the console.

    :ivar console: the console, if there is one.
    """

    console: Console | None = None

    async def createConsoleLink(self, call: Call) -> Response:
        if self.console is None:
            raise pageNotFound()
        link = await self.console.issueLink(call.user)
        href = f"{baseUrl(call.record.request)}{self.console.ROOT}/#once={link}"
        return Response(201, {"href": href, "expires_in": int(self.console.LINK_SECONDS)})
