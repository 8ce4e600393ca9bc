"""
Options that stand in a table: what ``--help`` says of them, how their values are read, from the command line and from
a file of options (``--config``), is all in the one entry that each of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.python import usage

from .configfile import readConfigFile
from .process import OneLineOptions


@attrs.frozen
class Option:
    """
    An option. Every one takes a value.

    :ivar name: the long name, as it is written on the command line (without its dashes) and in a file.
    :ivar short: the letter that stands for it, or ``None``.
    :ivar default: what it is if nobody says anything, as a text; ``None`` if there is no such text.
    :ivar help: one line for ``--help``.
    :ivar parse: makes the value of its text, or raises ``ValueError`` with a line that repeats the text and says what
        is wrong with it.
    :ivar isRepeatable: whether it may be given several times; then its value is a list.
    """

    name: str
    short: str | None
    default: str | None
    help: str
    parse: Callable[[str], Any] = str
    isRepeatable: bool = False


def oneOf(*words: str) -> Callable[[str], str]:
    """A parser that takes nothing but these *words*."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return text

    return parse


class TableOptions(OneLineOptions):
    """
    Options of a twistd command that stand in :attr:`table`, and may stand in a file as well.

    For each option the command line wins over the file, the file over the default. After :meth:`postOptions` the values
    are here by the options' names.
    """

    #: The options.
    table: Sequence[Option] = ()
    #: The names of those that were given, here or in a file.
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
        # For --help. What an option is in the end is found in postOptions.
        self.defaults.update({option.name: option.default for option in self.table})
        self._given: dict[str, list[str]] = {}
        self._file: str | None = None

    def opt_config(self, path: str) -> None:
        """File with any of these options: INI, or TOML if it ends in .toml; the command line wins."""
        self._file = path

    opt_c = opt_config

    def give(self, option: Option, text: str) -> None:
        """Take a value from the command line."""
        values = self._given.setdefault(option.name, [])
        if not option.isRepeatable:
            values.clear()
        values.append(text)

    def postOptions(self) -> None:
        """
        Find each option's value.

        :raises twisted.python.usage.UsageError: if one can't be used, or the file can't.
        """
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
                raise usage.UsageError(f"{self._file}: there is no option {name!r}; the options are {', '.join(names)}")
        return inFile


def _handler(option: Option) -> Callable[[TableOptions, str], None]:
    def handler(self: TableOptions, text: str) -> None:
        self.give(option, text)

    handler.__doc__ = option.help
    return handler


def _value(option: Option, texts: Sequence[str], where: str) -> Any:
    if not texts or "" in texts:
        raise usage.UsageError(f"{where}: there is no value")
    if len(texts) > 1 and not option.isRepeatable:
        raise usage.UsageError(f"{where}: there is more than one value")
    try:
        values = [option.parse(text) for text in texts]
    except ValueError as error:
        raise usage.UsageError(f"{where}: {error}")
    return values if option.isRepeatable else values[0]
