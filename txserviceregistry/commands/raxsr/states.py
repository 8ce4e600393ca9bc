"""``raxsr services drain``, ``out``, ``up`` and ``states``: take services out of use, and back."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from ...errors import NotFound
from ...util.parsing import parseDuration
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, RaxsrCommand, addId, addPaging
from .output import Column, Text, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client

_NO_STATES = "this registry has no states of services. Use: raxsr services update ID --add-metadata status=disabled"


class Drain(RaxsrCommand):
    """
    Let a service have no new work; existing connections go on.

    The state belongs to the ID. It survives restarts of the service, and may be set before it is registered.
    """

    example = 'raxsr services drain web1 --reason "rack move" --for 10m'
    state = "drain"
    done = "gets no new work"

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "service's id")
        parser.add_argument(
            "--reason", default="", metavar="TEXT", help="why, for other operators; up to 255 characters"
        )
        parser.add_argument(
            "--for", dest="duration", metavar="TIME", help="up again after this time: 90s, 10m, 24h, up to 30d"
        )

    def take_action(self, parsed: argparse.Namespace) -> Any:
        parsed.seconds = None
        if parsed.duration is not None:
            try:
                parsed.seconds = math.ceil(parseDuration(parsed.duration, "1s", "30d"))
            except ValueError as error:
                raise UsageError(f"--for: {error}") from None
        super().take_action(parsed)

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        try:
            await client.services.setState(parsed.id, self.state, parsed.reason, expiresIn=parsed.seconds)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
        limit = "" if parsed.duration is None else f" for {parsed.duration}"
        return f'Service "{parsed.id}" {self.done}{limit}'


class Out(Drain):
    """
    Let a service receive no traffic.

    Clients send it nothing new, and Prometheus does not scrape it. The state belongs to the ID. It survives
    restarts of the service, and may be set before it is registered.
    """

    example = 'raxsr services out web1 --reason "broken disk"'
    state = "out"
    done = "receives no traffic"


class Up(Drain):
    """Let a service be used again. A reason stays with it."""

    example = "raxsr services up web1"
    state = "up"
    done = "is up"


class States(ListCommand):
    """Show the states that were set for services."""

    example = "raxsr services states -f json"
    columns = {
        "id": Column("Service ID"),
        "state": Column("State"),
        "expires_at": Column("Ends", Timestamp),
        "reason": Column("Reason", Text),
    }
    important = ("state", "reason", "expires_at")

    def addArguments(self, parser: Parser) -> None:
        addPaging(parser, "states")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        try:
            return await self.onePageOrAll(parsed, "states", client.services.listStates)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
