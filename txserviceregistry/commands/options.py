"""
Options in a table: each entry has the option's help and its parser, for the command line and for a file of options
(``--config``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.python import usage

from .configfile import readConfigFile
from .outcome import didYouMean
from .process import OneLineOptions


@attrs.frozen
class Option:
    """
    An option with a value.

    :ivar name: the long name, as on the command line (without its dashes) and in a file.
    :ivar short: the short name, one letter, or ``None``.
    :ivar default: the text of the default, or ``None``.
    :ivar help: one line for ``--help``.
    :ivar parse: makes the value of its text, or raises ``ValueError`` with a line that has the text and the problem.
    :ivar isRepeatable: whether it may be given several times; then its value is a list.
    """

    name: str
    short: str | None
    default: str | None
    help: str
    parse: Callable[[str], Any] = str
    isRepeatable: bool = False


def oneOf(*words: str) -> Callable[[str], str]:
    """A parser that accepts these *words* only."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


class TableOptions(OneLineOptions):
    """
    The options of a twistd command, which may be in a file too. The command line comes before the file, the file before
    the default. After :meth:`postOptions` the values are here by the options' names.

    :ivar given: the names of those that were given, on the command line or in a file.
    """

    table: Sequence[Option] = ()
    given: frozenset[str] = frozenset()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for option in cls.table:
            handler = _handler(option)
            setattr(cls, f"opt_{option.name.replace('-', '_')}", handler)
            if option.short is not None:
                setattr(cls, f"opt_{option.short}", handler)

    def __init__(self) -> None:
        usage.Options.__init__(self)
        # For --help. postOptions sets the values.
        self.defaults.update({option.name: option.default for option in self.table})
        self._given: dict[str, list[str]] = {}
        self._file: str | None = None

    def opt_config(self, path: str) -> None:
        """File with any of these options: INI, or TOML if it ends in .toml; the command line wins."""
        self._file = path

    opt_c = opt_config

    def give(self, option: Option, text: str) -> None:
        values = self._given.setdefault(option.name, [])
        if not option.isRepeatable:
            values.clear()
        values.append(text)

    def postOptions(self) -> None:
        inFile = self._inFile()
        self.given = frozenset({*self._given, *inFile})
        for option in self.table:
            if option.name in self._given:
                self[option.name] = _value(option, self._given[option.name], f"--{option.name}")
            elif option.name in inFile:
                self[option.name] = _value(option, inFile[option.name], f"{self._file}: {option.name}")
            elif option.default is None:
                self[option.name] = [] if option.isRepeatable else None
            else:
                self[option.name] = _value(option, [option.default], f"--{option.name}")

    def _inFile(self) -> dict[str, list[str]]:
        if self._file is None:
            return {}
        try:
            inFile = readConfigFile(self._file, self.command)
        except ValueError as error:
            raise usage.UsageError(str(error))
        names = [option.name for option in self.table]
        for name in inFile:
            if name not in names:
                raise usage.UsageError(f"{self._file}: unknown option {name!r}{didYouMean(name, names)}")
        return inFile


def _handler(option: Option) -> Callable[[TableOptions, str], None]:
    def handler(self: TableOptions, text: str) -> None:
        self.give(option, text)

    handler.__doc__ = option.help
    return handler


def _value(option: Option, texts: Sequence[str], where: str) -> Any:
    if not texts or "" in texts:
        raise usage.UsageError(f"{where}: the value is empty")
    if len(texts) > 1 and not option.isRepeatable:
        raise usage.UsageError(f"{where}: only one value is allowed")
    try:
        values = [option.parse(text) for text in texts]
    except ValueError as error:
        raise usage.UsageError(f"{where}: {error}")
    return values if option.isRepeatable else values[0]
