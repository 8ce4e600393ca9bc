"""``raxsr configuration``: single values. (:mod:`.transfer` has files of values, :mod:`.execute` environments.)"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..outcome import CommandFailed, UsageError
from .base import ListCommand, RaxsrCommand, ShowCommand, addId, addPaging
from .output import Column, Text
from .parser import Parser
from .valuefile import problemOf

if TYPE_CHECKING:
    from ...client import Client

COLUMNS = {"id": Column("ID"), "value": Column("Value", Text)}
_KIND = "configuration value"


def _namespace(text: str) -> str:
    if not text:
        # A script whose variable is not set must not get all namespaces.
        raise argparse.ArgumentTypeError("the namespace is empty; give its name, such as /production/cassandra")
    return text


_BELOW = "only values below this namespace, such as /production/cassandra"


def addNamespace(parser: argparse._ActionsContainer, *, required: bool = False, help: str = _BELOW) -> None:
    """Add ``--namespace``."""
    parser.add_argument("--namespace", metavar="NAMESPACE", type=_namespace, required=required, help=help)


def _tag(text: str) -> str:
    """A value's tag, for which its quotes may be left out: a shell takes them away."""
    return text if text == "*" or '"' in text else f'"{text}"'


def _addIfMatch(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--if-match",
        dest="ifMatch",
        metavar="TAG",
        type=_tag,
        help=f"{what} only if the value still has this tag, as 'get --etag' shows it",
    )


def _pages(client: Client, namespace: str | None) -> Callable[[str | None, int | None], Awaitable[Any]]:
    """Requests a page of all values, or of those below a namespace."""
    configuration = client.configuration
    return configuration.list if namespace is None else partial(configuration.listForNamespace, namespace)


async def allValues(command: RaxsrCommand, client: Client, namespace: str | None) -> dict[str, str]:
    """All values, or all below a *namespace*, by their keys."""
    values = command.allPages("configuration values", _pages(client, namespace))
    return {value["id"]: value["value"] async for value in values}


class List(ListCommand):
    """Show configuration values."""

    example = "raxsr configuration list --namespace /production/cassandra"
    columns = COLUMNS

    def addArguments(self, parser: Parser) -> None:
        addNamespace(parser)
        addPaging(parser, "values")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        return await self.onePageOrAll(parsed, "values", _pages(client, parsed.namespace))


class Get(ShowCommand):
    """Show one configuration value."""

    example = "raxsr configuration get /production/cassandra/listen_ip -f value"
    columns = COLUMNS
    alone: str | None = "value"
    kind = _KIND

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "value's key")
        parser.add_argument("--etag", action="store_true", help="show the value's tag, too, for --if-match")

    def run(self, parsed_args: argparse.Namespace) -> int:
        if parsed_args.etag:
            self.columns = {**COLUMNS, "etag": Column("ETag")}
            self.alone = None
        return super().run(parsed_args)

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        configuration = client.configuration
        return await (configuration.getWithEtag if parsed.etag else configuration.get)(parsed.id)


class Set(RaxsrCommand):
    """
    Set a configuration value, whether it exists or not.

    With --if-match, a value that another client has changed meanwhile stays as it is, and the exit code is 1.
    """

    example = "raxsr configuration set /production/cassandra/listen_ip 127.0.0.1"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument(
            "given", nargs="*", metavar="KEY VALUE", help="the key and the value, unless options give them"
        )
        parser.add_argument("--id", metavar="KEY", help="the key")
        parser.add_argument("--value", metavar="VALUE", help="the value")
        _addIfMatch(parser, "set it")

    def take_action(self, parsed: argparse.Namespace) -> Any:
        given = list(parsed.given)
        parsed.id, parsed.value = (
            option if option is not None else given.pop(0) if given else None for option in (parsed.id, parsed.value)
        )
        if parsed.id is None or parsed.value is None or given:
            raise UsageError("give one key and one value: raxsr configuration set KEY VALUE")
        problem = problemOf(parsed.id, parsed.value)
        if problem is not None:
            raise CommandFailed(f"{parsed.id!r}: {problem}")
        super().take_action(parsed)

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        await client.configuration.set(parsed.id, parsed.value, ifMatch=parsed.ifMatch)
        return f'Value for key "{parsed.id}" set to "{parsed.value}"'


class Remove(RaxsrCommand):
    """Remove a configuration value."""

    example = "raxsr configuration remove /production/cassandra/listen_ip"
    kind = _KIND

    def addArguments(self, parser: Parser) -> None:
        addId(parser, "value's key")
        _addIfMatch(parser, "remove it")

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        await client.configuration.remove(parsed.id, ifMatch=parsed.ifMatch)
        return f'Configuration value "{parsed.id}" has been removed'
