"""``raxsr configuration import`` and ``export``: many values at once."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ServiceRegistryError
from ...util.redaction import escaped
from ..console import useUTF8
from ..outcome import CommandFailed
from .base import RaxsrCommand
from .configuration import addNamespace, allValues
from .parser import Parser
from .valuefile import FORMATS, STANDARD, formatOf, formatValues, parseValues, readText, writeText


class _Transfer(RaxsrCommand):
    """The base of import and export."""

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("file", metavar="FILE", help="a file of YAML or JSON; - for stdin or stdout")
        shown = "the file's format (default: by its extension, yaml for -)"
        parser.add_argument("--format", choices=FORMATS, help=shown)
        self.addPlace(parser)
        parser.add_argument("--dry-run", dest="dryRun", action="store_true", help="only show what would change")

    def addPlace(self, parser: Parser) -> None:
        addNamespace(parser)

    def hasOutput(self) -> bool:
        return self.parsed.dryRun or super().hasOutput()

    def show(self, old: Mapping[str, str], new: Mapping[str, str], *, removing: bool) -> None:
        for line in _differences(old, new, removing):
            print(escaped(line))
        self.say(f"Without --dry-run: {_summary(old, new, removing)}")


class Import(_Transfer):
    """
    Set all the configuration values of a file.

    The file is an object of keys and values. With --namespace, keys that do not begin with a slash are put below it;
    without it they are refused, unless --root allows to set them at the top.
    Everything is checked before anything is set; values that the file does not have do not change.
    """

    example = "raxsr configuration import production.yaml --namespace /production --dry-run"

    def addPlace(self, parser: Parser) -> None:
        place = parser.add_mutually_exclusive_group()
        addNamespace(place, help="set keys without a leading slash below this namespace, such as /production/cassandra")
        place.add_argument("--root", action="store_true", help="set keys without a slash at the top, in no namespace")

    def run(self) -> int | None:
        path = self.parsed.file
        format = formatOf(path, self.parsed.format)
        self.values = parseValues(readText(path), format, path, self.parsed.namespace, root=self.parsed.root)
        old = self.ask()
        if self.parsed.dryRun:
            self.show(old, self.values, removing=False)
        else:
            self.say(f"Configuration values: {_summary(old, self.values, False)}")
        return None

    async def perform(self) -> Any:
        new: Mapping[str, str] = self.values
        old = await allValues(self, self.client, self.parsed.namespace)
        changes = [] if self.parsed.dryRun else [key for key in new if old.get(key) != new[key]]
        for done, key in enumerate(changes):
            self.progress.show(f"{done} of {len(changes)} values set …")
            try:
                await self.client.configuration.set(key, new[key])
            except ServiceRegistryError as error:
                raise CommandFailed(f"{error}. {done} of {len(changes)} values were set before") from None
        return old


class Export(_Transfer):
    """
    Write configuration values to a file, which "raxsr configuration import" can read.

    Keys are written in full, also with --namespace.
    """

    example = "raxsr configuration export production.yaml --namespace /production"

    def hasOutput(self) -> bool:
        return self.parsed.file == STANDARD or super().hasOutput()

    async def perform(self) -> Any:
        return await allValues(self, self.client, self.parsed.namespace)

    def run(self) -> int | None:
        path = self.parsed.file
        format = formatOf(path, self.parsed.format)
        new = self.ask()
        if self.parsed.dryRun:
            old = {} if path == STANDARD or _isMissing(path) else parseValues(readText(path), format, path, None)
            self.show(old, new, removing=True)
        elif path == STANDARD:
            useUTF8()
            sys.stdout.write(formatValues(new, format))
        else:
            writeText(path, formatValues(new, format))
            self.say(f"Configuration values: {len(new)} written to {path}")
        return None


def _isMissing(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ENOENT
    return False


def _differences(old: Mapping[str, str], new: Mapping[str, str], removing: bool) -> Iterator[str]:
    for key in sorted({*new, *(old if removing else ())}):
        if key not in old:
            yield f"+ {key}: {_quoted(new[key])}"
        elif key not in new:
            yield f"- {key}: {_quoted(old[key])}"
        elif old[key] != new[key]:
            yield f"~ {key}: {_quoted(old[key])} -> {_quoted(new[key])}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _summary(old: Mapping[str, str], new: Mapping[str, str], removing: bool) -> str:
    added = sum(key not in old for key in new)
    same = sum(old.get(key) == new[key] for key in new)
    removed = f", {sum(key not in new for key in old)} removed" if removing else ""
    return f"{added} added, {len(new) - added - same} changed{removed}, {same} unchanged"
