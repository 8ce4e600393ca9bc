"""``client.account``: the limits of the account, and its web console."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ..http.messages import Response
from ..types import ConsoleLink, Limits
from .shapes import readConsoleLink, readLimits
from .transport import APIGroup


class AccountClient(APIGroup):
    """The limits of the account, and links to its web console."""

    def getLimits(self) -> Deferred[Limits]:
        """The account's limits: ``{"resource": {type: limit}, "rate": {pattern: {"limit", "used", "window"}}}``."""
        return self._transport.request("GET", "/limits").addCallback(Response.read, readLimits)

    def createConsoleLink(self) -> Deferred[ConsoleLink]:
        """
        Make a link that opens the web console as this client's user, once and within a minute: ``{"href",
        "expires_in"}``, a secret. Fails with ``NotFound`` if the registry has no console.
        """
        return self._transport.request("POST", "/console-links").addCallback(Response.read, readConsoleLink)
