"""
``raxsr services``: find services, and register, keep, change and remove them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ...errors import NotFound, ServiceExists
from ...util.fields import ID_RULE
from ...util.parsing import parseMetadata, parseTags
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, Progress, RaxsrCommand, ShowCommand, addId, addPaging, collect, idOf
from .output import Metadata, Tags, Timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client
    from ...types import HeartbeatToken, Service

_COLUMNS = {
    "id": "Service ID",
    "heartbeat_timeout": "Heartbeat Timeout",
    "last_seen": "Last Seen",
    "tags": "Tags",
    "metadata": "Metadata",
}


def _row(service: Service) -> tuple[Any, ...]:
    return (
        service["id"],
        service["heartbeat_timeout"],
        Timestamp(service["last_seen"]),
        Tags(service["tags"]),
        Metadata(service["metadata"]),
    )


def _notThere(id: str) -> CommandFailed:
    return CommandFailed(f'there is no service "{id}"')


def _addFields(parser: Parser, timeoutDefault: int | None) -> None:
    shown = "" if timeoutDefault is None else f"; {timeoutDefault} if not given"
    parser.add_argument(
        "--heartbeat-timeout",
        dest="heartbeatTimeout",
        type=int,
        default=timeoutDefault,
        metavar="SECONDS",
        help=f"silence after which the registry gives it up, 3 to 120{shown}",
    )
    parser.add_argument(
        "--tags", action="append", metavar="TAG,…", help=r"its tags; \, is a comma that does not separate"
    )
    parser.add_argument("--metadata", action="append", metavar="KEY=VALUE,…", help="its metadata, written the same way")


def _fields(parsed: argparse.Namespace) -> dict[str, Any]:
    """
    What is given of a service's fields.

    :raises UsageError: if it can't be read.
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
    """
    :raises UsageError: if they can't be read.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        try:
            pairs.update(parseMetadata(text))
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
    return pairs


_Amendment = Callable[["Service"], dict[str, Any]]


def _tagAmendment(parsed: argparse.Namespace) -> _Amendment | None:
    """
    :return: makes the tags that a service is to have of those that it has; ``None`` if that was not asked for.
    :raises UsageError: if that can't be done.
    """
    added, removed = _words(parsed.add_tags), _words(parsed.remove_tags)
    if not added and not removed:
        return None
    _checkAmendment("tags", parsed.tags, set(added) & set(removed))

    def amend(service: Service) -> dict[str, Any]:
        return {"tags": [tag for tag in dict.fromkeys([*service["tags"], *added]) if tag not in removed]}

    return amend


def _metadataAmendment(parsed: argparse.Namespace) -> _Amendment | None:
    """As :func:`_tagAmendment`, for metadata."""
    added, removed = _pairs("--add-metadata", parsed.add_metadata), _words(parsed.remove_metadata)
    if not added and not removed:
        return None
    _checkAmendment("metadata", parsed.metadata, set(added) & set(removed))

    def amend(service: Service) -> dict[str, Any]:
        pairs = {**service["metadata"], **added}
        return {"metadata": {key: value for key, value in pairs.items() if key not in removed}}

    return amend


def _checkAmendment(name: str, replaced: object, both: Collection[str]) -> None:
    if replaced is not None:
        raise UsageError(f"--{name} replaces all: it can't be given with --add-{name} or --remove-{name}")
    if both:
        raise UsageError(f"--add-{name} and --remove-{name} both name {sorted(both)[0]!r}")


class List(ListCommand):
    """Show the services that are alive."""

    example = "raxsr services list --tag www -f json"
    columns = _COLUMNS
    important = ("metadata", "tags", "last_seen", "heartbeat_timeout")

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        parser.add_argument("--tag", metavar="TAG", help="only those that bear this tag")
        addPaging(parser, "services")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""

        async def services(client: Client, progress: Progress) -> list[Service]:
            async def page(marker: str | None, limit: int | None) -> Any:
                if parsed_args.tag is None:
                    return await client.services.list(marker, limit)
                return await client.services.listForTag(parsed_args.tag, marker, limit)

            return await collect(self, progress, parsed_args, "services", page)

        return list(self.columns), list(map(_row, self.ask(services)))


class Get(ShowCommand):
    """Show one service."""

    example = "raxsr services get web1"
    columns = _COLUMNS

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "service's id")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        id = idOf(parsed_args)

        async def service(client: Client, progress: Progress) -> Service:
            return await client.services.get(id)

        try:
            return list(self.columns), _row(self.ask(service))
        except NotFound:
            raise _notThere(id) from None


class Create(ShowCommand):
    """
    Register a service.

    It lives for its heartbeat timeout, and for another one after each heartbeat: the token that is shown is what
    "raxsr services heartbeat" needs.
    """

    example = "raxsr services create web1 --heartbeat-timeout 60 --tags www,api --metadata port=8000,host=10.0.0.1"
    columns = {"id": "Service ID", "heartbeat_timeout": "Heartbeat Timeout", "token": "Token"}

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, f"service's id, {ID_RULE}")
        _addFields(parser, 30)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        id, timeout, fields = idOf(parsed_args), parsed_args.heartbeatTimeout, _fields(parsed_args)

        async def token(client: Client, progress: Progress) -> HeartbeatToken:
            body, _ = await client.services.create(id, timeout, fields)
            return body

        try:
            return list(self.columns), (id, timeout, self.ask(token)["token"])
        except ServiceExists:
            raise CommandFailed(
                f'the service "{id}" is there already, and alive. Choose another id, remove it, or wait until its '
                "heartbeat timeout has passed"
            ) from None


class Heartbeat(ShowCommand):
    """
    Keep a service alive for another heartbeat timeout.

    The token that is shown is for the next time.
    """

    example = "raxsr services heartbeat web1 --token 2d7ff6e8-c8e9-11f0-8de9-0242ac120002 -f value -c token"
    columns = {"id": "Service ID", "token": "Token"}

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "service's id")
        parser.add_argument(
            "--token", required=True, metavar="TOKEN", help="what its creation has shown, or its last heartbeat"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        id = idOf(parsed_args)

        async def token(client: Client, progress: Progress) -> HeartbeatToken:
            return await client.services.heartbeat(id, parsed_args.token)

        try:
            return list(self.columns), (id, self.ask(token)["token"])
        except NotFound as error:
            if "HeartbeatMarker" in error.details:
                raise CommandFailed(f'this token is none of the service "{id}"') from None
            raise _notThere(id) from None


class Update(RaxsrCommand):
    """
    Change a service.

    What is given with --heartbeat-timeout, --tags and --metadata replaces the old value as a whole, and what is not
    given stays. The other options add to the tags and metadata that the service has, or remove some of them: they are
    read and then written, so that another client's change in between is lost.
    """

    example = r"raxsr services update web1 --tags www --metadata status=disabled,note=down\, for now"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "service's id")
        _addFields(parser, None)
        for option, metavar, what in (
            ("--add-tags", "TAG,…", "tags to add"),
            ("--remove-tags", "TAG,…", "tags to remove"),
            ("--add-metadata", "KEY=VALUE,…", "metadata to add, or to give another value"),
            ("--remove-metadata", "KEY,…", "keys of metadata to remove"),
        ):
            parser.add_argument(option, action="append", default=[], metavar=metavar, help=what)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        id, changes = idOf(parsed_args), _fields(parsed_args)
        amendments = [_tagAmendment(parsed_args), _metadataAmendment(parsed_args)]
        if parsed_args.heartbeatTimeout is not None:
            changes["heartbeat_timeout"] = parsed_args.heartbeatTimeout
        if not changes and not any(amendments):
            raise UsageError("there is nothing to change: give --heartbeat-timeout, --tags or --metadata")

        async def update(client: Client, progress: Progress) -> bool:
            if any(amendments):
                service = await client.services.get(id)
                for amend in filter(None, amendments):
                    changes.update(amend(service))
            return await client.services.update(id, changes)

        try:
            self.ask(update)
        except NotFound:
            raise _notThere(id) from None
        self.say(f'Service "{id}" has been updated')


class Remove(RaxsrCommand):
    """Remove a service."""

    example = "raxsr services remove web1"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "service's id")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        id = idOf(parsed_args)

        async def remove(client: Client, progress: Progress) -> bool:
            return await client.services.remove(id)

        try:
            self.ask(remove)
        except NotFound:
            raise _notThere(id) from None
        self.say(f'Service "{id}" has been removed')
