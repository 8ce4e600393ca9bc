"""``client.account``: the limits of the account, and its web console."""

from __future__ import annotations

from ..types import ConsoleLink, Limits
from ..util.deferred import returnsDeferred
from .shapes import readConsoleLink, readLimits
from .transport import APIGroup


class AccountClient(APIGroup):
    """The limits of the account, and links to its web console."""

    @returnsDeferred
    async def getLimits(self) -> Limits:
        """
        Get the account's limits: ``{"resource": {type: limit}, "rate": {pattern: {"limit", "used", "window"}}}``. Fails
        with a :class:`~txserviceregistry.errors.ServiceRegistryError`.
        """
        return await self._get("/limits", readLimits)

    @returnsDeferred
    async def createConsoleLink(self) -> ConsoleLink:
        """
        Make a link that opens the web console as this client's user, once and within a minute: ``{"href",
        "expires_in"}``, a secret. Fails with a :class:`~txserviceregistry.errors.NotFound` if the registry has no
        console.
        """
        response = await self._transport.request("POST", "/console-links")
        return response.read(readConsoleLink)
