"""``raxsr console``: opens the web console."""

from __future__ import annotations

import argparse
import webbrowser
from typing import TYPE_CHECKING

from ...errors import NotFound
from ..outcome import CommandFailed
from .base import RaxsrCommand
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client


class Console(RaxsrCommand):
    """Open the registry's web console in a browser, without typing the API key."""

    example = "raxsr console --print"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument(
            "--print", action="store_true", help="only print the link, which works once and within a minute"
        )

    async def perform(self, client: Client, parsed: argparse.Namespace) -> str:
        try:
            link = await client.account.createConsoleLink()
        except NotFound:
            raise CommandFailed("the registry has no web console (it may be turned off with --console off)") from None
        if parsed.print:
            return link["href"]
        if webbrowser.open(link["href"]):
            return "The console is open in the browser"
        return f"Open this link in a browser within {link['expires_in']} seconds: {link['href']}"
