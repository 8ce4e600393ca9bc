"""
``raxsr configuration``: values one by one. (Whole files of them are in :mod:`.transfer`, environments in
:mod:`.execute`.)
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ...errors import NotFound
from ..outcome import CommandFailed, UsageError
from .base import ListCommand, Progress, RaxsrCommand, ShowCommand, addId, addPaging, collect, idOf, turnPages
from .output import Text
from .parser import Parser
from .valuefile import problemOf

if TYPE_CHECKING:
    from ...client import Client
    from ...types import ConfigurationPage, ConfigurationValue

_COLUMNS = {"id": "ID", "value": "Value"}


def _namespace(text: str) -> str:
    if not text:
        # Of a script whose variable is not set, most likely. It must not stand for all namespaces.
        raise argparse.ArgumentTypeError("the namespace is empty; give its name, such as /production/cassandra")
    return text


def addNamespace(
    parser: argparse._ActionsContainer,
    *,
    required: bool = False,
    help: str = "only values below this namespace, such as /production/cassandra",
) -> None:
    """Add ``--namespace``."""
    parser.add_argument(
        "--namespace",
        metavar="NAMESPACE",
        type=_namespace,
        required=required,
        help=help,
    )


def _row(value: ConfigurationValue) -> tuple[Any, ...]:
    return value["id"], Text(value["value"])


def _notThere(id: str) -> CommandFailed:
    return CommandFailed(f'there is no configuration value "{id}"')


async def _page(client: Client, namespace: str | None, marker: str | None, limit: int | None) -> ConfigurationPage:
    if namespace is None:
        return await client.configuration.list(marker, limit)
    return await client.configuration.listForNamespace(namespace, marker, limit)


async def allValues(client: Client, progress: Progress, namespace: str | None) -> dict[str, str]:
    """All values, or all below a *namespace*, by their keys."""

    async def page(marker: str | None, limit: int | None) -> ConfigurationPage:
        return await _page(client, namespace, marker, limit)

    values = turnPages(progress, None, "configuration values", page)
    return {value["id"]: value["value"] async for value in values}


class List(ListCommand):
    """Show configuration values."""

    example = "raxsr configuration list --namespace /production/cassandra"
    columns = _COLUMNS

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addNamespace(parser)
        addPaging(parser, "values")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""

        async def values(client: Client, progress: Progress) -> list[ConfigurationValue]:
            async def page(marker: str | None, limit: int | None) -> ConfigurationPage:
                return await _page(client, parsed_args.namespace, marker, limit)

            return await collect(self, progress, parsed_args, "values", page)

        return list(self.columns), list(map(_row, self.ask(values)))


class Get(ShowCommand):
    """Show one configuration value."""

    example = "raxsr configuration get /production/cassandra/listen_ip -f value"
    columns = _COLUMNS
    alone = "value"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "value's key")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        id = idOf(parsed_args)

        async def value(client: Client, progress: Progress) -> ConfigurationValue:
            return await client.configuration.get(id)

        try:
            return list(self.columns), _row(self.ask(value))
        except NotFound:
            raise _notThere(id) from None


class Set(RaxsrCommand):
    """Set a configuration value, whether there is one already or not."""

    example = "raxsr configuration set /production/cassandra/listen_ip 127.0.0.1"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        parser.add_argument(
            "given", nargs="*", metavar="KEY VALUE", help="the key and the value, as far as they are no options"
        )
        parser.add_argument("--id", metavar="KEY", help="the key")
        parser.add_argument("--value", metavar="VALUE", help="the value")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        given = list(parsed_args.given)
        id, value = (
            option if option is not None else given.pop(0) if given else None
            for option in (parsed_args.id, parsed_args.value)
        )
        if id is None or value is None or given:
            raise UsageError("this takes one key and one value: raxsr configuration set KEY VALUE")
        problem = problemOf(id, value)
        if problem is not None:
            raise CommandFailed(f"{id!r}: {problem}")

        async def setValue(client: Client, progress: Progress) -> bool:
            return await client.configuration.set(id, value)

        self.ask(setValue)
        self.say(f'Value for key "{id}" set to "{value}"')


class Remove(RaxsrCommand):
    """Remove a configuration value."""

    example = "raxsr configuration remove /production/cassandra/listen_ip"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        addId(parser, "value's key")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        id = idOf(parsed_args)

        async def remove(client: Client, progress: Progress) -> bool:
            return await client.configuration.remove(id)

        try:
            self.ask(remove)
        except NotFound:
            raise _notThere(id) from None
        self.say(f'Configuration value "{id}" has been removed')
