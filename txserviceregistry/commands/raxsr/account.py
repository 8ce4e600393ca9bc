"""``raxsr account``: the limits of the account; and ``raxsr console``, its web console."""

from __future__ import annotations

import webbrowser
from typing import Any

from ...errors import NotFound
from ..outcome import CommandFailed
from .base import ListCommand, RaxsrCommand
from .output import Column
from .parser import Parser


class RateLimits(ListCommand):
    """Show the rate limits of the account, and how much of them is used."""

    example = "raxsr account rate-limits"
    columns = {"rate": Column("Rate"), "window": Column("Window"), "used": Column("Used"), "limit": Column("Limit")}

    async def perform(self) -> Any:
        limits = await self.client.account.getLimits()
        return [{"rate": path, **rate} for path, rate in limits["rate"].items()]


class ResourceLimits(ListCommand):
    """Show the maximum number of objects of each kind in the account."""

    example = "raxsr account resource-limits -f json"
    columns = {"resource": Column("Resource"), "limit": Column("Limit")}

    async def perform(self) -> Any:
        limits = await self.client.account.getLimits()
        return [{"resource": kind, "limit": limit} for kind, limit in limits["resource"].items()]


class Console(RaxsrCommand):
    """Open the registry's web console in a browser, without typing the API key."""

    example = "raxsr console --print"

    def addArguments(self, parser: Parser) -> None:
        shown = "only print the link, which works once and within a minute"
        parser.add_argument("--print", action="store_true", help=shown)

    async def perform(self) -> str:
        try:
            link = await self.client.account.createConsoleLink()
        except NotFound:
            raise CommandFailed("the registry has no web console (it may be turned off with --console off)") from None
        if self.parsed.print:
            return link["href"]
        if webbrowser.open(link["href"]):
            return "The console is open in the browser"
        return f"Open this link in a browser within {link['expires_in']} seconds: {link['href']}"
