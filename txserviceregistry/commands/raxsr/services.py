"""``raxsr services``: list, register, heartbeat, update and remove services, and take them out of use."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

from ...errors import NotFound, ServiceExists
from ...util.fields import ID_RULE
from ...util.parsing import parseDuration, parseMetadata, parseTags
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, RaxsrCommand, ShowCommand, explainedToken
from .output import Column, metadata, tags, text, timestamp
from .parser import Parser

COLUMNS = {
    "id": Column("Service ID"),
    "heartbeat_timeout": Column("Heartbeat Timeout"),
    "last_seen": timestamp("Last Seen"),
    "tags": tags("Tags"),
    "metadata": metadata("Metadata"),
}
_NO_STATES = "this registry has no states of services. Use: raxsr services update ID --add-metadata status=disabled"


def _addFields(parser: Parser, timeoutDefault: int | None) -> None:
    shown = "" if timeoutDefault is None else f" (default: {timeoutDefault})"
    parser.add_argument(
        "--heartbeat-timeout",
        dest="heartbeatTimeout",
        type=int,
        default=timeoutDefault,
        metavar="SECONDS",
        help=f"time without a heartbeat after which the service expires, 3 to 120{shown}",
    )
    parser.add_argument("--tags", action="append", metavar="TAG,…", help=r"its tags; \, is a comma inside of a tag")
    parser.add_argument("--metadata", action="append", metavar="KEY=VALUE,…", help="its metadata, written the same way")


def _fields(parsed: argparse.Namespace) -> dict[str, Any]:
    """
    The tags and metadata that are given.

    :raises UsageError: if the metadata can't be parsed.
    """
    fields: dict[str, Any] = {}
    if parsed.tags is not None:
        fields["tags"] = _words(parsed.tags)
    if parsed.metadata is not None:
        fields["metadata"] = _pairs("--metadata", parsed.metadata)
    return fields


def _words(texts: list[str]) -> list[str]:
    return [word for text in texts for word in parseTags(text)]


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    try:
        return {key: value for text in texts for key, value in parseMetadata(text).items()}
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


class List(ListCommand):
    """Show the services that are registered."""

    example = "raxsr services list --tag www -f json"
    columns = COLUMNS
    important = ("metadata", "tags", "last_seen", "heartbeat_timeout")
    paged = "services"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("--tag", metavar="TAG", help="only services with this tag")

    async def perform(self) -> Any:
        services = self.client.services
        page = services.list if self.parsed.tag is None else partial(services.listForTag, self.parsed.tag)
        return await self.onePageOrAll(page)


class Get(ShowCommand):
    """Show one service."""

    example = "raxsr services get web1"
    columns = COLUMNS
    idOf = "service's id"
    kind = "service"

    async def perform(self) -> Any:
        return await self.client.services.get(self.parsed.id)


class Create(ShowCommand):
    """
    Register a service.

    It expires when its heartbeat timeout passes without a heartbeat. "raxsr services heartbeat" needs the token that is
    shown.
    """

    example = "raxsr services create web1 --heartbeat-timeout 60 --tags www,api --metadata port=8000,host=10.0.0.1"
    columns = {name: COLUMNS[name] for name in ("id", "heartbeat_timeout")} | {"token": Column("Token")}
    idOf = f"service's id, {ID_RULE}"

    def addArguments(self, parser: Parser) -> None:
        _addFields(parser, 30)

    def complete(self) -> None:
        self.fields: dict[str, Any] = _fields(self.parsed)

    async def perform(self) -> Any:
        id, timeout = self.parsed.id, self.parsed.heartbeatTimeout
        try:
            body, _ = await self.client.services.create(id, timeout, self.fields)
        except ServiceExists:
            raise CommandFailed(
                f'the service "{id}" already exists. Choose another id, remove it, or wait until it expires'
            ) from None
        return {"id": id, "heartbeat_timeout": timeout, **body}


class Heartbeat(ShowCommand):
    """
    Send a heartbeat for a service, which then expires a heartbeat timeout later.

    The next heartbeat needs the token that is shown.
    """

    example = "raxsr services heartbeat web1 --token 2d7ff6e8-c8e9-11f0-8de9-0242ac120002 -f value -c token"
    columns = {"id": COLUMNS["id"], "token": Column("Token")}
    idOf = "service's id"
    kind = "service"

    def addArguments(self, parser: Parser) -> None:
        shown = "the token that its creation or last heartbeat has shown"
        parser.add_argument("--token", required=True, metavar="TOKEN", help=shown)

    async def perform(self) -> Any:
        with explainedToken(f'service "{self.parsed.id}"'):
            return {"id": self.parsed.id, **await self.client.services.heartbeat(self.parsed.id, self.parsed.token)}


class Update(RaxsrCommand):
    """
    Change a service.

    --heartbeat-timeout, --tags and --metadata replace the old value as a whole; what is not given stays. The other
    options add to the tags and metadata of the service, or remove some: the service is read and then written, so
    another client's change in between is lost.
    """

    example = r"raxsr services update web1 --tags www --metadata status=disabled,note=down\, for now"
    idOf = "service's id"
    kind = "service"

    def addArguments(self, parser: Parser) -> None:
        _addFields(parser, None)
        for option, metavar, what in (
            ("--add-tags", "TAG,…", "tags to add"),
            ("--remove-tags", "TAG,…", "tags to remove"),
            ("--add-metadata", "KEY=VALUE,…", "metadata to add, or to give another value"),
            ("--remove-metadata", "KEY,…", "keys of metadata to remove"),
        ):
            parser.add_argument(option, action="append", default=[], metavar=metavar, help=what)

    def complete(self) -> None:
        self.fields: dict[str, Any] = _fields(self.parsed)
        if self.parsed.heartbeatTimeout is not None:
            self.fields["heartbeat_timeout"] = self.parsed.heartbeatTimeout
        self.amendments: dict[str, tuple[Any, Any]] = {
            "tags": (_words(self.parsed.add_tags), _words(self.parsed.remove_tags)),
            "metadata": (_pairs("--add-metadata", self.parsed.add_metadata), _words(self.parsed.remove_metadata)),
        }
        for name, (added, removed) in list(self.amendments.items()):
            both = sorted(set(added) & set(removed))
            if both:
                raise UsageError(f"--add-{name} and --remove-{name} both name {both[0]!r}")
            if not added and not removed:
                del self.amendments[name]
            elif name in self.fields:
                raise UsageError(f"--{name} replaces all: it can't be given with --add-{name} or --remove-{name}")
        if not self.fields and not self.amendments:
            raise UsageError("nothing to change: give --heartbeat-timeout, --tags or --metadata")

    async def perform(self) -> Any:
        changes = dict(self.fields)
        service: Any = await self.client.services.get(self.parsed.id) if self.amendments else None
        for name, (added, removed) in self.amendments.items():
            present = service[name]
            if name == "tags":
                changes[name] = [tag for tag in dict.fromkeys([*present, *added]) if tag not in removed]
            else:
                changes[name] = {key: value for key, value in {**present, **added}.items() if key not in removed}
        await self.client.services.update(self.parsed.id, changes)
        return f'Service "{self.parsed.id}" has been updated'


class Remove(RaxsrCommand):
    """Remove a service."""

    example = "raxsr services remove web1"
    idOf = "service's id"
    kind = "service"

    async def perform(self) -> Any:
        await self.client.services.remove(self.parsed.id)
        return f'Service "{self.parsed.id}" has been removed'


class Drain(RaxsrCommand):
    """
    Drain a service: it gets no new work, and existing connections go on.

    The state belongs to the ID. It survives restarts of the service, and may be set before it is registered.
    """

    example = 'raxsr services drain web1 --reason "rack move" --for 10m'
    idOf = "service's id"
    state = "drain"
    done = "gets no new work"

    def addArguments(self, parser: Parser) -> None:
        shown = "the reason, for other operators; up to 255 characters"
        parser.add_argument("--reason", default="", metavar="TEXT", help=shown)
        shown = "end the state after this time: 90s, 10m, 24h, up to 30d"
        parser.add_argument("--for", dest="duration", metavar="TIME", help=shown)

    def complete(self) -> None:
        self.seconds: int | None = None
        if self.parsed.duration is not None:
            try:
                self.seconds = math.ceil(parseDuration(self.parsed.duration, "1s", "30d"))
            except ValueError as error:
                raise UsageError(f"--for: {error}") from None

    async def perform(self) -> Any:
        try:
            await self.client.services.setState(self.parsed.id, self.state, self.parsed.reason, expiresIn=self.seconds)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
        limit = "" if self.parsed.duration is None else f" for {self.parsed.duration}"
        return f'Service "{self.parsed.id}" {self.done}{limit}'


class Out(Drain):
    """
    Take a service out of use: it receives no traffic.

    Clients send it nothing new, and Prometheus does not scrape it. The state belongs to the ID. It survives
    restarts of the service, and may be set before it is registered.
    """

    example = 'raxsr services out web1 --reason "broken disk"'
    state = "out"
    done = "receives no traffic"


class Up(Drain):
    """Put a service back into use."""

    example = "raxsr services up web1"
    state = "up"
    done = "is up"


class States(ListCommand):
    """Show the states that were set for services."""

    example = "raxsr services states -f json"
    columns = {
        "id": Column("Service ID"),
        "state": Column("State"),
        "expires_at": timestamp("Ends"),
        "reason": text("Reason"),
    }
    important = ("state", "reason", "expires_at")
    paged = "states"

    async def perform(self) -> Any:
        try:
            return await self.onePageOrAll(self.client.services.listStates)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
